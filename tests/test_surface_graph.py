"""Editing graphs: cursors, derived weights, and the errors of misuse."""

from __future__ import annotations

import pytest
import torch

from slmopt.errors import IRError
from slmopt.ir.graph import Module, Op, Weight
from slmopt.ir.text import parse_module
from slmopt.ir.verify import verify
from tests.passes.golden import body_of

TEXT = """module @m {
  graph @forward(%x: f32[b, 8]) {
    %up = linear(%x, weight @w : f32[8, 8]) : f32[b, 8] loc("mlp.up")
    %act = silu(%up) : f32[b, 8] loc("mlp.act")
    return %act
  }
  graph @other(%y: f32[b, 8]) {
    %n = neg(%y) : f32[b, 8]
    return %n
  }
}
"""


def module() -> Module:
    return parse_module(TEXT)


def op_of(found: Module, name: str, graph: str = "forward") -> Op:
    made_by = found.graph(graph).value(name).op
    assert made_by is not None
    return made_by


# --- cursors ---------------------------------------------------------------------------------------------------------
def test_after_an_op_in_order_with_its_place() -> None:
    found = module()
    graph, up = found.graph(), op_of(found, "up")
    at = graph.after(up)
    scaled = at.add("mul", at.add("exp", up.result), at.constant(0.5, up.result))
    graph.replace_uses(up.result, scaled, but=at.created[0])
    verify(found)
    assert body_of(graph) == """\
%up = linear(%x, weight @w : f32[8, 8]) {activation = none, act = none} : f32[b, 8] loc("mlp.up")
%up_exp = exp(%up) : f32[b, 8] loc("mlp.up")
%up_constant = constant() {value = 0.5, element = "f32"} : f32[] loc("mlp.up")
%up_mul = mul(%up_exp, %up_constant) : f32[b, 8] loc("mlp.up")
%act = silu(%up_mul) : f32[b, 8] loc("mlp.act")
return %act"""
    assert [made.name for made in at.created] == ["exp", "constant", "mul"]


def test_before_an_op_and_at_the_end() -> None:
    found = module()
    graph, act = found.graph(), op_of(found, "act")
    at = graph.before(act)
    first = at.add("exp", act.value(0))
    at.add("neg", first)
    assert [made.name for made in graph.walk()] == ["linear", "exp", "neg", "silu"]
    end = graph.end()
    last = end.again(act, end.add("tanh", act.result))
    graph.set_outputs([last])
    assert [made.name for made in graph.walk()][-2:] == ["tanh", "silu"]
    assert last.op is not None and last.op.location == "" and last.name == "silu"
    verify(found)


def test_again_changes_the_attributes_that_are_given() -> None:
    found = module()
    up = op_of(found, "up")
    again = found.graph().after(up).again(up, *up.operands, activation="silu")
    assert again.op is not None and again.op.attributes == {**up.attributes, "activation": "silu"}


# --- misuse ----------------------------------------------------------------------------------------------------------
def test_erased_ops_are_named() -> None:
    found = module()
    graph, act = found.graph(), op_of(found, "act")
    gone = graph.before(act).add_op("exp", act.value(0))
    graph.erase(gone)
    for misuse in (
        lambda: graph.before(gone), lambda: graph.erase(gone), lambda: graph.replace(gone, act.value(0)),
        lambda: graph.move(gone, before=act), lambda: gone.set_operand(0, act.value(0)),
    ):  # fmt: skip
        with pytest.raises(IRError, match=r"%act_exp = exp \(at mlp.act\) was erased"):
            misuse()
    with pytest.raises(IRError, match=r"neg cannot read %act_exp: .* was erased"):
        graph.add("neg", [gone.result])
    with pytest.raises(IRError, match="what read %act cannot read %act_exp"):
        graph.replace_uses(act.result, gone.result)


def test_a_cursor_whose_op_was_erased_says_so() -> None:
    found = module()
    graph, act = found.graph(), op_of(found, "act")
    at = graph.before(act)
    graph.replace(act, at.add("relu", act.value(0)))
    with pytest.raises(IRError, match="was erased from its graph: look for what replaced it"):
        at.add("exp", graph.outputs[0])


