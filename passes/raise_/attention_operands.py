"""Rules for attention ops: what its operands say twice moves into attributes, or into operands that decode."""

from __future__ import annotations

from slmopt.ir.graph import Attribute, Op, Operand, Value, Weight
from slmopt.rewrite import Match, Rewriter, Rule, any_, constant_value, match, op, rule

__all__ = ["OPERANDS"]

_ATTENTION = op("attention", any_("q"), any_("k"), any_("v"), ...)
_NAMES = ("query", "key", "value", "bias", "position", "slopes", "sinks")


def _operands(attention: Op) -> dict[str, Operand]:
    given = (*attention.operands, *(None,) * (len(_NAMES) - len(attention.operands)))
    return dict(zip(_NAMES, given, strict=True))


def _again(at: Rewriter, attention: Op, changed: dict[str, Operand], **attributes: Attribute) -> Value:
    operands = [*{**_operands(attention), **changed}.values()]
    while operands[-1] is None:
        operands.pop()
    return at.add("attention", *operands, **{**attention.attributes, **attributes})


# --- the mask ------------------------------------------------------------------------------------------------------
def _terms(bias: Operand) -> list[Operand]:
    made_by = bias.op if isinstance(bias, Value) else None
    if made_by is not None and made_by.name == "add":
        return [term for operand in made_by.operands for term in _terms(operand)]
    return [bias]


def _sum(at: Rewriter, terms: list[Operand]) -> Operand:
    found = terms[0] if terms else None
    for term in terms[1:]:
        found = at.add("add", found, term)
    return found


def _seen_through(operand: Operand) -> Operand:
    """What is repeated or given axes of size 1 to make an operand."""
    made_by = operand.op if isinstance(operand, Value) else None
    while made_by is not None and made_by.name in ("expand", "reshape"):
        operand = made_by.operands[0]
        inner = operand.op if isinstance(operand, Value) else None
        if made_by.name == "reshape" and operand is not None and _proper(operand) != _proper(made_by.result):
            return made_by.result
        made_by = inner
    return operand


def _proper(operand: Value | Weight) -> list[object]:
    return [size for size in operand.type.shape if size != 1]


@rule("structural mask", _ATTENTION)
def _mask_as_attributes(at: Rewriter, m: Match) -> Value | None:
    """attention(q, k, v, bias + attention_mask) -> attention(q, k, v, bias) {mask, window, chunk}

    A query sees what both the added mask and the attributes allow.
    """
    own = m.root.attributes
    terms = _terms(_operands(m.root)["bias"])
    for index, term in enumerate(terms):
        found = _seen_through(term)
        mask = found.op if isinstance(found, Value) and found.op and found.op.name == "attention_mask" else None
        if mask is None or _operands(m.root)["position"] is not None or mask.result.shape[2:] != _grid(m):
            continue
        both = mask.attributes
        if None not in (own["chunk"], both["chunk"]) and own["chunk"] != both["chunk"]:
            continue
        if own["sink"] is not None and both["window"] is not None:
            continue
        windows = [size for size in (own["window"], both["window"]) if isinstance(size, int)]
        chunk = own["chunk"] if own["chunk"] is not None else both["chunk"]
        causal = "causal" in (own["mask"], both["mask"])
        rest = _sum(at, terms[:index] + terms[index + 1 :])
        window = min(windows) if windows else None
        return _again(at, m.root, {"bias": rest}, mask="causal" if causal else "full", window=window, chunk=chunk)
    return None


def _grid(m: Match) -> tuple[object, object]:
    """The number of queries and keys."""
    return m["q"].type.shape[2], m["k"].type.shape[2]


# --- linear biases -------------------------------------------------------------------------------------------------
_SLOPED = op("mul", any_("slopes", lambda operand: isinstance(operand, Weight)), any_("positions"))


@rule("slopes", _ATTENTION)
def _bias_as_slopes(at: Rewriter, m: Match) -> Value | None:
    """attention(q, k, v, bias + slopes * key positions) -> attention(q, k, v, bias, slopes): ALiBi

    Slopes [h, 1, 1] times key positions [n] will do: what a row of scores adds to all its keys, softmax ignores.
    """
    operands = _operands(m.root)
    if operands["slopes"] is not None or operands["sinks"] is not None or operands["position"] is not None:
        return None
    heads, terms = m["q"].type.shape[1], _terms(operands["bias"])
    for index, term in enumerate(terms):
        sloped = match(_seen_through(term), _SLOPED)
        if sloped is None or not _is_key_position(sloped["positions"]) or not _is_per_head(sloped, heads, _grid(m)[1]):
            continue
        source = sloped.weight("slopes")
        slopes = at.derive(source, "slopes", lambda w: w.reshape(-1), type=source.type.with_shape(heads))
        if slopes is None:
            return None
        rest = _sum(at, terms[:index] + terms[index + 1 :])
        return _again(at, m.root, {"bias": rest, "slopes": slopes})
    return None


