"""Text for calibration and evaluation: documents of token ids."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slmopt.errors import InputError

__all__ = ["SEPARATOR", "Calibration", "read_text", "read_tokenizer", "tokenize_documents"]

SEPARATOR = "<|endoftext|>"


@dataclass(frozen=True)
class Calibration:
    """Documents of token ids, each begun by BOS where the model has one and no longer than its context.

    InputError where there is no token at all.
    """

    documents: tuple[tuple[int, ...], ...]

    def __post_init__(self) -> None:
        if not any(self.documents):
            raise InputError("the text has no tokens: give one with a document of two tokens or more, and have two of "
                             "them or more looked at")  # fmt: skip

    @property
    def tokens(self) -> int:
        """How many tokens there are."""
        return sum(map(len, self.documents))

    def head(self, tokens: int) -> Calibration:
        """The first documents, cut so that there are at most `tokens` tokens."""
        kept: list[tuple[int, ...]] = []
        for document in self.documents:
            part = document[:tokens]
            tokens -= len(part)
            if len(part) > 1:
                kept.append(part)
            if tokens < 2:
                break
        return Calibration(tuple(kept))


def read_text(path: str | Path) -> str:
    """A UTF-8 text file; InputError where it cannot be read."""
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"the text {path} cannot be read: {error}") from error


def tokenize_documents(metadata: dict[str, Any], text: str, separator: str = SEPARATOR) -> Calibration:
    """Tokenize `text` with the module's own tokenizer (`metadata["tokenizer"]`), documents split at `separator`.

    InputError where the module has no tokenizer or the text gives no token to predict.
    """
    tokenizer = read_tokenizer(metadata)
    begin = metadata.get("bos_token_id")
    documents = []
    for document in text.split(separator):
        if document.strip():
            ids = list(tokenizer.encode(document.strip()).ids)
            documents.append(ids if begin is None or ids[:1] == [begin] else [begin, *ids])
    return from_documents(metadata, documents)


def from_documents(metadata: dict[str, Any], documents: Iterable[Sequence[int]]) -> Calibration:
    """Documents that are token ids already, cut at the model's context."""
    context, vocabulary = metadata.get("context"), metadata.get("vocab")
    kept = [tuple(document[:context]) for document in documents]
    kept = [document for document in kept if len(document) > 1]
    if not kept:
        raise InputError("the text has no token to predict: it needs a document of two tokens or more")
    for document in kept:
        for id in document:
            if id < 0 or (vocabulary is not None and id >= vocabulary):
                raise InputError(f"token {id} is out of range: the vocabulary has {vocabulary}")
    return Calibration(tuple(kept))


def read_tokenizer(metadata: dict[str, Any]) -> Any:
    """The tokenizer that a module names (package `tokenizers`); InputError where it names none that can be read."""
    path = metadata.get("tokenizer")
    if not path:
        raise InputError("the model has no tokenizer, so text cannot be used with it")
    from tokenizers import Tokenizer

    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # the package raises bare Exception
        raise InputError(f"{path} cannot be read as a tokenizer: {error}") from error
