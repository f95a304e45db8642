"""Passes that are nothing but rules."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from slmopt.ir.graph import Module
from slmopt.pipeline import Context, Pass
from slmopt.rewrite.driver import rewrite
from slmopt.rewrite.rules import Rule

__all__ = ["RewritePass"]


class RewritePass(Pass):
    """Base of passes that apply rules until none matches: `rules`, then those that plugins add to the pass."""

    rules: ClassVar[Sequence[Rule]] = ()
    takes_rules: ClassVar[bool] = True

    def run(self, module: Module, context: Context) -> dict[str, int]:
        return rewrite(module, (*self.rules, *context.rules(self.name)))
