"""From tokens to text as they come: whole characters only, stop strings held back until they cannot match."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tokenizers import Tokenizer

__all__ = ["Detokenizer", "cut_at_stop"]

_INCOMPLETE = "\ufffd"  # what a decoder makes of bytes that are no character, or not one yet


class Detokenizer:
    """The text of tokens that follow a prompt, piece by piece.

    A token is not a piece of text: it may hold half a character, and some decoders drop a space at the start. So each
    piece is the difference of two decodings that begin at the same token, kept back while it ends in an incomplete
    character. They begin with the tokens of the piece before, hence never inside a character.
    """

    def __init__(self, tokenizer: Tokenizer, prompt: Sequence[int] = ()) -> None:
        self._tokenizer = tokenizer
        self._ids = list(prompt)  # tokens of the piece before, then tokens whose text is not out
        self._read = len(self._ids)  # where the latter begin
        text = self._decode(self._ids)
        self._known = text.rstrip(_INCOMPLETE)  # text of the former
        self._whole = not text.endswith(_INCOMPLETE)  # a prompt may end inside a character

    def push(self, id: int) -> str:
        """The text that `id` completes; "" while a character is incomplete."""
        self._ids.append(id)
        text = self._decode(self._ids)
        if text.endswith(_INCOMPLETE) or len(text) <= len(self._known):
            return ""
        return self._advance(text)

    def flush(self) -> str:
        """The text still held back, with U+FFFD for what never became a character."""
        return self._advance(self._decode(self._ids)) if len(self._ids) > self._read else ""

    def _advance(self, text: str) -> str:
        piece = text[len(self._known) :]
        if self._whole:
            del self._ids[: self._read]
        self._read = len(self._ids)
        self._known = self._decode(self._ids)
        self._whole = True
        return piece

    def _decode(self, ids: Sequence[int]) -> str:
        return self._tokenizer.decode(ids, skip_special_tokens=True) if ids else ""


def cut_at_stop(pieces: Iterable[str], stops: Sequence[str]) -> Iterator[str]:
    """Passes text on up to the first stop string, which is left out; how the text is cut makes no difference.

    Of several stop strings the one that is complete first counts; of those complete at once, the longest.
    """
    pending = ""
    for piece in pieces:
        pending += piece
        found = [(pending.find(stop) + len(stop), pending.find(stop)) for stop in stops if stop in pending]
        if found:
            _, start = min(found)
            if start:
                yield pending[:start]
            return
        held = max((_overlap(pending, stop) for stop in stops), default=0)
        ready = pending[: len(pending) - held]
        if ready:
            yield ready
        pending = pending[len(ready) :]
    if pending:
        yield pending


def _overlap(text: str, stop: str) -> int:
    """The length of the longest end of `text` that begins `stop` and is not all of it."""
    return next((size for size in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:size])), 0)
