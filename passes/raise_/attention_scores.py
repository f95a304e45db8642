"""Rule: softmax(scores) v -> attention, with every further term of the scores as mask or bias."""

from __future__ import annotations

from dataclasses import dataclass, field

from slmopt.ir.dims import Dim, symbol
from slmopt.ir.graph import Operand, Value
from slmopt.rewrite import Match, Pattern, Rewriter, Rule, any_, constant, either, match, on_last_axis, op, rule

__all__ = ["SCORES"]

_NEVER = -1e30  # a score this low leaves its key unseen: exp(score - largest score) is 0 in float32


def _scaled(of: Pattern, factor: str) -> Pattern:
    return either(op("mul", of, constant(name=factor)), op("div", of, constant(name=f"1/{factor}")))


_PRODUCT = op("matmul", any_("q"), any_("k"))
_SCORES = either(_PRODUCT, _scaled(_PRODUCT, "scale"))
_CAPPED = op("mul", op("tanh", _scaled(_SCORES, "1/cap")), constant(name="cap"))
_FACTOR = op(("mul", "div"), any_("x", lambda operand: isinstance(operand, Value)), constant(name="c"))
_FLOOR = op("maximum", any_("x"), constant(name="c"))
_CHOICE = either(
    op("where", any_("seen"), any_("x"), constant(name="c")), op("where", any_("seen"), constant(name="c"), any_("x"))
)


@dataclass
class _Scores:
    """The terms that add up to the scores: one product of queries and keys, biases, structural masks."""

    shape: tuple[Dim, ...]
    products: list[Match] = field(default_factory=list)
    scale: float = 1.0
    biases: list[Operand] = field(default_factory=list)


def _factor(m: Match, name: str) -> float:
    """The number that values are multiplied by, also where they are divided by it."""
    if f"1/{name}" in m:
        return 1.0 / m.number(f"1/{name}")
    return m.number(name) if name in m else 1.0


def _collect(at: Rewriter, term: Operand, factor: float, found: _Scores) -> None:
    """Add what `term` times `factor` (above 0) is made of to `found`."""
    made_by = term.op if isinstance(term, Value) else None
    if (product := match(term, either(_CAPPED, _PRODUCT))) is not None:
        found.products.append(product)
        found.scale = factor
    elif made_by is not None and made_by.name == "attention_mask":
        found.biases.append(term)  # 0 and -infinity, whatever the factor
    elif made_by is not None and made_by.name == "add":
        for operand in made_by.operands:
            _collect(at, operand, factor, found)
    elif (scaled := match(term, _FACTOR)) is not None and scaled.number("c") > 0:
        by = scaled.number("c")
        _collect(at, scaled["x"], factor * by if scaled.root.name == "mul" else factor / by, found)
    elif (floored := match(term, _FLOOR)) is not None and floored.number("c") * factor <= _NEVER:
        _collect(at, floored["x"], factor, found)
    else:
        _collect_rest(at, term, factor, found)


def _collect_rest(at: Rewriter, term: Operand, factor: float, found: _Scores) -> None:
    """Add a mask that the model computes itself, what it hides, or another bias."""
    chosen = match(term, _CHOICE)
    if chosen is not None and (mask := _chosen_mask(at, chosen, factor, found.shape)) is not None:
        found.biases.append(mask)
        _collect(at, chosen["x"], factor, found)
    elif (mask := _structural_mask(at, term, found.shape)) is not None:
        found.biases.append(mask)
    else:
        found.biases.append(term if factor == 1.0 else _times(at, term, factor))


def _times(at: Rewriter, term: Operand, factor: float) -> Value:
    return at.add("mul", term, at.add("constant", value=factor, element="f32"))


# --- masks that the model computes itself, or stores as a table ------------------------------------------------------
def _chosen_mask(at: Rewriter, chosen: Match, factor: float, scores: tuple[Dim, ...]) -> Value | None:
    """attention_mask for where(seen, x, very low), or where(hidden, very low, x)."""
    if chosen.number("c") * factor > _NEVER:
        return None
    seen = chosen["seen"]
    if chosen.root.operands[1] is not chosen["x"]:
        seen = at.add("logical_not", seen)
    return _structural_mask(at, seen, scores)


def _structural_mask(at: Rewriter, mask: Operand, scores: tuple[Dim, ...]) -> Value | None:
    """attention_mask for a mask of the scores that depends on positions alone and has a structure."""
    if not isinstance(mask, Value) or mask.type.rank < 2 or mask.shape[-2:] != scores[-2:]:
        return None
    sequence, metadata = scores[-1], at.module.metadata
    if sequence != symbol(str(metadata.get("sequence", "s"))) or scores[-2] != sequence:
        return None
    from slmopt.dense_masks import structure_of

    structure = structure_of(mask, at.module.weights, str(sequence), str(metadata.get("batch", "b")))
    if structure is None:
        return None
    kind = "causal" if structure.causal else "full"
    window, chunk = structure.window, structure.chunk
    return at.add("attention_mask", queries=sequence, keys=sequence, mask=kind, window=window, chunk=chunk)


# --- the rule ------------------------------------------------------------------------------------------------------
@rule("attention", op("matmul", op("softmax", any_("scores"), where=on_last_axis), any_("v")))
def _softmax_attention(at: Rewriter, m: Match) -> Value | None:
    """softmax(scale q k^T + bias) v -> attention(q, k, v, bias) {scale}"""
    found = _Scores(m["scores"].type.shape)
    _collect(at, m["scores"], 1.0, found)
    if len(found.products) != 1 or not _is_attention(m, found.products[0]):
        return None
    product = found.products[0]
    scale, cap = found.scale * _factor(product, "scale"), None
    if "cap" in product:
        # f c tanh(x / b) = C tanh(x f c / b / C) with C = f c.
        cap = found.scale * product.number("cap")
        scale *= _factor(product, "1/cap") * product.number("cap")
        if cap <= 0:
            return None
    key = at.add("permute", product["k"], axes=(0, 1, 3, 2))
    bias = found.biases[:1]
    for other in found.biases[1:]:
        bias = [at.add("add", *bias, other)]
    return at.add("attention", product["q"], key, m["v"], *bias, scale=scale, mask="full", softcap=cap)


def _is_attention(m: Match, product: Match) -> bool:
    """Query [b, h, s, d], transposed key [b, g, d, n] and value [b, g, n, e], g = h or 1; the heads are numbers."""
    query, key, value = product["q"].type.shape, product["k"].type.shape, m["v"].type.shape
    if not len(query) == len(key) == len(value) == 4 or m["scores"].type.shape != (*query[:3], key[3]):
        return False
    heads = isinstance(query[1], int) and key[1] == value[1] and key[1] in (query[1], 1)
    return heads and query[0] == key[0] == value[0] and query[3] == key[2] and key[3] == value[2]


SCORES: tuple[Rule, ...] = (_softmax_attention,)
