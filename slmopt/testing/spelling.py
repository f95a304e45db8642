"""Language-model parts as ops of a graph: raised, or spelled out in the primitives that frontends emit."""

from __future__ import annotations

import math
from collections.abc import Sequence

from slmopt.ir.dims import Dim, product
from slmopt.ir.graph import Attribute, Graph, Operand, Value, Weight
from slmopt.ir.types import tensor

__all__ = ["Speller"]


class Speller:
    """Adds parts of a language model to a graph. `raised`: as one op each; else spelled as `variety` picks, in turn.

    `element` is how matrices are stored, `act` the attribute of every linear.
    """

    def __init__(
        self, graph: Graph, *, raised: bool, variety: int, element: str = "f32", act: str | None = None
    ) -> None:
        self.graph, self.raised, self.element, self.act = graph, raised, element, act
        self.location, self._turn = "", variety

    def add(self, name: str, *operands: Operand, **attributes: Attribute) -> Value:
        """One op at the present location."""
        place = self.location.rpartition("layers.")[2]
        return self.graph.add(
            name, operands, attributes, hint=place.replace(".", "_") or name, location=self.location
        ).result

    def weight(self, key: str, *shape: Dim, element: str = "f32") -> Weight:
        """A weight of the module."""
        return Weight(key, tensor(element, *shape))

    def number(self, value: float) -> Value:
        """One number."""
        return self.add("constant", value=value, element="f32")

    def _spelling(self, count: int) -> int:
        """Which of `count` ways to spell what comes next; 0 is the op itself."""
        if self.raised:
            return 0
        self._turn += 1
        return self._turn % count

    # --- linear ------------------------------------------------------------------------------------------------------
    def linear(self, x: Value, key: str, outputs: int, *, bias: bool = False, stored: bool = False) -> Value:
        """x W^T + bias. `stored`: the matrix is W itself, as something else reads it too."""
        spelling = self._spelling(2 if stored else 3) if self.element == "f32" else 0
        inputs = x.shape[-1]
        added = self.weight(f"{key}.bias", outputs) if bias else None
        if spelling == 0:
            matrix = self.weight(f"{key}.weight", outputs, inputs, element=self.element)
            return self.add("linear", x, matrix, *([added] if bias else []), act=self.act)
        if spelling == 1:
            turned = self.add("permute", self.weight(f"{key}.weight", outputs, inputs), axes=(1, 0))
            found = self.add("matmul", x, turned)
            return found if added is None else self.add("add", found, added)
        rows = self.add("reshape", x, shape=(product(x.shape[:-1]), inputs))
        found = self.add("matmul", rows, self.weight(f"{key}.columns", inputs, outputs))
        if added is not None:
            found = self.add("add", found, added)
        return self.add("reshape", found, shape=(*x.shape[:-1], outputs))

    # --- norms -------------------------------------------------------------------------------------------------------
    def norm(self, x: Value, kind: str, key: str, eps: float, *, weight: bool = True, bias: bool = False) -> Value:
        """rms_norm or layer_norm over the last axis."""
        gain = self.weight(f"{key}.weight", x.shape[-1]) if weight else None
        shift = self.weight(f"{key}.bias", x.shape[-1]) if bias else None
        spelling = self._spelling(4)
        if spelling == 0:
            operands = (x, gain, shift) if bias else (x, gain) if weight else (x,)
            return self.add(kind, *operands, eps=eps)
        centred = x if kind == "rms_norm" else self.add("sub", x, self.add("mean", x, axis=-1))
        found = self._normalized(centred, eps, spelling)
        if gain is not None:
            found = self.add("mul", gain, found) if spelling == 1 else self.add("mul", found, gain)
        return found if shift is None else self.add("add", found, shift)

    def _normalized(self, x: Value, eps: float, spelling: int) -> Value:
        squared = self.add("mul", x, x) if spelling == 2 else self.add("pow", x, self.number(2.0))
        variance = self.add("add", self.add("mean", squared, axis=x.type.rank - 1), self.number(eps))
        if spelling == 1:
            return self.add("mul", x, self.add("rsqrt", variance))
        if spelling == 2:
            return self.add("div", x, self.add("sqrt", variance))
        return self.add("mul", x, self.add("pow", variance, self.number(-0.5)))

    # --- activations -------------------------------------------------------------------------------------------------
    def activation(self, x: Value, name: str) -> Value:
        """silu, gelu, gelu_tanh or relu."""
        if name == "gelu_tanh":
            return self._gelu_tanh(x) if self._spelling(2) else self.add("gelu", x, approximate=True)
        if self._spelling(2) == 0:
            return self.add(name, x)
        if name == "gelu":
            error = self.add("erf", self.add("div", x, self.number(math.sqrt(2))))
            return self.add("mul", self.add("mul", x, self.number(0.5)), self.add("add", error, self.number(1.0)))
        if name == "relu":
            return self.add("maximum", x, self.number(0.0))
        return self.add("mul", x, self.add("sigmoid", x))

    def _gelu_tanh(self, x: Value) -> Value:
        cube = self.add("mul", self.add("pow", x, self.number(3.0)), self.number(0.044715))
        inner = self.add("mul", self.add("add", x, cube), self.number(math.sqrt(2 / math.pi)))
        outer = self.add("add", self.add("tanh", inner), self.number(1.0))
        return self.add("mul", self.add("mul", x, self.number(0.5)), outer)

    def gated(self, gate: Value, up: Value, activation: str) -> Value:
        """activation(gate) * up"""
        if self.raised:
            return self.add("glu", gate, up, activation=activation)
        found = self.activation(gate, activation)
        return self.add("mul", found, up) if self._spelling(2) else self.add("mul", up, found)

    # --- rotary positions --------------------------------------------------------------------------------------------
    def angles(self, sequence: Dim, rotary: int, style: str, key: str) -> tuple[Value, Value]:
        """Cosines and sines [1, 1, s, rotary] of position times frequency."""
        counted = self.add("arange", start=0, stop=sequence, element="f32")
        column = self.add("reshape", counted, shape=(1, 1, sequence, 1))
        half = self.add("mul", column, self.weight(f"{key}.{rotary}.inv_freq", rotary // 2))
        if style == "half":
            whole = self.add("concat", half, half, axis=3)
        else:
            pair = self.add("reshape", half, shape=(1, 1, sequence, rotary // 2, 1))
            both = self.add("concat", pair, pair, axis=4)
            whole = self.add("reshape", both, shape=(1, 1, sequence, rotary))
        return self.add("cos", whole), self.add("sin", whole)

    def turned(self, x: Value, cos: Value, sin: Value, style: str) -> Value:
        """Rotary embedding of the first elements of x [b, h, s, d]."""
        rotary, size = int(cos.shape[-1]), int(x.shape[-1])  # type: ignore[arg-type]
        if self._spelling(3) == 0:
            return self.add("rope", x, cos, sin, style=style)
        part = x if rotary == size else self.add("slice", x, axis=3, start=0, stop=rotary)
        swapped = self._swapped_halves(part, rotary) if style == "half" else self._swapped_pairs(part, rotary)
        found = self.add("add", self.add("mul", part, cos), self.add("mul", swapped, sin))
        if rotary == size:
            return found
        return self.add("concat", found, self.add("slice", x, axis=3, start=rotary, stop=size), axis=-1)

    def _swapped_halves(self, x: Value, rotary: int) -> Value:
        first = self.add("slice", x, axis=3, start=0, stop=rotary // 2)
        second = self.add("slice", x, axis=3, start=rotary // 2, stop=rotary)
        return self.add("concat", self.add("neg", second), first, axis=3)

    def _swapped_pairs(self, x: Value, rotary: int) -> Value:
        even = self.add("slice", x, axis=3, start=0, stop=rotary, step=2)
        odd = self.add("slice", x, axis=3, start=1, stop=rotary, step=2)
        parts = [self.add("reshape", part, shape=(*part.shape, 1)) for part in (self.add("neg", odd), even)]
        return self.add("reshape", self.add("concat", *parts, axis=4), shape=x.shape)

    # --- attention ---------------------------------------------------------------------------------------------------
    def heads(self, x: Value, count: int) -> Value:
        """[b, s, count * size] -> [b, count, s, size]"""
        b, s, width = x.shape
        apart = self.add("reshape", x, shape=(b, s, count, int(width) // count))  # type: ignore[arg-type]
        return self.add("permute", apart, axes=(0, 2, 1, 3))

    def attention(
        self, query: Value, key: Value, value: Value, slopes: str | None, sinks: str | None, **attributes: Attribute
    ) -> Value:
        """attention, or softmax and products written out."""
        spelling = self._spelling(2)
        heads, groups = int(query.shape[1]), int(key.shape[1])  # type: ignore[arg-type]
        if spelling == 0 or sinks is not None:
            more: list[Operand] = [None, None, None, None]
            if slopes is not None:
                more[2] = self.weight(f"{slopes}.slopes", heads)
            if sinks is not None:
                more[3] = self.weight(f"{sinks}.sinks", heads)
            while more and more[-1] is None:
                more.pop()
            return self.add("attention", query, key, value, *more, **attributes)
        if groups != heads:
            key, value = (self._repeated(x, heads // groups) for x in (key, value))
        scores = self.add("matmul", query, self.add("permute", key, axes=(0, 1, 3, 2)))
        scores = self._scored(scores, slopes, attributes)
        return self.add("matmul", self.add("softmax", scores, axis=-1), value)

    def _scored(self, scores: Value, slopes: str | None, attributes: dict[str, Attribute]) -> Value:
        sequence, heads = scores.shape[-1], scores.shape[1]
        found = self.add("mul", scores, self.number(float(attributes["scale"])))  # type: ignore[arg-type]
        if (cap := attributes.get("softcap")) is not None:
            limit = self.number(float(cap))  # type: ignore[arg-type]
            found = self.add("mul", self.add("tanh", self.add("div", found, limit)), limit)
        if slopes is not None:
            counted = self.add("arange", start=0, stop=sequence, element="f32")
            bias = self.add("mul", self.weight(f"{slopes}.column_slopes", heads, 1, 1), counted)
            found = self.add("add", found, self.add("reshape", bias, shape=(1, heads, 1, sequence)))
        structure = {name: attributes[name] for name in ("mask", "window", "chunk")}
        mask = self.add("attention_mask", queries=sequence, keys=sequence, **structure)
        return self.add("add", found, mask)

    def _repeated(self, x: Value, times: int) -> Value:
        b, groups, s, size = x.shape
        apart = self.add("reshape", x, shape=(b, groups, 1, s, size))
        wide = self.add("expand", apart, shape=(b, groups, times, s, size))
        return self.add("reshape", wide, shape=(b, groups * times, s, size))

    def merged(self, x: Value) -> Value:
        """[b, h, s, d] -> [b, s, h * d]"""
        b, heads, s, size = x.shape
        return self.add("reshape", self.add("permute", x, axes=(0, 2, 1, 3)), shape=(b, s, heads * size))

    def cut(self, x: Value, sizes: Sequence[int]) -> list[Value]:
        """Parts of the last axis, one after another."""
        parts, start = [], 0
        for size in sizes:
            parts.append(self.add("slice", x, axis=x.type.rank - 1, start=start, stop=start + size))
            start += size
        return parts
