"""The pass `incrementalize`: decoding with state, derived from the graph of a whole sequence."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from slmopt.errors import InputError
from slmopt.ir.decoding import derive_step
from slmopt.ir.graph import Module
from slmopt.ir.ops.language import QUANTIZED_ROWS
from slmopt.ir.types import DType, Element
from slmopt.pipeline import Context, Pass

__all__ = ["Incrementalize"]

_ELEMENTS: dict[str, Element] = {"f32": DType.f32, "f16": DType.f16, "q8": QUANTIZED_ROWS}


@dataclass(frozen=True)
class Incrementalize(Pass):
    """@forward(ids[b, s]) -> @step(ids[b, t], position, state ...) -> (logits, state ...).

    Ops that work on each position alone are copied; an op that mixes positions is rewritten by the `step` rule of its
    spec, with a state of its own: attention keeps its keys and values. Running @step over the parts of a sequence
    gives what @forward gives for the whole, for every split. An op that mixes positions and has no rule is an
    UnsupportedError that names it. @forward stays as it is; a former @step is replaced.

    cache:  "f32", "f16" or "q8", the element type of cached keys and values. "q8" is q8g32: 8-bit codes and a scale for
            every 32 numbers of a head, as quantize_rows makes them; 56 % of the bytes of "f16"
    """

    name: ClassVar[str] = "incrementalize"
    ensures: ClassVar[frozenset[str]] = frozenset({"incremental"})
    follows: ClassVar[frozenset[str]] = frozenset({"raised"})

    cache: str = "f32"

    def __post_init__(self) -> None:
        if self.cache not in _ELEMENTS:
            raise InputError(f'incrementalize: cache must be "f32", "f16" or "q8", got {self.cache!r}')

    def run(self, module: Module, context: Context) -> dict[str, int]:
        sequence = str(module.metadata.get("sequence", "s"))
        step, changes = derive_step(module.graph("forward"), sequence, _ELEMENTS[self.cache])
        if step == module.graphs.get("step"):
            return {}
        module.graphs["step"] = step
        return changes or {"step": 1}  # of a model that looks at no other position, nothing is to be remembered
