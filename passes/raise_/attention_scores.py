"""Rule: softmax(scores) v -> attention, with every term of the scores as the bias."""

from __future__ import annotations

from slmopt.ir.graph import Operand, Value
from slmopt.rewrite import Match, Pattern, Rewriter, Rule, any_, constant, either, match, on_last_axis, op, rule

__all__ = ["SCORES"]


def _scaled(of: Pattern, factor: str) -> Pattern:
    return either(op("mul", of, constant(name=factor)), op("div", of, constant(name=f"1/{factor}")))


_PRODUCT = op("matmul", any_("q"), any_("k"))
_SCORES = either(_PRODUCT, _scaled(_PRODUCT, "scale"))
_CAPPED = op("mul", op("tanh", _scaled(_SCORES, "1/cap")), constant(name="cap"))
_ANY_SCORES = either(_CAPPED, _SCORES)


def _terms(scores: Operand) -> list[Operand]:
    """What is added up to make the scores."""
    made_by = scores.op if isinstance(scores, Value) else None
    if made_by is not None and made_by.name == "add":
        return [term for operand in made_by.operands for term in _terms(operand)]
    return [scores]


def _factor(m: Match, name: str) -> float:
    """The number that values are multiplied by, also where they are divided by it."""
    if f"1/{name}" in m:
        return 1.0 / m.number(f"1/{name}")
    return m.number(name) if name in m else 1.0


@rule("attention", op("matmul", op("softmax", any_("scores"), where=on_last_axis), any_("v")))
def _softmax_attention(at: Rewriter, m: Match) -> Value | None:
    terms = _terms(m["scores"])
    products = [(index, found) for index, term in enumerate(terms) if (found := match(term, _ANY_SCORES)) is not None]
    if len(products) != 1 or not _is_attention(m, products[0][1]):
        return None
    (index, product) = products[0]
    scale, cap = _factor(product, "scale"), product.number("cap") if "cap" in product else None
    if cap is not None:
        # tanh(scores f) cap is a soft cap of the scores times f cap.
        scale *= _factor(product, "1/cap") * cap
    if cap is not None and cap <= 0:
        return None
    query, value = product["q"], m["v"]
    key = at.add("permute", product["k"], axes=(0, 1, 3, 2))
    others = terms[:index] + terms[index + 1 :]
    bias = others[:1]
    for other in others[1:]:
        bias = [at.add("add", *bias, other)]
    return at.add("attention", query, key, value, *bias, scale=scale, mask="full", softcap=cap)


def _is_attention(m: Match, product: Match) -> bool:
    """Query [b, h, s, d], transposed key [b, h, d, n] and value [b, h, n, e]; the heads are a number."""
    query, key, value = product["q"].type.shape, product["k"].type.shape, m["v"].type.shape
    if not len(query) == len(key) == len(value) == 4 or m["scores"].type.shape != (*query[:3], key[3]):
        return False
    return isinstance(query[1], int) and query[:2] == key[:2] == value[:2] and query[3] == key[2] and key[3] == value[2]


SCORES: tuple[Rule, ...] = (_softmax_attention,)
