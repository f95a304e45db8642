"""Random ops over f32 values whose leading axes are [b, s]: each step of a random module."""

from __future__ import annotations

from collections.abc import Callable

from slmopt.ir.dims import Dim, product
from slmopt.ir.graph import Attribute, Graph, Operand, Value, Weight
from slmopt.ir.ops.language import ACTIVATIONS
from slmopt.ir.types import tensor
from slmopt.testing.choices import Choices

__all__ = ["OP_BYTES", "Builder"]

OP_BYTES = 24
_WIDTHS = (4, 2, 1, 3, 5, 7, 8)
_UNARY = ("neg", "silu", "tanh", "relu", "sigmoid", "abs", "sin", "softplus", "erf", "floor")
_BINARY = ("add", "mul", "sub", "maximum", "minimum")
_STORED = ("f32", "f32", "f32", "f16", "bf16", "q4g32", "q8c", "q4g32a", "q8g64")
_BEYOND = (float("inf"), float("-inf"), 1e308, -(2**60), 2**60, 5e-324)


class Builder:
    """Adds random ops to the graphs of one module, whose weights several ops may read.

    `executable`: only what can be computed with. `prefix`: what keys of weights begin with.
    """

    def __init__(self, executable: bool, prefix: str) -> None:
        self.executable, self.prefix = executable, prefix
        self._weights: list[Weight] = []
        self._kinds: tuple[Callable[[], Value], ...] = (
            self._unary, self._linear, self._binary, self._gelu, self._norm, self._constant, self._reshape,
            self._permute, self._slices, self._reduce, self._softmax, self._matmul, self._glu, self._choice,
            self._broadcast, self._attention, self._linear, self._binary, self._neutral, self._mean, self._positions,
            self._condition, self._casts, self._stored, self._powers, self._rows,
        )  # fmt: skip

    def add_op(self, choices: Choices, graph: Graph, values: list[Value]) -> None:
        """One more value [b, s, k], made from some of `values`, among which it is afterwards."""
        self.choices, self.graph, self.values = choices, graph, values
        self._hint, self._location = choices.text(4), choices.pick("", "layers.0.mlp", "layers.1.mlp", choices.text(8))
        kind = choices.below(len(self._kinds))
        self.x = values[-1 - choices.below(len(values))]
        values.append(self._kinds[kind]())

    def _add(self, name: str, *operands: Operand, **attributes: Attribute) -> Value:
        return self.graph.add(name, operands, attributes, hint=self._hint or name, location=self._location).result

    def _weight(self, *shape: Dim, stored: bool = False) -> Weight:
        """A new weight, or one that has the shape already."""
        fitting = [w for w in self._weights if w.type.shape == shape and (stored or str(w.type.element) == "f32")]
        if fitting and self.choices.seldom(2):
            return fitting[self.choices.below(len(fitting))]
        key = f"{self.prefix}{self.choices.text(4)}{len(self._weights)}"
        element = self.choices.pick(*_STORED) if stored else "f32"
        self._weights.append(Weight(key, tensor(element, *shape)))
        return self._weights[-1]

    def _other(self) -> Value:
        """A value of the shape of x, x itself where there is no other."""
        fitting = [value for value in self.values if value.type == self.x.type]
        return fitting[self.choices.below(len(fitting))]

    def _number(self) -> Value:
        numbers = (2.0, 1.0, 0.0, -1.5, 0.5, 1e-3, 3, 0) if self.executable else (2.0, -0.0, 1, *_BEYOND)
        return self._add("constant", value=self.choices.pick(*numbers), element="f32")

    @property
    def _width(self) -> int:
        return int(self.x.shape[-1])  # type: ignore[arg-type]

    # --- kinds of ops ------------------------------------------------------------------------------------------------
    def _unary(self) -> Value:
        return self._add(self.choices.pick(*_UNARY), self.x)

    def _gelu(self) -> Value:
        return self._add("gelu", self.x, approximate=self.choices.pick(False, True))

    def _linear(self) -> Value:
        width = self.choices.pick(*_WIDTHS)
        weight = self._weight(width, self._width, stored=True)
        operands: list[Operand] = [self.x, weight, None, None]
        if self.choices.pick(False, True):
            operands[2] = self._weight(width)
        if self.choices.seldom(3) and width == self._width:
            operands[3] = self._other()
        keep = self.choices.pick(0, 1, 2)
        operands = [o for i, o in enumerate(operands) if i < 2 + keep or any(operands[i:])]
        activation = self.choices.pick(None, None, None, *ACTIVATIONS)
        act = self.choices.pick(None, None, None, None, "q8")
        return self._add("linear", *operands, activation=activation, act=act)

    def _binary(self) -> Value:
        left, right = self.x, self._other()
        name = self.choices.pick(*_BINARY)
        return self._add(name, *((left, right) if self.choices.pick(True, False) else (right, left)))

    def _norm(self) -> Value:
        more: list[Operand] = [self._weight(self._width)] if self.choices.pick(True, False) else []
        name = self.choices.pick("rms_norm", "layer_norm")
        if name == "layer_norm" and self.choices.pick(False, True):
            more = [*(more or [None]), self._weight(self._width)]
        elif not more and self.choices.pick(False, True):
            more = [None]
        eps = self.choices.pick(1e-5, 0.1, 1e-12) if self.executable else self.choices.pick(0.0, -1, *_BEYOND)
        return self._add(name, self.x, *more, eps=eps)

    def _constant(self) -> Value:
        name = self.choices.pick("mul", "add", "sub", "maximum", "mul")
        pair = (self.x, self._number())
        return self._add(name, *(pair if self.choices.pick(True, False) else pair[::-1]))

    def _reshape(self) -> Value:
        b, s, k = self.x.shape
        shape = self.choices.pick((product((b, s)), k), (b, s, 1, k), (b, s, k, 1), (1, b, s, k))
        flat = self._add("reshape", self.x, shape=shape)
        if self.choices.pick(True, False):
            flat = self._add(self.choices.pick(*_UNARY), flat)
        return self._add("reshape", flat, shape=self.x.shape)

    def _permute(self) -> Value:
        axes, back = self.choices.pick(((2, 0, 1), (1, 2, 0)), ((1, 0, 2), (1, 0, 2)), ((0, 2, 1), (0, 2, 1)))
        turned = self._add("permute", self.x, axes=axes)
        if self.choices.pick(False, True):
            turned = self._add(self.choices.pick(*_UNARY), turned)
        return self._add("permute", turned, axes=back)

    def _slices(self) -> Value:
        axis, middle = self.choices.pick(2, -1), self.choices.below(self._width + 1)
        step = self.choices.pick(1, 1, 2)
        first = self._add("slice", self.x, axis=axis, start=0, stop=middle, step=step)
        second = self._add("slice", self.x, axis=axis, start=middle, stop=self.choices.pick(None, self._width))
        parts = (first, second) if self.choices.pick(True, False) else (second, first)
        return self._add("concat", *parts, axis=axis)

    def _reduce(self) -> Value:
        name, axis = self.choices.pick("mean", "sum", "amax"), self.choices.pick(2, -1, 1)
        reduced = self._add(name, self.x, axis=axis, keep=True)
        return self._add(self.choices.pick("sub", "mul", "add"), self.x, reduced)

    def _softmax(self) -> Value:
        return self._add(self.choices.pick("softmax", "cumsum", "softmax"), self.x, axis=self.choices.pick(-1, 2, 1))

    def _matmul(self) -> Value:
        width = self.choices.pick(*_WIDTHS)
        if self.choices.pick(True, False):
            return self._add("matmul", self.x, self._weight(self._width, width))
        turned = self._add("permute", self._weight(width, self._width), axes=(1, 0))
        return self._add("matmul", self.x, turned)

    def _glu(self) -> Value:
        return self._add("glu", self.x, self._other(), activation=self.choices.pick("silu", *ACTIVATIONS))

    def _choice(self) -> Value:
        compared = self._add(self.choices.pick("gt", "le"), self.x, self._number())
        return self._add("where", compared, self.x, self._other())

    def _broadcast(self) -> Value:
        """x with a row of numbers, stored, counted or filled, that is repeated."""
        kind = self.choices.below(4)
        row: Operand = self._weight(self._width)
        if kind == 1:
            row = self._add("arange", start=self.choices.pick(0, 1), stop=self._width + 1, element="f32")
            row = self._add("slice", row, axis=0, start=0, stop=self._width)
        elif kind == 2:
            row = self._add("full", shape=(self._width,), value=self.choices.pick(1.0, 0.5), element="f32")
        elif kind == 3:
            row = self._add("expand", self._add("reshape", row, shape=(1, 1, self._width)), shape=self.x.shape)
        return self._add(self.choices.pick("add", "mul"), self.x, row)

    def _neutral(self) -> Value:
        """x with a number that changes nothing, or on the side where it does."""
        name, value = self.choices.pick(("mul", 1.0), ("add", 0.0), ("sub", 0.0), ("div", 1.0), ("pow", 1.0))
        number = self._add("constant", value=value, element="f32")
        if self.choices.pick(False, True):
            number = self._add("expand", number, shape=self.choices.pick((1,), (1, 1, 1), self.x.shape))
        swapped = self.choices.seldom() and name != "pow"
        return self._add(name, *((self.x, number) if not swapped or name == "div" else (number, self.x)))

    def _mean(self) -> Value:
        """A mean that is written as a sum, over the right number of elements or a wrong one."""
        axis, count = self.choices.pick(2, -1), self.choices.pick(self._width, self._width, self._width + 1)
        total = self._add("sum", self.x, axis=axis, keep=True)
        name = self.choices.pick("div", "mul")
        number = self._add("constant", value=float(count) if name == "div" else 1.0 / count, element="f32")
        return self._add("add", self.x, self._add(name, total, number))

    def _positions(self) -> Value:
        """x with numbers that count positions, made in one of many ways, looked up in a table or taken as they are."""
        sequence, start = self.x.shape[1], self.choices.pick(0, 0, 1)
        element = self.choices.pick("i64", "f32")
        counted = self._add("arange", start=start, stop=sequence + start, element=element)
        if self.choices.pick(False, True):
            more = self._add("constant", value=self.choices.pick(1, 0, 3), element=element)
            counted = self._add(self.choices.pick("add", "mul"), counted, more)
        if self.choices.seldom():
            ones = self._add("full", shape=(sequence,), value=1, element=element)
            one = self._add("constant", value=1, element=element)
            counted = self._add("sub", self._add("cumsum", ones, axis=0), one)
        if element == "i64" and self.choices.pick(False, True):
            table = self._weight(64, self._width)
            low = self._add("minimum", counted, self._add("constant", value=63, element="i64"))
            return self._add("add", self.x, self._add("embedding", low, table))
        if element == "i64":
            counted = self._add("cast", counted, element="f32")
        return self._add("add", self.x, self._add("reshape", counted, shape=(sequence, 1)))

    def _condition(self) -> Value:
        """x where a condition on positions holds, that is always so or not."""
        sequence = self.x.shape[1]
        counted = self._add("arange", start=self.choices.pick(0, 1), stop=sequence + 1, element="i64")
        counted = self._add("slice", counted, axis=0, start=0, stop=sequence)
        limit = self._add("constant", value=self.choices.pick(0, 1, 3), element="i64")
        holds = self._add(self.choices.pick("ge", "lt", "eq", "le"), counted, limit)
        if self.choices.seldom(3):
            holds = self._add("logical_or", holds, self._add("eq", counted, counted))
        column = self._add("reshape", holds, shape=(sequence, 1))
        return self._add("where", column, self.x, self._add("neg", self.x))

    def _casts(self) -> Value:
        """Whole numbers near x, through other element types."""
        found = self._add("minimum", self._add("floor", self.x), self._add("constant", value=9.0, element="f32"))
        found = self._add("maximum", found, self._add("constant", value=-9.0, element="f32"))
        for element in (self.choices.pick("f64", "i64", "f16"), self.choices.pick("f32", "i32", "f64")):
            found = self._add("cast", found, element=element)
        return self._add("cast", found, element="f32")

    def _stored(self) -> Value:
        """x with what is computed from weights alone."""
        row: Operand = self._weight(self._width)
        for _ in range(self.choices.pick(1, 2)):
            other: Operand = self._weight(self._width) if self.choices.pick(True, False) else self._number()
            row = self._add(self.choices.pick("add", "mul", "sub"), row, other)
        if self.choices.pick(False, True):
            row = self._add(self.choices.pick("exp", "tanh", "neg", "sigmoid"), row)
        return self._add(self.choices.pick("add", "mul"), self.x, row)

    def _powers(self) -> Value:
        """Numbers that multiply, one after the other, as scores and embeddings are scaled."""
        found = self.x
        for _ in range(self.choices.pick(2, 1, 3)):
            number = self._add("constant", value=self.choices.pick(2.0, 0.5, -3.0, 1), element="f32")
            found = self._add(self.choices.pick("mul", "mul", "div"), found, number)
        return found

    def _rows(self) -> Value:
        """x with its leading axes merged, through ops that do not care, with others beside it."""
        b, s, k = self.x.shape
        flat = self._add("reshape", self.x, shape=(product((b, s)), k))
        side = self._add("reshape", self._other(), shape=(product((b, s)), k))
        for _ in range(self.choices.pick(1, 2, 3)):
            kind = self.choices.below(4)
            if kind == 0:
                flat = self._add("linear", flat, self._weight(k, k), None, self.choices.pick(None, side))
            elif kind == 1:
                flat = self._add(self.choices.pick("add", "mul"), flat, self.choices.pick(side, flat))
            elif kind == 2:
                flat = self._add("rms_norm", flat, self._weight(k), eps=0.1)
            else:
                flat = self._add("softmax", flat, axis=self.choices.pick(1, -1))
        return self._add("reshape", flat, shape=(b, s, k))

    def _attention(self) -> Value:
        b, s, k = self.x.shape
        parts = [self._add("reshape", value, shape=(b, 1, s, k)) for value in (self.x, self._other(), self._other())]
        found = self._add(
            "attention", *parts, scale=self.choices.pick(0.5, 1.0), mask=self.choices.pick("causal", "full"),
            window=self.choices.pick(None, None, 2), softcap=self.choices.pick(None, None, 3.0),
        )  # fmt: skip
        return self._add("reshape", found, shape=self.x.shape)
