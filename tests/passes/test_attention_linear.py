"""The pass `attention-linear` and its op: the equations of the paper, a state that does not grow, gradients."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from slmopt.errors import InputError, IRError, UnsupportedError
from slmopt.interpreter import forward, run, step_through
from slmopt.ir import Graph, tensor
from slmopt.ir.text import parse_module
from slmopt.layers import Layers
from slmopt.ledger import measure_size
from slmopt.options import build_pass
from slmopt.passes.attention.attention_linear import AttentionLinear
from slmopt.passes.attention.attention_window import AttentionWindow
from slmopt.passes.incrementalize import Incrementalize
from slmopt.pipeline import Pipeline
from tests.passes.golden import body_of, check_untouched
from tests.passes.test_attention_window import QKV, layered, plain
from tests.passes.test_incrementalize import attention, ids_of
from tests.passes.toys import IDS, apply, relative_error, toy


def recurrent(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Equations 10 to 12 of Katharopoulos et al., position by position."""
    group = q.shape[1] // k.shape[1]
    q, k = (torch.where(x > 0, x + 1, x.exp()) for x in (q, k))
    k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
    state, normalizer = torch.zeros(*k.shape[:2], k.shape[3], v.shape[3]), torch.zeros(*k.shape[:2], k.shape[3])
    found = []
    for i in range(q.shape[2]):
        state = state + k[:, :, i, :, None] * v[:, :, i, None, :]
        normalizer = normalizer + k[:, :, i]
        above = (q[:, :, i, None, :] @ state)[:, :, 0]
        found.append(above / (q[:, :, i] * normalizer).sum(-1, keepdim=True))
    return torch.stack(found, 2)


# --- the rewrite -----------------------------------------------------------------------------------------------------
def test_golden() -> None:
    module = toy(plain(", window = 5, softcap = 3.0"), signature=QKV)
    found, changes = apply(module, AttentionLinear())
    assert changes == {"attention": 1}
    assert body_of(found.graph()) == (
        '  %a = linear_attention(%q, %k, %v) {feature = "elu1"} : f32[b, 4, s, 8]\nreturn %a'
    ).strip()
    assert apply(found, AttentionLinear())[1] == {}


def test_it_computes_the_equations_of_the_paper() -> None:
    module, _ = apply(toy(plain(), signature=QKV), AttentionLinear())
    q, k, v = (torch.randn(2, heads, 9, 8, generator=torch.Generator().manual_seed(heads)) for heads in (4, 2, 2))
    assert relative_error(run(module, "forward", [q, k, v])[0], recurrent(q, k, v)) < 1e-6


@pytest.mark.parametrize(
    ("options", "operands", "signature"),
    [
        (', mask = "full"', "", QKV),
        (", chunk = 4", "", QKV),
        ("", ", _, %p", f"{QKV}, %p: i64[]"),
        ("", "", QKV.replace("2, s, 8", "2, 7, 8")),
        ("", ", %bias", f"{QKV}, %bias: f32[1, 1, s, s]"),
        ("", ", _, _, weight @slopes : f32[4]", QKV),
        ("", ", _, _, _, weight @sinks : f32[4]", QKV),
    ],
)
def test_other_attention_stays_as_it_is(options: str, operands: str, signature: str) -> None:
    check_untouched(AttentionLinear(), plain(options, operands), signature)


def test_layers_keep_their_numbers_when_others_were_replaced() -> None:
    module = toy(layered("", "", "", ""), signature=IDS)
    found, _ = apply(module, AttentionLinear(layers=Layers("1")), AttentionWindow(layers=Layers("0,2")))
    found, changes = apply(found, AttentionLinear(layers=Layers("1-2")))
    assert changes == {"attention": 1}
    mixers = [op for op in found.graph().walk() if "attention" in op.name]
    assert [(op.name, op.attributes.get("window")) for op in mixers] == [
        ("attention", 128), ("linear_attention", None), ("linear_attention", None), ("attention", None)
    ]  # fmt: skip


# --- what a user may get wrong ---------------------------------------------------------------------------------------
def test_wrong_options_are_errors() -> None:
    assert build_pass('attention-linear{feature=elu1, layers="1,2"}', lambda name: AttentionLinear) == AttentionLinear(
        layers=Layers("1,2")
    )
    with pytest.raises(InputError, match=r"feature.*elu1"):
        build_pass("attention-linear{feature=relu}", lambda name: AttentionLinear)
    with pytest.raises(InputError, match="there is no layer 9"):
        apply(toy(layered("", ""), signature=IDS), AttentionLinear(layers=Layers("9")))


