"""@forward over documents stage by stage: what has run may be rewritten before what follows runs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from slmopt.errors import UnsupportedError
from slmopt.interpreter import run
from slmopt.ir.graph import Graph, Module, Op, Value
from slmopt.ir.types import DType

if TYPE_CHECKING:
    import torch

__all__ = ["StagedRun"]


class StagedRun:
    """The values that later ops read, of every document, after the ops so far; each weight is loaded as it is read.

    `advance(op)` runs what stands before an op, with the weights that its ops name by then: a pass that changes the
    weights of that op then, and goes on, sees how later ops fare on what it made of earlier ones. Each op runs once.
    Memory: the values alive between two ops, of all documents. UnsupportedError where @forward does not take token ids.
    """

    def __init__(self, module: Module, documents: Sequence[Sequence[int]]) -> None:
        import torch

        self.module, self.graph = module, module.graph("forward")
        ids = self.graph.inputs[0].type if len(self.graph.inputs) == 1 else None
        if ids is None or ids.element != DType.i64 or ids.rank != 2:
            raise UnsupportedError(f"@{module.name} reads no text: @forward must be (ids: i64[b, s]) -> ...")
        self.ops = list(self.graph.walk())
        self.place = {op: index for index, op in enumerate(self.ops)}
        self.next = 0
        self._last = {id(value): max((self.place[user] for user in value.users), default=-1)
                      for value in self.graph.values()}  # fmt: skip
        self._texts = [torch.tensor([document]) for document in documents]
        self._values: list[dict[int, torch.Tensor]] = [{id(self.graph.inputs[0]): text} for text in self._texts]

    def advance(self, stop: Op) -> None:
        """Run every document up to an op, which does not run yet; it must not have run."""
        import torch

        end = self.place[stop]
        part = self.ops[self.next : end]
        inside = {id(value) for op in part for value in op.results}
        reads = {id(o): o for op in part for o in op.operands if isinstance(o, Value) and id(o) not in inside}
        gives = [value for op in part for value in op.results if self._last[id(value)] >= end]
        stage = _stage(self.graph.inputs[0], list(reads.values()), part, gives)
        for index, values in enumerate(self._values):
            with torch.no_grad():
                found = run(self.module, stage, [self._texts[index], *(values[key] for key in reads)]) if gives else []
            kept = {key: value for key, value in values.items() if self._last[key] >= end}
            kept.update((id(value), tensor) for value, tensor in zip(gives, found, strict=True))
            self._values[index] = kept
        self.next = end

    def values(self, value: Value) -> Iterator[torch.Tensor]:
        """A value that has been computed and is still to be read, document by document."""
        return (values[id(value)] for values in self._values)


def _stage(ids: Value, reads: Sequence[Value], part: Sequence[Op], gives: Sequence[Value]) -> Graph:
    """The graph @stage(ids, values that are read) -> values that are given; ids tell the sizes."""
    graph = Graph("stage")
    graph.add_input("stage_ids", ids.type)
    mapping = {id(value): graph.add_input(value.name, value.type) for value in reads}
    for op in part:
        operands = [mapping[id(o)] if isinstance(o, Value) else o for o in op.operands]
        copied = graph.add(
            op.name, operands, op.attributes, location=op.location, hint=[r.name for r in op.results],
            types=[r.type for r in op.results],
        )  # fmt: skip
        mapping.update({id(old): new for old, new in zip(op.results, copied.results, strict=True)})
    graph.set_outputs(mapping[id(value)] for value in gives)
    return graph
