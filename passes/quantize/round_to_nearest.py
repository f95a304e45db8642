"""The pass `quantize`: weights to 4 or 8 bits without looking at data."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from slmopt.declaration import option
from slmopt.errors import InputError
from slmopt.ir.graph import Module, Op, Weight
from slmopt.ir.types import QuantizedType
from slmopt.ir.weights import QuantizedTensor
from slmopt.passes.quantize.matrices import Matrix, float_matrices, set_weight
from slmopt.pipeline import Context, Contract, Lossy, Pass
from slmopt.vocabulary import output_linears, reads_ids

if TYPE_CHECKING:
    import torch

__all__ = ["Quantize"]


@dataclass(frozen=True)
class Quantize(Pass):
    """linear(x, w : f32) -> linear(x, round(w) : q4g32) {act = "q8"}; embedding tables likewise.

    Weights are rounded to nearest, with one float16 scale per `group` inputs (0: per row). A weight that several ops
    read, such as a tied embedding and head, is rounded once and stays shared; where an option excludes one of its
    users it stays as it is. Tables that are not indexed by token ids (learned positions) stay as they are.
    """

    name: ClassVar[str] = "quantize"
    contract: ClassVar[Contract] = Lossy()
    ensures: ClassVar[frozenset[str]] = frozenset({"quantized"})
    follows: ClassVar[frozenset[str]] = frozenset({"raised", "healed"})
    breaks: ClassVar[frozenset[str]] = frozenset({"fused"})

    bits: int = option(4, choices=(4, 8), help="of a weight")
    group: int = option(32, minimum=0, multiple_of=32, help="inputs that share a scale; 0: one scale per output")
    grid: str = option("symmetric", choices=("symmetric", "asymmetric"), help="symmetric: w = scale * code; "
                       "asymmetric: w = scale * code + minimum")  # fmt: skip
    head: bool = option(True, help="also the linear that gives the logits")
    embedding: bool = option(True, help="also the table of token embeddings")
    act: str = option("q8", choices=("q8", "none"), help="q8: linears read activations rounded to 8 bits per 32 "
                                                         "elements; none: they read float32")  # fmt: skip
    layers: str = option("", help="a regular expression; only weights in whose key it is found")
    search: bool = option(True, help="try several scales per group and keep the one of least squared error")

    def __post_init__(self) -> None:
        super().__post_init__()
        try:
            re.compile(self.layers)
        except re.error as error:
            raise InputError(f"quantize: layers {self.layers!r} is no regular expression: {error}") from error

    @property
    def type(self) -> QuantizedType:
        """The storage type weights get."""
        return QuantizedType(self.bits, self.group or None, self.grid == "symmetric")

    def run(self, module: Module, context: Context) -> dict[str, int]:
        heads = {op for graph in module.graphs.values() for op in output_linears(graph)}
        changes: dict[str, int] = {}
        for matrix in float_matrices(module):
            if not re.search(self.layers, matrix.key) or not all(self._allows(op, heads) for op in matrix.users):
                continue
            if not context.permits("round", matrix.users[0]):
                continue
            set_weight(matrix.users, self._derive(module, matrix))
            for op in matrix.users:
                if op.name == "linear" and self.act == "q8":
                    op.attributes["act"] = "q8"
                changes[op.name] = changes.get(op.name, 0) + 1
        return changes

    def _allows(self, op: Op, heads: set[Op]) -> bool:
        if op.name == "embedding":
            return self.embedding and reads_ids(op)
        return self.head or op not in heads

    def _derive(self, module: Module, matrix: Matrix) -> Weight:
        type = matrix.type.with_element(self.type)
        key = module.weights.fresh_key(f"{matrix.key}.{self.type}")
        how = "scale of least squared error" if self.search else "scale by range"
        description = f"round to nearest {self.type}, {how}"
        return Weight(
            module.weights.derive(key, (matrix.key,), type, description, _Rounding(matrix.key, self.type, self.search)),
            type,
        )


class _Rounding:
    """Rounds a weight when it is first asked for, and keeps the codes, packed: rounding costs more than reading."""

    takes_stored = True  # widened slab by slab

    def __init__(self, key: str, type: QuantizedType, search: bool) -> None:
        self.key, self.type, self.search = key, type, search
        self._packed: QuantizedTensor | None = None
        self._columns = 0

    def __call__(self, weight: torch.Tensor) -> QuantizedTensor:
        from slmopt.passes.quantize.rounding import pack_codes, round_to_nearest

        try:
            found = round_to_nearest(weight, self.type, self.search)
        except InputError as error:
            raise InputError(f"quantize: weight @{self.key}: {error}") from error
        self._packed, self._columns = pack_codes(found), weight.shape[1]
        return found

    def held(self) -> QuantizedTensor | None:
        """The codes, where they were computed before: the weight itself is not read again."""
        from slmopt.passes.quantize.rounding import unpack_codes

        return None if self._packed is None else unpack_codes(self._packed, self._columns)
