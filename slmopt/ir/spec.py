"""OpSpec: everything the compiler knows of an op, in one place; the registry that plugins add to."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from slmopt.errors import IRError, nearest
from slmopt.ir.dims import Dim
from slmopt.ir.graph import Attribute, Op, Weight
from slmopt.ir.types import TensorType

if TYPE_CHECKING:
    from slmopt.ir.linking import AxisLinker
    from slmopt.ir.step import StepBuilder

__all__ = ["Cost", "OpRegistry", "OpSpec", "Required"]


class Required:
    """Marks an attribute without default; `Required(int)` gives its Python type for checks and documentation."""

    def __init__(self, type: type) -> None:
        self.type = type


@dataclass(frozen=True)
class Cost:
    """Work of one execution: multiply-adds count as two FLOPs; bytes read of weights; bytes of recurrent state."""

    flops: Dim = 0
    weight_bytes: Dim = 0
    state_bytes: Dim = 0


Infer = Callable[[Op], "TensorType | tuple[TensorType, ...]"]


@dataclass(frozen=True)
class OpSpec:
    """One op.

    `operands` names them in order: `bias?` may be absent (None), a last `*parts` takes any number.
    `attributes` maps names to defaults, or `Required(type)`.
    `infer(op)` gives the result type(s) from operand types and attributes, or raises IRError saying what was expected.
    `reference(op, *operands)` computes the results in torch (float32 for quantized weights), differentiably.
    `mixes(op, symbol)` tells whether results at one position of the axis named `symbol` depend on other positions.
    `rowwise(op, symbol)` tells whether results at one position need their operands at that position alone, so that
    where few positions are asked for few are computed; None: where it does not mix. (An op may mix and be rowwise: what
    a query of attention gives depends on where it stands, but on no other query.)
    `step(builder, op, operands)` rewrites an op that mixes positions into its incremental form with its own state
    (see `slmopt.ir.step`); None: the op can only be decoded where it does not mix positions.
    `couple(axes, op)` links the axes between which it carries positions, for structured pruning (`slmopt.ir.linking`);
    None: nothing is known of them, and none is ever cut.
    `summary` says what it computes in a line; `meaning` the rest that one must know to implement it: shapes, formulas,
    every attribute by name, corner cases. `example`: `inputs -> op` as in IR text: `%x: f32[b] -> silu(%x) : f32[b]`.
    """

    name: str
    operands: tuple[str, ...]
    infer: Infer
    reference: Callable[..., Any]
    summary: str
    attributes: Mapping[str, Any] = field(default_factory=dict)
    flops: Callable[[Op], Dim] | None = None
    mixes: Callable[[Op, str], bool] | None = None
    step: Callable[[StepBuilder, Op, tuple[Any, ...]], tuple[Any, ...]] | None = None
    rowwise: Callable[[Op, str], bool] | None = None
    couple: Callable[[AxisLinker, Op], None] | None = None
    meaning: str = ""
    example: str = ""

    def is_rowwise(self, op: Op, symbol: str) -> bool:
        """Whether results at one position of the axis named `symbol` need operands at no other position."""
        if self.rowwise is not None:
            return self.rowwise(op, symbol)
        return self.mixes is None or not self.mixes(op, symbol)

    def complete_attributes(self, given: Mapping[str, Attribute], location: str = "") -> dict[str, Attribute]:
        """`given` checked against the spec, defaults filled in, in the spec's order."""
        place = _place(location)
        for name in given:
            if name not in self.attributes:
                known = ", ".join(self.attributes) or "none"
                raise IRError(f"{self.name}{place} has no attribute {name!r}; it has: {known}")
        complete: dict[str, Attribute] = {}
        for name, default in self.attributes.items():
            if name in given:
                value = given[name]
                complete[name] = tuple(value) if isinstance(value, list) else value
            elif isinstance(default, Required):
                raise IRError(f"{self.name}{place} needs the attribute {name!r} ({default.type.__name__})")
            else:
                complete[name] = default
        return complete

    def check_operands(self, op: Op) -> None:
        """The number of operands fits, and none that is required is absent."""
        variadic = bool(self.operands) and self.operands[-1].startswith("*")
        fixed = self.operands[:-1] if variadic else self.operands
        least = len([name for name in fixed if not name.endswith("?")])
        given = op.operands
        if len(given) < least or (len(given) > len(fixed) and not variadic):
            wanted = ", ".join(self.operands)
            raise IRError(f"{op.name}{_place(op.location)} takes ({wanted}), got {len(given)} operands")
        for name, operand in zip(fixed, given, strict=False):
            if operand is None and not name.endswith("?"):
                raise IRError(f"{op.name}{_place(op.location)}: operand {name!r} is absent but required")

    def infer_types(self, op: Op) -> tuple[TensorType, ...]:
        """The result types; IRError names the op and its place."""
        self.check_operands(op)
        try:
            found = self.infer(op)
        except IRError as error:
            types = ", ".join("_" if o is None else str(o.type) for o in op.operands)
            raise IRError(f"{op.name}({types}){_place(op.location)}: {error}") from error
        return found if isinstance(found, tuple) else (found,)

    def cost(self, op: Op) -> Cost:
        """FLOPs and bytes of one execution. An op without a formula of its own costs one FLOP per result element."""
        flops = self.flops(op) if self.flops is not None else sum_dims(result.type.elements for result in op.results)
        weights = {o.key: o.type for o in op.operands if isinstance(o, Weight)}
        return Cost(flops, sum_dims(type.bytes for type in weights.values()))