def test_layers_that_cannot_be_linear_are_named() -> None:
    module = toy(attention(tail=", _, _, weight @slopes : f32[4]"), 0, IDS)
    with pytest.raises(UnsupportedError, match=r"attention-linear: layer 0: %a = attention .* grows with the distance"):
        apply(module, AttentionLinear(layers=Layers("0")))
    stepped, _ = apply(toy(attention(), 0, IDS), Incrementalize())
    with pytest.raises(UnsupportedError, match="put attention-linear before incrementalize"):
        AttentionLinear().run(stepped, None)  # type: ignore[arg-type]


def test_wrong_operands_are_errors() -> None:
    graph = Graph("g")
    q, k, v, short, state = (
        graph.add_input(name, tensor("f32", *shape)) for name, shape in
        {"q": (1, 4, 5, 8), "k": (1, 2, 5, 8), "v": (1, 2, 5, 6), "short": (1, 2, 4, 8), "state": (1, 2, 8, 6)}.items()
    )  # fmt: skip
    with pytest.raises(IRError, match=r"expected q \[b, h, s, d\], k \[b, g, s, d\], v \[b, g, s, e\]"):
        graph.add("linear_attention", [q, short, v])
    with pytest.raises(IRError, match=r"expected state f32\[1, 2, 8, 6\] with normalizer f32\[1, 2, 8\], or neither"):
        graph.add("linear_attention", [q, k, v, state])
    with pytest.raises(IRError, match='feature must be one of "elu1"'):
        graph.add("linear_attention", [q, k, v], {"feature": "relu"})


# --- the state -------------------------------------------------------------------------------------------------------
@given(st.lists(st.integers(1, 9), min_size=1, max_size=5), st.integers(1, 3), st.integers(0, 99))
@settings(deadline=None, max_examples=40)
def test_step_over_the_parts_is_forward_over_the_whole(parts: list[int], batch: int, seed: int) -> None:
    module, _ = apply(toy(attention(), seed, IDS), AttentionLinear(), Incrementalize())
    ids = ids_of(batch, sum(parts), seed)
    assert relative_error(step_through(module, ids, parts), forward(module, ids)) < 1e-4
    assert relative_error(step_through(module, ids, parts, wide=True, rounded=False), forward(module, ids)) < 1e-4


def test_the_state_is_a_matrix_and_a_vector_per_head_of_keys() -> None:
    module = toy(attention(), 0, IDS)
    Pipeline([AttentionLinear(), Incrementalize("q8")]).run(module)
    step = module.graph("step")
    assert [str(value.type) for value in step.inputs[2:]] == ["f32[b, 2, 8, 8]", "f32[b, 2, 8]"]
    assert measure_size(module).state_bytes_per_token == 0
    assert parse_module(str(module)).graph("step") == step
    (op,) = [op for op in step.walk() if op.name == "linear_attention"]
    assert str(op.spec.cost(op).flops) == "864*b*t"  # 2 (4 + 2) 8 (8 + 1)


def test_gradients_flow_through_the_reference() -> None:
    """Every number of queries, keys and values has the gradient that differences give."""
    graph = Graph("g")
    shapes = ((1, 2, 4, 3), (1, 1, 4, 3), (1, 1, 4, 2))
    values = [graph.add_input(name, tensor("f32", *shape)) for name, shape in zip("qkv", shapes, strict=True)]
    op = graph.add("linear_attention", values)
    torch.manual_seed(0)
    inputs = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]
    assert torch.autograd.gradcheck(lambda *tensors: op.spec.reference(op, *tensors), inputs)


def test_the_reference_is_traced_without_python_choices() -> None:
    """A backend may export it: with and without a state, for any number of tokens."""
    module, _ = apply(toy(attention(), 0, IDS), AttentionLinear(), Incrementalize())
    (op,) = [op for op in module.graph("step").walk() if op.name == "linear_attention"]

    class Step(torch.nn.Module):
        def forward(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
            found: tuple[torch.Tensor, ...] = op.spec.reference(op, *tensors)
            return found

    def inputs(tokens: int) -> tuple[torch.Tensor, ...]:
        shapes = ((1, 4, tokens, 8), (1, 2, tokens, 8), (1, 2, tokens, 8), (1, 2, 8, 8), (1, 2, 8))
        return tuple(torch.randn(shape).abs() for shape in shapes)

    tokens = torch.export.Dim("t", min=2, max=64)
    exported = torch.export.export(Step(), inputs(5), dynamic_shapes=((*[{2: tokens}] * 3, None, None),))
    given = inputs(9)
    for found, expected in zip(exported.module()(*given), Step()(*given), strict=True):
        assert relative_error(found, expected) < 1e-6
