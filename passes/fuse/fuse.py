"""The pass `fuse`: all fusions, in the order in which they help each other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from slmopt.ir.graph import Module
from slmopt.passes.fuse.act_quant import FuseActQuant
from slmopt.passes.fuse.epilogue import FuseEpilogue
from slmopt.passes.fuse.qkv import FuseQKV
from slmopt.pipeline import Context, Pass

__all__ = ["Fuse"]


@dataclass(frozen=True)
class Fuse(Pass):
    """fuse-epilogue, fuse-qkv and fuse-act-quant, in this order.

    Epilogues first: a linear that got an activation of its own is not merged with others that have none.
    """

    name: ClassVar[str] = "fuse"
    ensures: ClassVar[frozenset[str]] = frozenset({"fused"})
    follows: ClassVar[frozenset[str]] = frozenset({"raised", "quantized"})

    def run(self, module: Module, context: Context) -> dict[str, int]:
        changes: dict[str, int] = {}
        for part in (FuseEpilogue(), FuseQKV(), FuseActQuant()):
            for kind, count in part.run(module, context).items():
                changes[f"{part.name}: {kind}"] = count
        return changes