def sum_dims(dims: Iterable[Dim]) -> Dim:
    """The sum of dimensions."""
    total: Dim = 0
    for dim in dims:
        total = total + dim
    return total


def _place(location: str) -> str:
    return f" (at {location})" if location else ""


class OpRegistry:
    """Op specs by name, each with its owner; a clash is an error that names both."""

    def __init__(self) -> None:
        self._specs: dict[str, tuple[OpSpec, str]] = {}
        self._promised: dict[str, tuple[Callable[[], OpSpec], str]] = {}

    def add(self, specs: Iterable[OpSpec], owner: str) -> None:
        """Add specs on behalf of `owner` (a distribution or module name)."""
        for spec in specs:
            if spec.name in self._specs and self._specs[spec.name][0] is not spec:
                raise IRError(f"op {spec.name!r} of {owner} is already defined by {self._specs[spec.name][1]}")
            self._specs[spec.name] = (spec, owner)

    def promise(self, name: str, owner: str, load: Callable[[], OpSpec]) -> None:
        """The op `name` of `owner`, whose spec `load` gives when the op is first looked up; IRError where it exists."""
        known = self.owner(name)
        if known is not None:
            raise IRError(f"op {name!r} of {owner} is already defined by {known}")
        self._promised[name] = (load, owner)

    def owner(self, name: str) -> str | None:
        """Whose op that is; None where there is none of that name."""
        found = self._specs.get(name) or self._promised.get(name)
        return None if found is None else found[1]

    @contextmanager
    def having(self, specs: Iterable[OpSpec], owner: str) -> Iterator[None]:
        """These specs too, inside the `with`; for trying an op before a plugin offers it."""
        before = dict(self._specs)
        self.add(specs, owner)
        try:
            yield
        finally:
            self._specs = before

    def lookup(self, name: str, location: str = "") -> OpSpec:
        """The spec of op `name`; IRError suggests the nearest name."""
        if name not in self._specs:
            if name not in self._promised:
                known = (*self._specs, *self._promised)
                raise IRError(f"unknown op {name!r}{_place(location)}{nearest(name, known)}")
            load, owner = self._promised[name]
            self._specs[name] = (load(), owner)
            del self._promised[name]
        return self._specs[name][0]

    def names(self) -> tuple[str, ...]:
        """The name of every op, of plugins' ops too."""
        return (*self._specs, *self._promised)

    def __contains__(self, name: str) -> bool:
        return name in self._specs or name in self._promised

    def __iter__(self) -> Iterator[OpSpec]:
        """Every op whose spec is there: those of the core, and those of plugins that have been looked up."""
        return (spec for spec, _ in self._specs.values())
