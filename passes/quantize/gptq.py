"""The pass `gptq`: weights to few bits so that what they compute on text stays, not the weights themselves."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from slmopt.declaration import option
from slmopt.errors import InputError
from slmopt.ir.graph import Graph, Module, Op, Value, Weight
from slmopt.ir.ops.language import quantize_rows
from slmopt.ir.types import QuantizedType
from slmopt.ir.weights import QuantizedTensor
from slmopt.passes.quantize.matrices import Matrix, float_matrices, set_weight
from slmopt.pipeline import Context, Contract, Lossy, Pass
from slmopt.staged import StagedRun
from slmopt.vocabulary import output_linears, reads_ids

if TYPE_CHECKING:
    import torch

    from slmopt.calibrate import Calibration

__all__ = ["GPTQ"]

_PER_INPUT = 32  # tokens sampled for each input of the widest linear
_LEAST = 1024  # tokens sampled at least


@dataclass(frozen=True)
class GPTQ(Pass):
    """linear(x, w : f32) -> linear(x, q : q4g32a) {act = "q8"}, q chosen for q x to be near w x on text.

    Frantar et al. 2022, arXiv 2210.17323: the columns of a weight are rounded one after the other, each making up for
    the errors of those before it. Linears go in the order of the graph, and each sees inputs that the quantized ones
    before it computed. In memory at a time: one weight, the second moments of its inputs, and what later ops read of
    every document. Codes are computed when the pass runs, and kept.

    Looked at is the calibration text; where none is given, or with `sample`, text that the model samples itself, whole
    documents from its own distribution (Liu et al. 2023, arXiv 2305.17888).

    A weight that several linears read is rounded once, for the inputs of all of them; those of later ones are taken
    from the model as it was. So is a head that is tied to the embedding. A table that is only looked up is rounded to
    nearest. Tables that are not indexed by token ids (learned positions) stay as they are.
    """

    name: ClassVar[str] = "gptq"
    contract: ClassVar[Contract] = Lossy()
    ensures: ClassVar[frozenset[str]] = frozenset({"quantized"})
    follows: ClassVar[frozenset[str]] = frozenset({"raised", "healed"})
    breaks: ClassVar[frozenset[str]] = frozenset({"fused"})

    bits: int = option(4, choices=(3, 4, 8), help="of a weight; 8 bits are rounded to nearest, symmetric")
    group: int = option(32, minimum=0, multiple_of=32, help="inputs that share a scale; 0: one scale per output")
    grid: str = option("asymmetric", choices=("asymmetric", "symmetric"), help="asymmetric: w = scale * code + "
                       "minimum; symmetric: w = scale * code")  # fmt: skip
    head: int = option(8, choices=(0, 3, 4, 8), help="bits of the linear that gives the logits and of the table of "
                       "token embeddings; 0: they stay as they are")  # fmt: skip
    act: str = option("q8", choices=("q8", "none"), help="q8: linears read activations rounded to 8 bits per 32 "
                                                         "elements; none: they read float32")  # fmt: skip
    act_order: bool = option(False, help="round the columns of large inputs first, with scales chosen beforehand")
    damping: float = option(0.01, minimum=0.0, maximum=1.0, help="added to the second moments' diagonal, as a share of "
                                                                 "its mean")  # fmt: skip
    search: bool = option(True, help="try several scales per group and keep the one of least squared error")
    layers: str = option("", help="a regular expression; only weights in whose key it is found")
    tokens: int = option(0, minimum=0, help="of text that are looked at, at most; 0: all that is given, or sampled 32 "
                                            "for each input of the widest linear")  # fmt: skip
    sample: bool = option(False, help="look at text that the model samples itself also where a text is given")
    seed: int = option(0, minimum=0, help="of the text that is sampled")

    def __post_init__(self) -> None:
        super().__post_init__()
        try:
            re.compile(self.layers)
        except re.error as error:
            raise InputError(f"gptq: layers {self.layers!r} is no regular expression: {error}") from error

    def run(self, module: Module, context: Context) -> dict[str, int]:
        jobs = list(self._jobs(module, context))
        if not jobs:
            return {}
        documents = self._text(module, context, jobs).documents
        later = _later_moments(module, documents, jobs, self.act)
        inputs = _Inputs(module, documents, self.act)
        changes: dict[str, int] = {}
        for index, job in enumerate(jobs):
            context.report(f"gptq: @{job.matrix.key}", index / len(jobs))
            set_weight(job.matrix.users, _store(module, job, self._round(module, job, inputs, later)))
            for op in job.matrix.users:
                if op.name == "linear" and self.act == "q8":
                    op.attributes["act"] = "q8"
                changes[op.name] = changes.get(op.name, 0) + 1
        return changes

    def _jobs(self, module: Module, context: Context) -> Iterator[_Job]:
        """Weights and the types they get, in the order in which @forward first reads them."""
        heads = {op for graph in module.graphs.values() for op in output_linears(graph)}
        place = {op: index for index, op in enumerate(_live(module.graph("forward")))}
        jobs = []
        for matrix in float_matrices(module):
            type, readers = self._type(matrix, heads), [op for op in matrix.users if op in place]
            if type is not None and readers and re.search(self.layers, matrix.key):
                jobs.append(_Job(matrix, type, tuple(sorted(readers, key=place.__getitem__))))
        for job in sorted(jobs, key=lambda job: place[job.readers[0]]):
            if context.permits("round", job.matrix.users[0]):
                yield job

    def _type(self, matrix: Matrix, heads: set[Op]) -> QuantizedType | None:
        """The type that a weight gets; None where it stays as it is."""
        tables = [op for op in matrix.users if op.name == "embedding"]
        if not all(map(reads_ids, tables)):
            return None
        bits = self.head if tables or any(op in heads for op in matrix.users) else self.bits
        return QuantizedType(bits, self.group or None, bits == 8 or self.grid == "symmetric") if bits else None

    def _text(self, module: Module, context: Context, jobs: list[_Job]) -> Calibration:
        if context.calibration is not None and not self.sample:
            return context.calibration.head(self.tokens or context.calibration.tokens)
        from slmopt.sampled_text import sample_calibration

        widest = max(int(job.matrix.type.shape[1]) for job in jobs)  # type: ignore[arg-type]
        tokens = self.tokens or max(_LEAST, _PER_INPUT * widest)
        return sample_calibration(module, tokens, seed=self.seed, report=context.report)

    def _round(
        self, module: Module, job: _Job, inputs: _Inputs, later: Mapping[str, torch.Tensor]
    ) -> QuantizedTensor:  # fmt: skip
        from slmopt.passes.quantize.feedback import round_with_feedback
        from slmopt.passes.quantize.rounding import round_to_nearest

        weight = module.weights.float(job.matrix.key)
        try:
            if not job.is_fitted:
                return round_to_nearest(weight, job.type, self.search)
            parts = [later[job.matrix.key]] if job.matrix.key in later else []
            parts += [inputs.moments(op) for op in job.at_once]
            return round_with_feedback(
                weight, sum(parts[1:], parts[0]), job.type, damping=self.damping, by_activity=self.act_order,
                search=self.search,
            )  # fmt: skip
        except InputError as error:
            raise InputError(f"gptq: weight @{job.matrix.key}: {error}") from error


@dataclass(frozen=True)
class _Job:
    """A weight, the type it gets, and the live ops of @forward that read it, in order."""

    matrix: Matrix
    type: QuantizedType
    readers: tuple[Op, ...]

    @property
    def is_fitted(self) -> bool:
        """Whether it is rounded for its inputs: 8 bits, and a table that no linear reads, are rounded to nearest."""
        return self.type.bits < 8 and any(op.name == "linear" for op in self.readers)

    @property
    def at_once(self) -> tuple[Op, ...]:
        """The linears whose input is known when the first reader is reached."""
        first = self.readers[0]
        return tuple(op for op in self.readers if op.name == "linear" and op.operands[0] is first.operands[0])

    @property
    def later(self) -> tuple[Op, ...]:
        """The linears that come later."""
        return tuple(op for op in self.readers if op.name == "linear" and op not in self.at_once)


class _Inputs:
    """Second moments of what linears read, as the documents run through the module stage by stage."""

    def __init__(self, module: Module, documents: Sequence[Sequence[int]], act: str) -> None:
        self.stages, self.act = StagedRun(module, documents), act
        self._value: Value | None = None
        self._moments: torch.Tensor | None = None

    def moments(self, op: Op) -> torch.Tensor:
        """The sum of x x^T [k, k], float64, of the input that a linear multiplies; its other readers get the same."""
        import torch

        value = op.value(0)
        if self._moments is None or value is not self._value:
            self.stages.advance(op)
            width = int(value.shape[-1])  # type: ignore[arg-type]
            total = torch.zeros(width, width, dtype=torch.float64)
            for x in self.stages.values(value):
                rows = (quantize_rows(x) if self.act == "q8" else x).reshape(-1, width).double()
                total += rows.T @ rows
            self._value, self._moments = value, total
        return self._moments


def _later_moments(
    module: Module, documents: Sequence[Sequence[int]], jobs: Sequence[_Job], act: str
) -> dict[str, torch.Tensor]:
    """Of weights that several linears read, the moments of what the later ones read, in the module as it is."""
    keys = {op: job.matrix.key for job in jobs if job.is_fitted for op in job.later}
    found: dict[str, torch.Tensor] = {}
    if keys:
        inputs = _Inputs(module, documents, act)
        for op in (op for op in module.graph("forward").walk() if op in keys):
            moments = inputs.moments(op)
            found[keys[op]] = found[keys[op]] + moments if keys[op] in found else moments
    return found


def _live(graph: Graph) -> list[Op]:
    """The ops that an output depends on, in order."""
    alive: set[Op] = set()
    waiting = [value.op for value in graph.outputs]
    while waiting:
        op = waiting.pop()
        if op is not None and op not in alive:
            alive.add(op)
            waiting += [operand.op for operand in op.operands if isinstance(operand, Value)]
    return [op for op in graph.walk() if op in alive]


def _store(module: Module, job: _Job, found: QuantizedTensor) -> Weight:
    type = job.matrix.type.with_element(job.type)
    key = module.weights.fresh_key(f"{job.matrix.key}.{job.type}")
    how = "fitted to text" if job.is_fitted else "rounded to nearest"
    module.weights.derive(key, (job.matrix.key,), type, f"{job.type} {how}", _Codes(found))
    return Weight(key, type)


class _Codes:
    """Codes that were computed, kept packed: what they were computed from is gone."""

    takes_stored = True

    def __init__(self, found: QuantizedTensor) -> None:
        from slmopt.passes.quantize.rounding import pack_codes

        self._packed, self._columns = pack_codes(found), int(found.codes.shape[1])

    def held(self) -> QuantizedTensor:
        """The codes."""
        from slmopt.passes.quantize.rounding import unpack_codes

        return unpack_codes(self._packed, self._columns)

    def __call__(self, weight: torch.Tensor) -> QuantizedTensor:
        return self.held()
