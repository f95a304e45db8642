"""A module whose logits are the results of many ops side by side: compiled, and read by the interpreter."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

import slmopt
from slmopt.interpreter import forward
from slmopt.ir import Graph, Module, Value, Weight, tensor
from slmopt.ir.graph import Operand
from slmopt.ir.torch_types import torch_dtype
from slmopt.ir.types import DType, Element, TensorType
from slmopt.ir.weights import QuantizedTensor, WeightSource
from slmopt.runtime import LanguageModel

__all__ = ["INTEGERS", "NORMALS", "ROWS", "UNUSUAL", "WIDTH", "CompiledOps", "OpModule", "Result"]

WIDTH = 77  # columns of the table, no multiple of anything a kernel is blocked by
CONTEXT = 40
VOCABULARY = 16384  # rows of the table, room for the columns of all results
INTEGERS, NORMALS, UNUSUAL = range(24), range(24, 56), range(56, 64)  # rows of the table, see `_table_rows`
ROWS = len(INTEGERS) + len(NORMALS) + len(UNUSUAL)

Size = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]  # (x [t, WIDTH], expected [t, w]) -> [t, w] or [t, 1]


@dataclass(frozen=True)
class Result:
    """Columns `start`..`stop` of the logits, and how near the interpreter they must be.

    |found - expected| <= error * size; bit by bit where all tokens are INTEGERS and `exact`, everywhere where the
    error is 0. `against` names the result whose numbers are expected instead of this one's.
    """

    name: str
    start: int
    stop: int
    error: float
    size: Size
    exact: bool
    against: str | None


def _table_rows(random: np.random.Generator) -> np.ndarray:
    """The inputs, f32[ROWS, WIDTH].

    INTEGERS: whole numbers times one power of two a row, at most 15 but for a 127 that begins every group of 32, so
    that the scale of 8-bit rows is that power of two, and sums are exact in any order. UNUSUAL: zeros, small, large,
    uneven.
    """
    whole = random.integers(-15, 16, (len(INTEGERS), WIDTH))
    whole[:, ::32] = random.choice([-127, 127], whole[:, ::32].shape)
    whole[0] = 127
    powers = 2.0 ** random.integers(-2, 3, (len(INTEGERS), 1))
    normals = random.normal(size=(len(NORMALS), WIDTH))
    unusual = random.normal(size=(len(UNUSUAL), WIDTH))
    unusual[0] = 0
    unusual[1] = 1
    unusual[2, :] = np.arange(WIDTH) == WIDTH - 1
    unusual[3] *= 1e-12
    unusual[4] *= 1e12
    unusual[5, :32] = 0
    unusual[6] = np.where(np.arange(WIDTH) % 2, 1000, -1000)
    unusual[7] += 1000
    return np.concatenate([whole * powers, normals, unusual]).astype(np.float32)


def _largest(x: torch.Tensor, expected: torch.Tensor) -> torch.Tensor:
    """The largest number of each row."""
    return expected.abs().amax(-1, keepdim=True)


class OpModule:
    """Builds the module: `add` ops on `x`, f32[b, s, WIDTH], rows of the table by id; `show` what they give."""

    def __init__(self, seed: int) -> None:
        self.random = np.random.default_rng(seed)
        self.graph = Graph("forward")
        self.ids = self.graph.add_input("ids", tensor("i64", "b", "s"))
        self.module = Module("ops", [self.graph], metadata={"batch": "b", "context": CONTEXT, "sequence": "s"})
        self.results: list[Result] = []
        self._shown: list[Value] = []
        self._rows = _table_rows(self.random)
        self._table = Weight("table", tensor("f32", VOCABULARY, WIDTH))
        self.x = self.add("embedding", [self.ids, self._table])

    def add(self, name: str, operands: Sequence[Operand], **attributes: Any) -> Value:
        """The result of an op."""
        return self.graph.add(name, operands, attributes).result

    def part(self, start: int, width: int) -> Value:
        """Columns of x."""
        return self.add("slice", [self.x], axis=-1, start=start, stop=start + width)

    def show(
        self, name: str, value: Value, *, error: float, exact: bool = False, size: Size = _largest,
        against: str | None = None,
    ) -> None:  # fmt: skip
        """Compare f32[b, s, w]; see Result."""
        width = value.shape[-1]
        assert isinstance(width, int)
        start = self.results[-1].stop if self.results else 0
        self.results.append(Result(name, start, start + width, error, size, exact, against))
        self._shown.append(value)

    def weight(self, values: torch.Tensor | QuantizedTensor, element: Element = DType.f32) -> Weight:
        """A weight of a type."""
        stored = values if isinstance(values, QuantizedTensor) else values.to(torch_dtype(DType(str(element))))
        shape = values.codes.shape if isinstance(values, QuantizedTensor) else values.shape
        key, type = f"w{len(list(self.module.weights))}", TensorType(element, tuple(shape))
        self.module.weights.add(key, WeightSource(type, "made by a test", lambda: stored))
        return Weight(key, type)

    def numbers(self, *shape: int) -> torch.Tensor:
        """Normal numbers."""
        return torch.from_numpy(self.random.normal(size=shape).astype(np.float32))

    def whole(self, most: int, *shape: int) -> torch.Tensor:
        """Whole numbers from -most to most."""
        return torch.from_numpy(self.random.integers(-most, most + 1, shape).astype(np.float32))

    def matrix(self, element: Element, rows: int, columns: int, *, exact: bool) -> torch.Tensor | QuantizedTensor:
        """Weights [rows, columns] of a type; `exact`: whole numbers, or codes with scales that are powers of two."""
        if isinstance(element, DType):
            return self.whole(8, rows, columns) if exact else self.numbers(rows, columns)
        half = 1 << (element.bits - 1)
        low, kind = (-half, torch.int8) if element.symmetric else (0, torch.uint8)
        codes = torch.from_numpy(self.random.integers(low, low + 2 * half, (rows, columns))).to(kind)
        codes[0], codes[-1] = low, low + 2 * half - 1
        shape = (rows, element.groups(columns))
        scales = 2.0 ** (self.whole(1, *shape) - 1) if exact else self.numbers(*shape).abs() / half
        minimum = None if element.symmetric else self.whole(8, *shape) if exact else self.numbers(*shape)
        return QuantizedTensor(element, codes, scales.half(), None if minimum is None else minimum.half())

    def finish(self) -> None:
        """Give the module its logits, @forward, and the table its rows."""
        total = self.results[-1].stop
        self.graph.set_outputs([self.add("concat", self._shown, axis=-1)])
        self.module.metadata["vocab"] = total
        rows = np.zeros((VOCABULARY, WIDTH), np.float32)
        rows[:ROWS] = self._rows
        self.module.weights.add_tensor("table", torch.from_numpy(rows))

    def compile(self, isa: str, directory: Path, cache: str = "f32", backend: str = "cpu") -> Path:
        """The artifact for an instruction set."""
        passes = [f"incrementalize{{cache={cache}}}"]
        target = f"{backend}:isa={isa},context={CONTEXT}"
        return slmopt.compile(self.module, target, directory / isa, recipe=passes, verify=False)

    def check(self, found: np.ndarray, ids: Sequence[int]) -> None:
        """AssertionError where logits [len(ids), vocab] are further from the interpreter's than they may be."""
        with torch.no_grad():
            expected = forward(self.module, torch.tensor([list(ids)]))[0]
        x = torch.from_numpy(self._rows[list(ids)])
        whole = max(ids) in INTEGERS
        columns = {result.name: slice(result.start, result.stop) for result in self.results}
        for result in self.results:
            own, other = found[:, columns[result.name]], expected[:, columns[result.against or result.name]]
            if result.error == 0 or (result.exact and whole):
                np.testing.assert_array_equal(own, other.numpy(), err_msg=result.name)
            allowed = (result.error * result.size(x, other)).numpy()
            wrong = ~(np.abs(own - other.numpy()) <= allowed)  # NaN is wrong
            assert not wrong.any(), _describe(result, own, other.numpy(), allowed, wrong)


def _describe(
    result: Result, found: np.ndarray, expected: np.ndarray, allowed: np.ndarray, wrong: np.ndarray
) -> str:
    row, column = map(int, np.argwhere(wrong)[0])
    most = np.broadcast_to(allowed, wrong.shape)[row, column]
    return (f"{result.name}: {wrong.sum()} of {wrong.size} numbers are wrong; the first, of token {row}, column "
            f"{column}, is {found[row, column]}, expected {expected[row, column]} to {most}")  # fmt: skip


@dataclass(frozen=True)
class CompiledOps:
    """A module of ops and what was compiled from it."""

    ops: OpModule
    model: LanguageModel
