"""Passes and the pipeline that runs, verifies and measures them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar

from slmopt.ir.graph import Module

__all__ = ["Context", "Contract", "Exact", "Lossy", "Pass"]


@dataclass(frozen=True)
class Exact:
    """The pass keeps the numbers: max |difference of logits| at most `tolerance` times max |logit|."""

    tolerance: float = 1e-4


@dataclass(frozen=True)
class Lossy:
    """The pass changes the numbers; the recipe's budget says by how much it may."""


Contract = Exact | Lossy


@dataclass
class Context:
    """What a pass may ask for while it runs."""

    target: Any = None
    calibration: Any = None
    report: Callable[[str, float], None] = field(default=lambda what, share: None)


class Pass:
    """Base of passes. A pass is a frozen dataclass: its fields are its options, its docstring's first line the rewrite."""

    name: ClassVar[str]
    contract: ClassVar[Contract] = Exact()
    requires: ClassVar[frozenset[str]] = frozenset()
    ensures: ClassVar[frozenset[str]] = frozenset()

    def run(self, module: Module, context: Context) -> dict[str, int]:
        """Edit `module` in place; returns what changed, counted by kind ({}: nothing)."""
        raise NotImplementedError