def test_ops_and_values_of_other_graphs_are_named() -> None:
    found = module()
    graph, act, other = found.graph(), op_of(found, "act"), op_of(found, "n", "other")
    with pytest.raises(IRError, match="exp cannot read %n: it is a value of graph @other, not of @forward"):
        graph.end().add("exp", other.result)
    with pytest.raises(IRError, match="exp cannot read %y: it is an input of another graph than @forward"):
        graph.end().add("exp", found.graph("other").inputs[0])
    with pytest.raises(IRError, match="= neg is an op of graph @other, not of @forward"):
        graph.after(other)
    with pytest.raises(IRError, match="neg cannot read %act: it is a value of graph @forward, not of @other"):
        other.set_operand(0, act.result)
    copy = found.copy()
    with pytest.raises(IRError, match="%act: it is a value of a copy of graph @forward: look it up by name"):
        copy.graph().end().add("exp", act.result)
    assert [made.name for made in graph.walk()] == ["linear", "silu"]


def test_an_op_is_no_operand() -> None:
    found = module()
    with pytest.raises(IRError, match="expected a value, a weight or None; an op is read through its result"):
        found.graph().end().add("exp", op_of(found, "act"))  # type: ignore[arg-type]


def test_a_value_that_is_defined_later_is_for_the_verifier() -> None:
    found = module()
    graph, up, act = found.graph(), op_of(found, "up"), op_of(found, "act")
    late = graph.after(act).add("exp", graph.inputs[0])
    graph.replace_uses(up.result, late)
    with pytest.raises(IRError, match=r"%act = silu .* operand 0, %act_exp, is used before it is defined"):
        verify(found)


# --- derived weights -------------------------------------------------------------------------------------------------
def stored() -> tuple[Module, Weight]:
    found = module()
    found.weights.add_tensor("w", torch.arange(64.0).reshape(8, 8))
    weight = op_of(found, "up").operands[1]
    assert isinstance(weight, Weight)
    return found, weight


def test_a_weight_is_derived_in_words() -> None:
    found, w = stored()
    doubled = found.derive(w, "times 2", lambda x: x * 2)
    op_of(found, "up").set_operand(1, doubled)
    verify(found, weights=True)
    assert doubled.key == "w.times_2" and doubled.type == w.type
    assert torch.equal(found.weights.load(doubled.key), torch.arange(64.0).reshape(8, 8) * 2)
    assert found.weights.source(doubled.key).description == "times 2 of @w"
    assert found.derive(w, "times 2", lambda x: x * 2) == doubled  # tied ops stay tied
    product = found.derive([w, doubled], "product", lambda a, b: (a * b)[:2], type=w.type.with_shape(2, 8), suffix="ab")
    assert product.key == "w.ab" and found.weights.load("w.ab").shape == (2, 8)


@pytest.mark.parametrize("factors", [(2, 3), (2.0, 3.0)])
def test_one_description_of_two_computations_is_an_error(factors: tuple[float, float]) -> None:
    found, w = stored()

    def scale(factor: float) -> Weight:
        return found.derive(w, "scaled", lambda x: x * factor)

    first = scale(factors[0])
    assert scale(factors[0]) == first
    with pytest.raises(IRError, match="two derivations are called 'scaled of @w' and compute differently"):
        scale(factors[1])
    with pytest.raises(IRError, match="compute differently"):
        found.derive(w, "scaled", lambda x: x + 1)


def test_nothing_is_derived_from_a_name_alone() -> None:
    found = module()
    weight = op_of(found, "up").operands[1]
    assert isinstance(weight, Weight)
    with pytest.raises(IRError, match="@w: nothing can be derived from it"):
        found.derive(weight, "times 2", lambda x: x * 2)
    with pytest.raises(IRError, match="needs a weight that it is computed from"):
        found.derive([], "zeros", lambda: torch.zeros(1))
