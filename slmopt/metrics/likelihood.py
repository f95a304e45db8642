"""The metrics `perplexity` and `bits-per-byte`: how probable the model finds the text."""

from __future__ import annotations

import math
from collections.abc import Sequence

from slmopt.errors import InputError
from slmopt.metrics.metric import Document, Subject

__all__ = ["BitsPerByte", "Perplexity", "bits_per_byte_of", "perplexity_of", "total_nats"]

_LARGEST = 700.0  # exp of more is no float


def total_nats(subject: Subject, documents: Sequence[Document]) -> float:
    """The sum of -log p over every token but the first of each document, in float64."""
    nats = 0.0
    for document in documents:
        for part in subject.predict(document.ids):
            nats -= float(part.target_log_probabilities().sum())
    return nats


def perplexity_of(nats: float, tokens: int) -> float:
    """exp(nats / tokens); infinity where the model gave no number."""
    return math.exp(min(nats / tokens, _LARGEST)) if not math.isnan(nats) else math.inf


def bits_per_byte_of(nats: float, documents: Sequence[Document]) -> float:
    """Bits for each byte of text that was predicted; InputError where the tokenizer does not say which those are."""
    size = sum(document.bytes for document in documents)
    if size == 0:
        raise InputError("bits per byte: the tokenizer gives no places of its tokens in the text")
    return nats / math.log(2) / size


class Perplexity:
    """exp(mean of -log p) over every token but the first of each document."""

    name = "perplexity"
    summary = "exp of the mean of -log p over the tokens of the text"
    unit = ""
    lower_is_better = True

    def measure(self, subject: Subject, documents: Sequence[Document]) -> float:
        """At least 1; infinity where the model finds a token impossible or gives no number."""
        return perplexity_of(total_nats(subject, documents), sum(len(document.ids) - 1 for document in documents))


class BitsPerByte:
    """-log2 p of the tokens for each byte of text that they stand for: comparable between tokenizers."""

    name = "bits-per-byte"
    summary = "-log2 p of the text for each of its UTF-8 bytes; comparable between tokenizers"
    unit = "bits/byte"
    lower_is_better = True

    def measure(self, subject: Subject, documents: Sequence[Document]) -> float:
        """0 or more; the text that is cut off at the model's context is not counted."""
        return bits_per_byte_of(total_nats(subject, documents), documents)
