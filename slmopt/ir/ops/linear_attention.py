"""Linear attention: a feature map in place of the softmax, and a state of one matrix per head in place of a cache."""

from __future__ import annotations

from typing import Any

from slmopt.errors import IRError, UnsupportedError
from slmopt.ir.dims import Dim, dim_symbols, product
from slmopt.ir.graph import Op, operand_type
from slmopt.ir.linking import AxisLinker
from slmopt.ir.ops.attention import couple_heads
from slmopt.ir.spec import OpSpec
from slmopt.ir.step import StepBuilder
from slmopt.ir.types import DType, TensorType

__all__ = ["FEATURES", "LEAST", "SPECS"]

FEATURES = ("elu1",)  # names of feature maps: "elu1" is elu(x) + 1
LEAST = 1e-30  # what divides is at least so much: where all features are 0 the result is


def _linear_attention(op: Op) -> TensorType | tuple[TensorType, ...]:
    query, key, value = (operand_type(o) for o in op.operands[:3])
    if not query.rank == key.rank == value.rank == 4:
        raise IRError("query, key and value must have 4 axes [batch, heads, positions, size]")
    (b, heads, s, size), groups = query.shape, key.shape[1]
    fits = key.shape == (b, groups, s, size) and value.shape[:3] == key.shape[:3]
    if not fits or not isinstance(heads, int) or not isinstance(groups, int) or heads % groups:
        expected = "q [b, h, s, d], k [b, g, s, d], v [b, g, s, e], h divisible by g"
        raise IRError(f"expected {expected}; got {query}, {key}, {value}")
    if op.attributes["feature"] not in FEATURES:
        known = ", ".join(f'"{name}"' for name in FEATURES)
        raise IRError(f"feature must be one of {known}, got {op.attributes['feature']!r}")
    result = TensorType(DType.f32, (b, heads, s, value.shape[3]))
    given = [None if o is None else operand_type(o) for o in (*op.operands[3:], None, None)[:2]]
    if given == [None, None]:
        return result
    states = TensorType(DType.f32, (b, groups, size, value.shape[3])), TensorType(DType.f32, (b, groups, size))
    if given != list(states):
        raise IRError(f"expected state {states[0]} with normalizer {states[1]}, or neither; got {given[0]}, {given[1]}")
    return (result, *states)


def _linear_attention_reference(
    op: Op, query: Any, key: Any, value: Any, state: Any = None, normalizer: Any = None
) -> Any:  # fmt: skip
    """Over the positions given as a masked product, quadratic in their number; what came before is in the state."""
    import torch

    b, heads, s, size = query.shape
    groups, width = key.shape[1], value.shape[3]
    value = value.to(query.dtype)
    features = [torch.nn.functional.elu(x) + 1 for x in (query, key.to(query.dtype))]
    q, k = features[0].reshape(b, groups, heads // groups, s, size), features[1]
    weights = q.matmul(k[:, :, None].transpose(-1, -2)).tril()
    above, below = weights.matmul(value[:, :, None]), weights.sum(-1)
    if state is not None:
        state, normalizer = state.to(query.dtype), normalizer.to(query.dtype)
        above = above + q.matmul(state[:, :, None])
        below = below + q.matmul(normalizer[:, :, None, :, None]).squeeze(-1)
    result = (above / below.clamp(min=LEAST)[..., None]).reshape(b, heads, s, width)
    if state is None:
        return result
    return result, state + k.transpose(-1, -2).matmul(value), normalizer + k.sum(2)


def _flops(op: Op) -> Dim:
    """Of each token, a rank-one update of the state of each key head, and a product with it of each query head."""
    query, key, value = (operand_type(o) for o in op.operands[:3])
    b, heads, s, size = query.shape
    return product((b, s, size)) * (heads + key.shape[1]) * (value.shape[3] + 1) * 2


def _mixes(op: Op, symbol: str) -> bool:
    return any(symbol in dim_symbols(operand_type(operand).shape[2]) for operand in op.operands[:3])


def _step(builder: StepBuilder, op: Op, operands: tuple[Any, ...]) -> tuple[Any, ...]:
    """Keep the sums over all positions so far."""
    query, key, value = operands[:3]
    if any(operand is not None for operand in operands[3:]):
        raise UnsupportedError(f"{op.describe()} has a state already, which a step gives it")
    b, groups, _, size = key.type.shape
    state = builder.state("state", TensorType(DType.f32, (b, groups, size, value.type.shape[3])))
    normalizer = builder.state("normalizer", TensorType(DType.f32, (b, groups, size)))
    names = [op.results[0].name, f"{state.name}_next", f"{normalizer.name}_next"]
    result, *following = builder.graph.add(
        "linear_attention", (query, key, value, state, normalizer), op.attributes, location=op.location, hint=names
    ).results
    builder.update(state, following[0])
    builder.update(normalizer, following[1])
    return (result,)


_MEANING = f"""
query is [b, h, s, d], key [b, g, s, d], value [b, g, s, e], the result f32[b, h, s, e]. h is a multiple of g: query
head i reads head i g / h, rounded down, of key and value. With f, `feature`, applied to each number of query and key:

    S[i] = S[i-1] + f(k[i]) v[i]^T    z[i] = z[i-1] + f(k[i])    result[i] = f(q[i]) S[i] / (f(q[i]) . z[i])

(equations 10 to 12 of Katharopoulos et al. 2020, "Transformers are RNNs"). "elu1": f(x) = elu(x) + 1, which is x + 1
where x > 0, else exp(x). What divides counts as {LEAST:g} where it is less. S before the first position is state,
f32[b, g, d, e], and z is normalizer, f32[b, g, d]; absent both are 0, and the op has one result. Where they are given,
the second result is S and the third z after the last position: what a step keeps does not grow with the sequence.
""".strip()
def _couple(axes: AxisLinker, op: Op) -> None:
    query, key, value = op.operands[:3]
    couple_heads(axes, query, key, value)
    for state in (*op.operands[3:], *op.results[1:]):
        axes.link(state, 1, key, 1)
        if state is not None:
            axes.link(state, 2, key, 3)
            if len(axes.shape(state)) > 3:
                axes.link(state, 3, value, 3)


SPECS: tuple[OpSpec, ...] = (
    OpSpec("linear_attention", ("query", "key", "value", "state?", "normalizer?"), _linear_attention,
           _linear_attention_reference,
           "causal attention with weights f(q) . f(k) / sum f(q) . f(k), from a state of one matrix per head",
           {"feature": "elu1"}, flops=_flops, mixes=_mixes, step=_step, couple=_couple, meaning=_MEANING,
           example='%q: f32[b, 8, s, 16], %k: f32[b, 2, s, 16], %v: f32[b, 2, s, 16] -> linear_attention(%q, %k, %v) '
                   '{feature = "elu1"} : f32[b, 8, s, 16]'),
)  # fmt: skip
