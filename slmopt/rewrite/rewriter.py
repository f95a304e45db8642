"""The rewriter: what a rule builds with."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

from slmopt.ir.cursor import Cursor
from slmopt.ir.graph import Graph, Module, Op, Value, Weight
from slmopt.ir.types import TensorType

__all__ = ["Rewriter", "renamed"]


class Rewriter(Cursor):
    """A cursor before the matched op (`root`): what it adds takes the op's place in the source model, and its name."""

    def __init__(self, module: Module, graph: Graph, root: Op) -> None:
        super().__init__(graph, before=root)
        self.module, self.root = module, root

    def derive(
        self, sources: Weight | Sequence[Weight], what: str, compute: Callable[..., Any], *,
        type: TensorType | None = None, suffix: str = "",
    ) -> Weight | None:  # fmt: skip
        """`module.derive`; None where the module has the text of a source but not its numbers."""
        given = [sources] if isinstance(sources, Weight) else list(sources)
        if any(source.key not in self.module.weights for source in given):
            return None
        return self.module.derive(given, what, compute, type=type, suffix=suffix)

    def _hint(self, name: str) -> str:
        return renamed(self.root.results[0], name)


def renamed(old: Value, name: str) -> str:
    """The name of a value, as it would be had op `name` made it: `attn_add_2` -> `attn_rope`."""
    made_by = old.op.name if old.op is not None else ""
    return re.sub(rf"(?<![a-z]){made_by}(_\d+)*$", name, old.name)