def _is_per_head(sloped: Match, heads: object, keys: object) -> bool:
    """Slopes [.., h, 1, 1] times positions [.., n] give [.., h, 1, n]."""
    shape, slopes, positions = sloped.root.result.shape, sloped["slopes"].type.shape, sloped["positions"].type.shape
    if len(shape) < 3 or shape[-3:] != (heads, 1, keys) or len(slopes) < 3:
        return False
    return slopes[-3:] == (heads, 1, 1) and slopes[:-3] == (1,) * (len(slopes) - 3) and positions[-1:] == (keys,)


def _is_key_position(positions: Operand) -> bool:
    """start, start + 1, ... along the last axis and nothing else: where the counting starts does not matter."""
    counted = _seen_through(positions)
    return isinstance(counted, Value) and counted.op is not None and counted.op.name == "arange"


# --- grouped heads -------------------------------------------------------------------------------------------------
def _unrepeated(operand: Operand) -> Value | None:
    """x [b, g, n, d] of reshape(expand(reshape(x, [b, g, 1, n, d]), [b, g, r, n, d]), [b, g * r, n, d])."""
    merged = operand.op if isinstance(operand, Value) else None
    repeated = merged.operands[0] if merged is not None and merged.name == "reshape" else None
    expand = repeated.op if isinstance(repeated, Value) else None
    if merged is None or expand is None or expand.name != "expand":
        return None
    apart = expand.operands[0]
    split = apart.op if isinstance(apart, Value) else None
    x = split.operands[0] if split is not None and split.name == "reshape" else None
    if not isinstance(x, Value) or x.type.rank != 4:
        return None
    b, g, n, d = x.shape
    r = expand.result.shape[2] if expand.result.type.rank == 5 else 1
    fits = split is not None and split.result.shape == (b, g, 1, n, d) and expand.result.shape == (b, g, r, n, d)
    return x if fits and merged.result.shape == (b, g * r, n, d) else None


@rule("grouped heads", _ATTENTION)
def _read_unrepeated(at: Rewriter, m: Match) -> Value | None:
    """attention(q, repeated k, repeated v) -> attention(q, k, v): grouped heads"""
    key, value = _unrepeated(m["k"]), _unrepeated(m["v"])
    if key is None or value is None or key.shape[:3] != value.shape[:3]:
        return None
    return _again(at, m.root, {"key": key, "value": value})


# --- scale ---------------------------------------------------------------------------------------------------------
_MOVES = ("reshape", "permute", "rope", "slice")


def _unscaled(at: Rewriter, operand: Operand) -> tuple[Operand, float]:
    """An operand without the number it is multiplied by, and that number; 1.0 where there is none to take out."""
    made_by = operand.op if isinstance(operand, Value) and len(operand.uses) == 1 else None
    if made_by is None:
        return operand, 1.0
    if made_by.name in _MOVES:
        inner, factor = _unscaled(at, made_by.operands[0])
        return (at.again(made_by, inner, *made_by.operands[1:]), factor) if factor != 1.0 else (operand, 1.0)
    if made_by.name in ("mul", "div"):
        for index in (0, 1) if made_by.name == "mul" else (1,):
            number, other = constant_value(made_by.operands[index]), made_by.operands[1 - index]
            if number and isinstance(other, Value) and other.type == made_by.result.type:
                return other, float(number) if made_by.name == "mul" else 1.0 / number
    return operand, 1.0


@rule("scale", _ATTENTION)
def _scale_as_attribute(at: Rewriter, m: Match) -> Value | None:
    """attention(c q, k, v) {scale} -> attention(q, k, v) {scale c}"""
    query, first = _unscaled(at, m["q"])
    key, second = (m["k"], 1.0) if m["k"] is m["q"] else _unscaled(at, m["k"])
    if first * second == 1.0:
        return None
    scale = m.root.attributes["scale"]
    return _again(at, m.root, {"query": query, "key": key}, scale=float(scale) * first * second)  # type: ignore[arg-type]


OPERANDS: tuple[Rule, ...] = (_mask_as_attributes, _bias_as_slopes, _read_unrepeated, _scale_as_attribute)
