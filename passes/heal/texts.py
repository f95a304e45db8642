"""Documents to train on and to measure with, and the batches they come in."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

__all__ = ["Document", "Texts", "make_batches", "predicted", "split_documents"]

Document = tuple[int, ...]

_HELD_OUT = 8192  # tokens: more make the measure hardly better and the healing longer
_POOL = 16  # batches whose documents are put together by length


@dataclass(frozen=True)
class Texts:
    """Documents of token ids. `held_out`: those that are measured with and never trained on."""

    training: tuple[Document, ...]
    held_out: tuple[Document, ...]


def split_documents(documents: Sequence[Document], share: float, seed: int) -> Texts:
    """Keep `share` of the documents out, at least one and at most about 8192 tokens."""
    order = list(documents)
    random.Random(f"held out {seed}").shuffle(order)
    count, tokens = 0, 0
    while count < len(order) and (count == 0 or (count < share * len(order) and tokens < _HELD_OUT)):
        tokens += len(order[count])
        count += 1
    return Texts(tuple(order[count:]), tuple(order[:count]))


def make_batches(
    documents: Sequence[Document], size: int, tokens: int, seed: int, *, whole: bool = False
) -> list[list[Document]]:
    """Batches of whole documents, until they give `tokens` tokens to predict; the last one may give more.

    A batch is at most `size` positions, padding included, but has one document at least. Every document comes once
    before any comes twice; those of about equal length come together. The same for the same seed. With `whole` the last
    round of all documents is not cut short.
    """
    draw = random.Random(f"batches {seed}")
    found: list[list[Document]] = []
    while tokens > 0:
        order = list(documents)
        draw.shuffle(order)
        for batch in _shuffled(_batches_of(order, size), draw):
            if tokens <= 0 and not whole:
                break
            found.append(batch)
            tokens -= predicted(batch)
    return found


def predicted(batch: Sequence[Document]) -> int:
    """How many tokens of a batch are predicted: all but the first of each document."""
    return sum(len(document) - 1 for document in batch)


def _shuffled(batches: Iterator[list[Document]], draw: random.Random) -> list[list[Document]]:
    found = list(batches)
    draw.shuffle(found)
    return found


def _batches_of(documents: Sequence[Document], size: int) -> Iterator[list[Document]]:
    """All documents in batches, of each stretch of documents those of about equal length together."""
    start = 0
    while start < len(documents):
        stop, taken = start, 0
        while stop < len(documents) and taken < _POOL * size:
            taken += len(documents[stop])
            stop += 1
        yield from _cut(sorted(documents[start:stop], key=len), size)
        start = stop


def _cut(documents: Sequence[Document], size: int) -> Iterator[list[Document]]:
    batch: list[Document] = []
    for document in documents:  # the last one is the longest so far
        if batch and (len(batch) + 1) * len(document) > size:
            yield batch
            batch = []
        batch.append(document)
    if batch:
        yield batch
