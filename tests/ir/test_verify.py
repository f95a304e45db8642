"""Each rule of the verifier, with a graph that breaks it; what passes does the messages quote."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings

from slmopt.errors import IRError
from slmopt.ir.dims import symbol
from slmopt.ir.graph import Graph, Module, Op, Use, Value, Weight
from slmopt.ir.text import parse_module
from slmopt.ir.types import tensor
from slmopt.ir.verify import verify, verify_graph
from slmopt.testing import modules

TEXT = """module @toy {
  graph @forward(%x: f32[b, 8]) {
    %g = silu(%x) : f32[b, 8] loc("mlp.act")
    %y = linear(%g, weight @w : f32[4, 8]) {activation = none, act = none} : f32[b, 4] loc("mlp.down")
    return %y
  }
  graph @step(%x: f32[b, 8], state %s: f32[b, 8]) {
    %n = add(%x, %s) : f32[b, 8]
    return %n, %n
  }
}
"""


def _op(module: Module, name: str) -> Op:
    return next(op for graph in module.graphs.values() for op in graph.walk() if op.name == name)


def test_a_sound_module_passes() -> None:
    module = parse_module(TEXT)
    verify(module)
    module.weights.add_tensor("w", torch.zeros(4, 8))
    verify(module, weights=True)


@settings(max_examples=50, deadline=None)
@given(modules(executable=False))
def test_random_modules_and_their_copies_pass(module: Module) -> None:
    verify(module)
    verify(module.copy())


def _wrong_result_type(module: Module) -> None:
    _op(module, "silu").result.type = tensor("f32", "b", 9)


def _used_before_defined(module: Module) -> None:
    silu, linear = _op(module, "silu"), _op(module, "linear")
    graph = module.graph()
    late = graph.add("relu", [graph.inputs[0]], after=linear).result
    silu.set_operand(0, late)


def _erased_operand(module: Module) -> None:
    silu = _op(module, "silu")
    relu = module.graph().add("relu", [module.graph().inputs[0]], before=silu)
    silu.set_operand(0, relu.result)
    relu.result.uses.clear()
    module.graph().erase(relu)


def _force_operand(op: Op, operand: Value) -> None:
    """Read a value that `set_operand` refuses."""
    op.value(0).uses.remove(Use(op, 0))
    op._operands[0] = operand
    operand.uses.append(Use(op, 0))


def _value_of_another_graph(module: Module) -> None:
    _force_operand(_op(module, "silu"), module.graph("step").inputs[0])


def _result_of_another_graph(module: Module) -> None:
    _force_operand(_op(module, "silu"), _op(module, "add").result)


def _too_many_operands(module: Module) -> None:
    _op(module, "silu").append_operand(module.graph().inputs[0])


def _absent_operand(module: Module) -> None:
    _op(module, "linear").set_operand(1, None)


def _not_an_operand(module: Module) -> None:
    _op(module, "silu")._operands[0] = "x"  # type: ignore[call-overload]


def _unlisted_use(module: Module) -> None:
    module.graph().inputs[0].uses.clear()


def _use_that_is_none(module: Module) -> None:
    silu, linear = _op(module, "silu"), _op(module, "linear")
    module.graph().inputs[0].uses.extend(linear.value(0).uses)
    assert silu.results


def _missing_attribute(module: Module) -> None:
    del _op(module, "linear").attributes["act"]


def _unknown_attribute(module: Module) -> None:
    _op(module, "linear").attributes["bits"] = 4


def _name_twice(module: Module) -> None:
    _op(module, "silu").result.name = "x"


def _undefined_output(module: Module) -> None:
    module.graph().set_outputs([Value("ghost", tensor("f32", "b", 8))])


def _too_many_states(module: Module) -> None:
    module.graph("step").states = 3


def _state_of_another_type(module: Module) -> None:
    graph = module.graph("step")
    narrow = graph.add("cast", [graph.inputs[0]], {"element": "f16"}).result
    graph.set_outputs([graph.inputs[0], narrow])


def _graph_under_another_name(module: Module) -> None:
    module.graphs["other"] = module.graph("step")


def _weight_of_two_types(module: Module) -> None:
    graph = module.graph()
    graph.add("rms_norm", [graph.inputs[0], Weight("w", tensor("f32", 8))], {"eps": 1e-6})


def _stored_type_differs(module: Module) -> None:
    module.weights.add_tensor("w", torch.zeros(4, 8, dtype=torch.float16))


def _wrong_result_index(module: Module) -> None:
    _op(module, "silu").result.index = 1


def _missing_result(module: Module) -> None:
    silu = _op(module, "silu")
    silu.results = (silu.result, Value("extra", tensor("f32", "b", 8), silu, 1))


def _input_that_is_a_result(module: Module) -> None:
    module.graph().inputs[0].op = _op(module, "linear")


def _size_of_no_input(module: Module) -> None:
    module.graph().add("full", [], {"shape": (symbol("z"), 2), "value": 0.0, "element": "f32"})


def _size_of_no_input_in_an_attribute(module: Module) -> None:
    module.graph().add("dimension", [], {"value": symbol("n") + 1})


def _attribute_of_another_kind(module: Module) -> None:
    graph = module.graph()
    graph.add("rms_norm", [graph.inputs[0]], {"eps": 1e-6})
    _op(module, "rms_norm").attributes["eps"] = "small"


def _metadata_that_is_no_json(module: Module) -> None:
    module.metadata["made"] = object()


def _metadata_that_changes(module: Module) -> None:
    module.metadata["eos_token_ids"] = (1, 2)


@pytest.mark.parametrize(
    ("breaks", "message"),
    [
        (_wrong_result_type, r"%g = silu \(at mlp.act\): %g has type f32\[b, 9\], its operands give f32\[b, 8\]"),
        (_used_before_defined, r"%g = silu \(at mlp.act\): operand 0, %relu, is used before it is defined"),
        (_erased_operand, r"%g = silu .*operand 0, %relu, is the result of %relu = relu, which was erased"),
        (_value_of_another_graph, "operand 0, %x, is an input of another graph than @forward"),
        (_result_of_another_graph, "operand 0, %n, is the result of an op of graph @step"),
        (_too_many_operands, r"silu \(at mlp.act\) takes \(x\), got 2 operands"),
        (_absent_operand, r"linear \(at mlp.down\): operand 'weight' is absent"),
        (_not_an_operand, "operand 0 is 'x', expected a value, a weight or none"),
        (_unlisted_use, "%x does not list this op among its uses"),
        (_use_that_is_none, "%x lists a use that is none: %y = linear"),
        (_missing_attribute, r"%y = linear \(at mlp.down\): attribute 'act' is missing"),
        (_unknown_attribute, r"linear \(at mlp.down\) has no attribute 'bits'"),
        (_name_twice, "%x is defined twice, by an input and by %x = silu"),
        (_undefined_output, "output 0, %ghost, is an input of another graph"),
        (_too_many_states, "graph @step has 3 states, but 2 inputs and 2 outputs"),
        (_state_of_another_type, r"state %s: f32\[b, 8\] is followed by %cast: f16\[b, 8\]"),
        (_graph_under_another_name, "under the name @other calls itself @step"),
        (_weight_of_two_types, r"weight @w is f32\[4, 8\] in .*linear.* but f32\[8\] in .*rms_norm.*one type"),
        (_stored_type_differs, r"weight @w is named as f32\[4, 8\], the store has f16\[4, 8\]"),
        (_wrong_result_index, "does not know that it is result 0"),
        (_missing_result, r"%g, %extra = silu \(at mlp.act\): 2 results, expected 1"),
        (_size_of_no_input, "%full = full: the size 'z' is in no input's shape; sizes of inputs are b"),
        (_size_of_no_input_in_an_attribute, "%dimension = dimension: the size 'n' is in no input's shape"),
        (_attribute_of_another_kind, "%rms_norm = rms_norm: attribute eps = 'small', expected float"),
        (_metadata_that_is_no_json, "module @toy: metadata is not JSON"),
        (_metadata_that_changes, "module @toy: metadata does not survive JSON"),
        (_input_that_is_a_result, "input %x is the result of %y = linear"),
    ],
)
def test_a_broken_rule_is_named_with_its_place(breaks: Callable[[Module], None], message: str) -> None:
    module = parse_module(TEXT)
    breaks(module)
    with pytest.raises(IRError, match=message):
        verify(module)


def test_a_missing_weight_counts_only_where_weights_are_required() -> None:
    module = parse_module(TEXT)
    verify(module)
    with pytest.raises(IRError, match="weight @w is not in the store"):
        verify(module, weights=True)


def test_an_empty_graph_passes() -> None:
    verify_graph(Graph("empty"))


def test_a_constant_of_truth_is_true_or_false() -> None:
    def check(value: str, element: str) -> None:
        full = f'full() {{shape = [s], value = {value}, element = "{element}"}} : {element}[s]'
        verify(parse_module(f"module @m {{ graph @f(%x: f32[s]) {{ %t = {full} return %t }} }}"))

    check("true", "bool")
    check("1", "bool")
    with pytest.raises(IRError, match="attribute value = True, expected float"):
        check("true", "f32")
