"""What a frontend is: something that turns one kind of source into a Module."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from slmopt.ir.graph import Module

__all__ = ["Frontend"]


class Frontend(Protocol):
    """Loads one kind of source. Made without arguments."""

    summary: str

    def accepts(self, source: Any) -> bool:
        """Whether `source` is of this kind; cheap, and imports nothing heavy."""

    def load(self, source: Any, **options: Any) -> Module:
        """The module; InputError where the source is damaged."""
