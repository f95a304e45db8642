"""The pass `tie-embeddings`: one matrix turns tokens into vectors and vectors into logits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from slmopt.declaration import option
from slmopt.errors import UnsupportedError
from slmopt.ir.graph import Module, Op, Weight
from slmopt.passes.share.sharing import mean_of, redirect
from slmopt.pipeline import Context, Contract, Lossy, Pass
from slmopt.vocabulary import output_linears, reads_ids

__all__ = ["TieEmbeddings"]

_WEIGHT = 1  # the operand of a linear and of an embedding that holds the matrix


@dataclass(frozen=True)
class TieEmbeddings(Pass):
    """embedding(ids, e) ... linear(x, h) -> embedding(ids, w) ... linear(x, w), where the linear gives the logits.

    Press and Wolf 2017, arXiv 1608.05859. The table is the one that token ids index, the head the linear that no other
    linear follows; both are found by structure. A model without one or the other, or in which they are one weight
    already, stays as it is. UnsupportedError where they cannot be one: another type, or several of either. By default
    the head is kept, which a matrix that is tied in training comes to resemble (section 5 there).
    """

    name: ClassVar[str] = "tie-embeddings"
    contract: ClassVar[Contract] = Lossy()
    follows: ClassVar[frozenset[str]] = frozenset({"raised"})
    idempotent: ClassVar[bool] = True

    keep: str = option("head", choices=("head", "embedding", "mean"), help="which of the two weights both become")

    def run(self, module: Module, context: Context) -> dict[str, int]:
        graph = module.graph("forward")
        tables = _weights([op for op in graph.walk() if op.name == "embedding" and reads_ids(op)])
        outputs = output_linears(graph)
        heads = _weights([op for op in graph.walk() if op in outputs])
        if not tables or not heads or tables.keys() & heads.keys():
            return {}
        table, head = _only(tables, "embeddings of token ids"), _only(heads, "linears that give logits")
        (embedding, first), (linear, second) = table, head
        if first.type != second.type:
            raise UnsupportedError(f"tie-embeddings: {embedding.describe()} reads @{first.key} : {first.type} and "
                                   f"{linear.describe()} reads @{second.key} : {second.type}: only weights of one type "
                                   "can be one")  # fmt: skip
        if not context.permits("tie", linear):
            return {}
        kept = {"head": second, "embedding": first}.get(self.keep) or mean_of(module, (first, second))
        return {"weight": redirect(module, {first.key: kept, second.key: kept})}


def _weights(ops: list[Op]) -> dict[str, tuple[Op, Weight]]:
    """The matrices that some ops read, each with the first op that does."""
    found: dict[str, tuple[Op, Weight]] = {}
    for op in ops:
        weight = op.operands[_WEIGHT]
        if isinstance(weight, Weight):
            found.setdefault(weight.key, (op, weight))
    return found


def _only(found: dict[str, tuple[Op, Weight]], what: str) -> tuple[Op, Weight]:
    if len(found) > 1:
        shown = ", ".join(f"{op.describe()} reads @{key}" for key, (op, _) in found.items())
        raise UnsupportedError(f"tie-embeddings: which weights are to be one? There are several {what}: {shown}")
    return next(iter(found.values()))
