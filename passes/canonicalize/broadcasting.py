"""Rules that let broadcasting do the work of `expand`, and keep a tensor of one number as that number."""

from __future__ import annotations

from slmopt.ir.dims import Dim
from slmopt.ir.graph import Op, Operand, Value, Weight
from slmopt.ir.ops import elementwise
from slmopt.ir.types import DType
from slmopt.rewrite import Match, Rewriter, Rule, any_, constant, either, op, rule

__all__ = ["BROADCASTING", "ELEMENTWISE"]

Found = Value | Weight | None
ELEMENTWISE: tuple[str, ...] = tuple(spec.name for spec in elementwise.SPECS)


def _small(at: Rewriter, operand: Operand) -> Operand:
    """What is repeated to make `operand`, or `operand` itself; a weight without the axes of size 1 before its own."""
    made_by = operand.op if isinstance(operand, Value) else None
    if made_by is not None and made_by.name == "expand":
        return made_by.operands[0]
    if made_by is not None and made_by.name == "reshape" and isinstance(made_by.operands[0], Weight):
        inner, outer = made_by.operands[0].type.shape, made_by.result.shape
        return made_by.operands[0] if outer == (1,) * (len(outer) - len(inner)) + inner else operand
    if made_by is not None and made_by.name == "full":
        return at.add("constant", value=made_by.attributes["value"], element=made_by.attributes["element"])
    return operand


@rule("expand", op(ELEMENTWISE, ...))
def _compute_before_expand(at: Rewriter, m: Match) -> Found:
    """f(expand(x), y) -> f(x, y), repeated afterwards where y does not make up for it."""
    operands = [_small(at, operand) for operand in m.root.operands]
    if all(new is old for new, old in zip(operands, m.root.operands, strict=True)):
        return None
    found, shape = at.again(m.root, *operands), m.root.result.shape
    if found.shape == shape:
        return found
    return None if found.type.elements == m.root.result.type.elements else at.add("expand", found, shape=shape)


@rule("expand", op("embedding", op("expand", any_("x")), any_("table")))
def _look_up_before_expand(at: Rewriter, m: Match) -> Found:
    return at.add("expand", at.add("embedding", m["x"], m["table"]), shape=m.root.result.shape)


def _repeated_axes(expand: Op) -> tuple[Dim, ...]:
    """The shape before an expand, with axes of size 1 in front for those that were added."""
    before = expand.operands[0].type.shape if expand.operands[0] is not None else ()
    return (1,) * (expand.result.type.rank - len(before)) + before


@rule("expand", op("reshape", op("expand", any_("x"), bind="wide")))
def _give_axes_before_expand(at: Rewriter, m: Match) -> Found:
    """reshape(expand(x)) -> expand(reshape(x)) where the reshape only adds or drops axes of size 1."""
    wide, shape = m.op("wide"), m.root.result.shape
    pairs = [pair for pair in zip(_repeated_axes(wide), wide.result.shape, strict=True) if pair[1] != 1]
    if [after for _, after in pairs] != [size for size in shape if size != 1]:
        return None
    sizes = iter(before for before, _ in pairs)
    narrow = tuple(size if size == 1 else next(sizes) for size in shape)
    return at.add("expand", at.add("reshape", m["x"], shape=narrow), shape=shape)


@rule("expand", op("concat", ...))
def _concat_before_expand(at: Rewriter, m: Match) -> Found:
    """concat(expand(x), expand(y)) -> expand(concat(x, y)) where both repeat the same axes, others than the joined."""
    axis = int(m.root.attributes["axis"]) % m.root.result.type.rank  # type: ignore[arg-type]
    wide = [o.op for o in m.root.operands if isinstance(o, Value) and o.op is not None and o.op.name == "expand"]
    if len(wide) < len(m.root.operands):
        return None
    shapes = [_repeated_axes(expand) for expand in wide]
    rests = {(shape[:axis], shape[axis + 1 :]) for shape in shapes}
    if len(rests) != 1 or any(s[axis] != e.result.shape[axis] for s, e in zip(shapes, wide, strict=True)):
        return None
    parts = [at.add("reshape", e.operands[0], shape=s) for e, s in zip(wide, shapes, strict=True)]
    return at.add("expand", at.add("concat", *parts, axis=axis), shape=m.root.result.shape)


@rule("expand", op("rope", any_("x"), op("expand", any_("cos"), bind="wide"), op("expand", any_("sin"))))
def _rope_broadcasts(at: Rewriter, m: Match) -> Found:
    if m["cos"].type != m["sin"].type or m["cos"].type.shape[-1:] != m["wide"].type.shape[-1:]:
        return None
    return at.again(m.root, m["x"], m["cos"], m["sin"])


@rule("full", op(("expand", "reshape", "permute", "slice"), constant(name="c")))
def _view_of_full(at: Rewriter, m: Match) -> Found:
    """However it is looked at, a tensor of one number is one."""
    type = m.root.result.type
    return at.add("full", shape=type.shape, value=m.number("c"), element=str(type.element))


@rule("full", op("full"))
def _full_scalar(at: Rewriter, m: Match) -> Found:
    if m.root.result.shape:
        return None
    return at.add("constant", **{name: m.root.attributes[name] for name in ("value", "element")})


# --- conditions known at compile time --------------------------------------------------------------------------------
@rule("condition", op(("eq", "le", "ge"), any_("x"), any_("x")))
def _equal_to_itself(at: Rewriter, m: Match) -> Found:
    if isinstance(m["x"].type.element, DType) and not m["x"].type.element.is_float:
        return at.add("full", shape=m.root.result.shape, value=True, element="bool")
    return None  # a number that is no number differs from itself


_COUNTED = op("arange", bind="a")


@rule("condition", op("ge", either(_COUNTED, op("reshape", _COUNTED)), constant(name="c")))
def _counted_above(at: Rewriter, m: Match) -> Found:
    start = m.op("a").attributes["start"]
    if not isinstance(start, int) or start < m.number("c"):
        return None
    return at.add("full", shape=m.root.result.shape, value=True, element="bool")


@rule("condition", op("where", constant(name="c"), any_("a"), any_("b")))
def _choose(at: Rewriter, m: Match) -> Found:
    chosen, type = m["a"] if m.number("c") else m["b"], m.root.result.type
    return chosen if chosen.type == type else at.add("expand", chosen, shape=type.shape)


BROADCASTING: tuple[Rule, ...] = (
    _compute_before_expand, _look_up_before_expand, _give_axes_before_expand, _concat_before_expand, _rope_broadcasts,
    _view_of_full, _full_scalar, _equal_to_itself, _counted_above, _choose,
)  # fmt: skip
