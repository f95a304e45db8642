"""Cursors: a place in a graph where ops are inserted one after the other."""

from __future__ import annotations

from typing import TYPE_CHECKING

from slmopt.errors import IRError
from slmopt.ir.membership import check_member
from slmopt.ir.types import TensorType
from slmopt.ir.values import Attribute, Operand, Value, Weight

if TYPE_CHECKING:
    from slmopt.ir.graph import Graph, Op

__all__ = ["Cursor"]


class Cursor:
    """A place in a graph: before an op, after an op, or at the end. What is added there stays in the order it is added.

        at = graph.after(norm)
        gate = at.add("silu", at.add("linear", x, w))

    New ops get the location of the op the cursor stands at and are named after it. `created` lists them.
    """

    def __init__(self, graph: Graph, *, before: Op | None = None, after: Op | None = None) -> None:
        self.graph, self._before, self._after = graph, before, after
        self._start = before if before is not None else after
        self.created: list[Op] = []
        if self._start is not None:
            check_member(graph, self._start)

    def add(self, name: str, *operands: Operand, **attributes: Attribute) -> Value:
        """Add an op with one result; returns the result. IRError where operands or attributes do not fit the op."""
        made = self.add_op(name, *operands, **attributes)
        if len(made.results) != 1:
            raise IRError(f"{made.describe()} has {len(made.results)} results: add it with add_op, which gives the op")
        return made.result

    def add_op(self, name: str, *operands: Operand, **attributes: Attribute) -> Op:
        """Add an op with any number of results; returns the op."""
        place = self._start.location if self._start is not None else ""
        made = self.graph.add(
            name, operands, attributes, before=self._before, after=self._after, hint=self._hint(name), location=place
        )
        if self._after is not None:
            self._after = made
        self.created.append(made)
        return made

    def again(self, made_by: Op, *operands: Operand, **changed: Attribute) -> Value:
        """The same op on other operands; its attributes but for those that are given."""
        return self.add(made_by.name, *operands, **{**made_by.attributes, **changed})

    def constant(self, value: float, like: TensorType | Value | Weight) -> Value:
        """A number of the element type of `like`; it broadcasts."""
        type = like if isinstance(like, TensorType) else like.type
        number = float(value) if type.element.is_float else value
        return self.add("constant", value=number, element=str(type.element))

    def _hint(self, name: str) -> str:
        """What a new value is called: `%mlp_up` -> `%mlp_up_silu`."""
        results = self._start.results if self._start is not None else ()
        return f"{results[0].name}_{name}" if results else name
