"""Patterns and the greedy driver."""

from __future__ import annotations

import pytest

from slmopt.errors import IRError
from slmopt.ir.graph import Module, Value, Weight
from slmopt.ir.text import parse_module
from slmopt.rewrite import (
    Match,
    Pattern,
    Rewriter,
    Rule,
    any_,
    constant,
    derive_weight,
    either,
    match,
    on_last_axis,
    op,
    rewrite,
    rule,
    weight,
)
from tests.passes.golden import body_of


def module_of(body: str, signature: str = "%x: f32[b, s, 8], %y: f32[b, s, 8]") -> Module:
    return parse_module(f"module @m {{\n graph @forward({signature}) {{\n{body}\n }}\n}}")


def found_in(pattern: Pattern, body: str) -> Match | None:
    """The match of a pattern with what a graph returns."""
    return match(module_of(body).graph().outputs[0], pattern)


# --- patterns ------------------------------------------------------------------------------------------------------
SIGMOID_OF_X = "%g = sigmoid(%x) : f32[b, s, 8]\n"
SILU = op("mul", any_("x"), op("sigmoid", any_("x")))


@pytest.mark.parametrize("operands", ["%x, %g", "%g, %x"])
def test_commutative_op_matches_in_both_orders(operands: str) -> None:
    found = found_in(SILU, f"{SIGMOID_OF_X}%r = mul({operands}) : f32[b, s, 8]\nreturn %r")
    assert found is not None
    assert found.value("x").name == "x"
    assert found.root.name == "mul"


def test_other_ops_match_in_one_order() -> None:
    pattern = op("sub", any_("x"), op("sigmoid", any_("x")))
    assert found_in(pattern, f"{SIGMOID_OF_X}%r = sub(%x, %g) : f32[b, s, 8]\nreturn %r") is not None
    assert found_in(pattern, f"{SIGMOID_OF_X}%r = sub(%g, %x) : f32[b, s, 8]\nreturn %r") is None


def test_name_must_bind_one_operand() -> None:
    assert found_in(SILU, f"{SIGMOID_OF_X}%r = mul(%y, %g) : f32[b, s, 8]\nreturn %r") is None


def test_matching_backtracks_out_of_nested_commutative_ops() -> None:
    body = """
        %a = add(%x, %y) : f32[b, s, 8]
        %t = tanh(%y) : f32[b, s, 8]
        %r = mul(%a, %t) : f32[b, s, 8]
        return %r
    """
    # The first way to match the sum binds "u" to x, which the tanh refuses.
    found = found_in(op("mul", op("add", any_("u"), any_("v")), op("tanh", any_("u"))), body)
    assert found is not None
    assert (found.value("u").name, found.value("v").name) == ("y", "x")


@pytest.mark.parametrize(
    ("value", "tolerance", "matches"),
    [(0.79788456, 1e-6, True), (0.7978, 1e-6, False), (0.79788456, 0.0, False), (0.7978845608028654, 0.0, True)],
)
def test_constants_match_within_a_tolerance(value: float, tolerance: float, matches: bool) -> None:
    body = f"""
        %c = constant() {{value = {value}, element = "f32"}} : f32[]
        %r = mul(%x, %c) : f32[b, s, 8]
        return %r
    """
    found = found_in(op("mul", any_(), constant(0.7978845608028654, "c", tolerance)), body)
    assert (found is not None) == matches
    assert found is None or found.number("c") == value


def test_full_is_a_constant() -> None:
    body = '%c = full() {shape = [b, s, 8], value = 2.0, element = "f32"} : f32[b, s, 8]\n'
    assert found_in(op("add", any_("x"), constant(2)), f"{body}%r = add(%x, %c) : f32[b, s, 8]\nreturn %r") is not None


def test_once_refuses_a_value_that_is_read_elsewhere() -> None:
    twice = f"{SIGMOID_OF_X}%r = mul(%g, %g) : f32[b, s, 8]\nreturn %r"
    single = f"{SIGMOID_OF_X}%r = mul(%g, %y) : f32[b, s, 8]\nreturn %r"
    pattern = op("mul", op("sigmoid", any_("x"), once=True), any_())
    assert found_in(pattern, twice) is None
    assert found_in(pattern, single) is not None


def test_attributes_must_be_equal_and_where_may_refuse() -> None:
    body = "%r = softmax(%x) {axis = 2} : f32[b, s, 8]\nreturn %r"
    assert found_in(op("softmax", any_(), axis=2), body) is not None
    assert found_in(op("softmax", any_(), axis=1), body) is None
    assert found_in(op("softmax", any_(), where=on_last_axis), body) is not None
    assert found_in(op("softmax", any_(), where=on_last_axis), body.replace("axis = 2", "axis = 1")) is None
    assert found_in(op("softmax", any_(), where=on_last_axis), body.replace("axis = 2", "axis = -1")) is not None


NORM = "%r = rms_norm(%x, weight @w : f32[8]) {eps = 1e-06} : f32[b, s, 8]\nreturn %r"


def test_operands_left_out_must_be_absent_unless_the_pattern_is_open() -> None:
    assert found_in(op("rms_norm", any_("x")), NORM) is None
    assert found_in(op("rms_norm", any_("x"), ...), NORM) is not None
    found = found_in(op("rms_norm", any_("x"), weight("w")), NORM)
    assert found is not None
    assert found.weight("w").key == "w"
    assert found_in(op("rms_norm", any_("x"), ...), NORM.replace(", weight @w : f32[8]", "")) is not None


def test_open_pattern_matches_any_number_of_operands() -> None:
    body = "%r = concat(%x, %y, %x) {axis = 2} : f32[b, s, 24]\nreturn %r"
    assert found_in(op("concat", ...), body) is not None
    assert found_in(op("concat", any_("x"), any_("y")), body) is None


def test_either_tries_in_order_and_op_takes_several_names() -> None:
    body = "%r = tanh(%x) : f32[b, s, 8]\nreturn %r"
    assert found_in(either(op("exp", any_()), op("tanh", any_("x"))), body) is not None
    assert found_in(op(("exp", "tanh"), any_("x"), bind="f"), body) is not None
    assert found_in(op(("exp", "log"), any_("x")), body) is None


def test_any_may_refuse_an_operand() -> None:
    assert found_in(op("rms_norm", any_("x"), any_("w", lambda operand: isinstance(operand, Value))), NORM) is None
    assert found_in(op("rms_norm", any_("x"), any_("w", lambda operand: isinstance(operand, Weight))), NORM) is not None


def test_match_names_what_it_was_asked_for_wrongly() -> None:
    found = found_in(op("rms_norm", any_("x"), weight("w")), NORM)
    assert found is not None
    with pytest.raises(IRError, match="weight, not to a value"):
        found.value("w")
    with pytest.raises(IRError, match="value, not to a weight"):
        found.weight("x")
    with pytest.raises(IRError, match="operand, not to a number"):
        found.number("x")


# --- the driver ----------------------------------------------------------------------------------------------------
SILU_RULE = Rule("silu", SILU, lambda at, m: at.add("silu", m["x"]))
NEG_NEG = Rule("neg", op("neg", op("neg", any_("x"))), lambda at, m: m["x"])


def test_rules_are_applied_until_none_matches_and_counted() -> None:
    chain = "\n".join(f"%n{i} = neg(%{'x' if i == 0 else f'n{i - 1}'}) : f32[b, s, 8]" for i in range(7))
    module = module_of(f"{chain}\n%g = sigmoid(%n6) : f32[b, s, 8]\n%r = mul(%n6, %g) : f32[b, s, 8]\nreturn %r")
    assert rewrite(module, [SILU_RULE, NEG_NEG]) == {"silu": 1, "neg": 3}
    assert [made.name for made in module.graph().walk()] == ["neg", "silu"]
    assert rewrite(module, [SILU_RULE, NEG_NEG]) == {}


def test_replacement_takes_over_name_and_place_and_what_is_unread_goes() -> None:
    module = module_of("""
        %act_sigmoid = sigmoid(%x) : f32[b, s, 8] loc("mlp.act")
        %act = mul(%x, %act_sigmoid) : f32[b, s, 8] loc("mlp.act")
        return %act
    """)
    rewrite(module, [SILU_RULE])
    assert body_of(module.graph()) == '%act = silu(%x) : f32[b, s, 8] loc("mlp.act")\nreturn %act'


def test_name_that_says_the_op_says_the_new_one() -> None:
    module = module_of("""
        %attn_sigmoid = sigmoid(%x) : f32[b, s, 8]
        %attn_mul_2 = mul(%x, %attn_sigmoid) : f32[b, s, 8]
        return %attn_mul_2
    """)
    rewrite(module, [SILU_RULE])
    assert module.graph().outputs[0].name == "attn_silu"


def test_what_others_read_stays() -> None:
    module = module_of(f"{SIGMOID_OF_X}%r = mul(%x, %g) : f32[b, s, 8]\nreturn %r, %g")
    rewrite(module, [SILU_RULE])
    assert [made.name for made in module.graph().walk()] == ["sigmoid", "silu"]


def test_ops_of_a_rule_that_declines_leave_no_trace() -> None:
    def declines(at: Rewriter, m: Match) -> None:
        at.add("tanh", at.add("exp", m["x"]))

    module = module_of("%r = neg(%x) : f32[b, s, 8]\nreturn %r")
    assert rewrite(module, [Rule("never", op("neg", any_("x")), declines)]) == {}
    assert [made.name for made in module.graph().walk()] == ["neg"]


def test_replacement_of_another_type_is_an_error_that_names_the_rule() -> None:
    module = module_of('%r = neg(%x) : f32[b, s, 8] loc("mlp")\nreturn %r')
    bad = Rule("bad rule", op("neg", any_("x")), lambda at, m: at.add("cast", m["x"], element="f16"))
    with pytest.raises(IRError, match=r"'bad rule' replaces %r = neg \(at mlp\): f32\[b, s, 8\] by f16\[b, s, 8\]"):
        rewrite(module, [bad])


def test_rules_that_undo_each_other_are_an_error() -> None:
    module = module_of("%r = exp(%x) : f32[b, s, 8]\nreturn %r")
    there = Rule("there", op("exp", any_("x")), lambda at, m: at.add("tanh", m["x"]))
    back = Rule("back", op("tanh", any_("x")), lambda at, m: at.add("exp", m["x"]))
    with pytest.raises(IRError, match="never end"):
        rewrite(module, [there, back])


def test_rule_needs_an_op_at_its_root() -> None:
    with pytest.raises(IRError, match="must begin with an op"):
        rewrite(module_of("return %x"), [Rule("any", any_("x"), lambda at, m: None)])


def test_dots_come_last() -> None:
    with pytest.raises(IRError, match="comes last"):
        op("linear", ..., any_("x"))


def test_every_graph_of_a_module_is_rewritten() -> None:
    text = "graph @{}(%x: f32[b, s, 8]) {{ %a = neg(%x) : f32[b, s, 8] %r = neg(%a) : f32[b, s, 8] return %r }}"
    module = parse_module(f"module @m {{ {text.format('forward')} {text.format('step')} }}")
    assert rewrite(module, [NEG_NEG]) == {"neg": 2}


def test_weight_can_replace_a_value_that_ops_read() -> None:
    @rule("transposed", op("permute", weight("w")))
    def transposed(at: Rewriter, m: Match) -> Weight | None:
        return at.derive(m.weight("w"), "transposed", lambda w: w.T, type=m.root.result.type)

    body = "%t = permute(weight @w : f32[8, 4]) {axes = [1, 0]} : f32[4, 8]\n"
    module = module_of(f"{body}%r = linear(%x, %t) : f32[b, s, 4]\nreturn %r")
    assert rewrite(module, [transposed]) == {}  # nothing is stored under @w
    import torch

    module.weights.add_tensor("w", torch.arange(32.0).reshape(8, 4))
    assert rewrite(module, [transposed]) == {"transposed": 1}
    key = module.graph().outputs[0].op.operands[1].key  # type: ignore[union-attr]
    assert torch.equal(module.weights.load(key), torch.arange(32.0).reshape(8, 4).T)


def test_equal_derivations_share_a_key_and_others_do_not() -> None:
    import torch

    module = module_of("return %x")
    module.weights.add_tensor("w", torch.ones(2, 3))
    type = module.weights.type("w")
    first = derive_weight(module, "w.scaled", ("w",), type, "2 @w", lambda w: 2 * w)
    again = derive_weight(module, "w.scaled", ("w",), type, "2 @w", lambda w: 2 * w)
    other = derive_weight(module, "w.scaled", ("w",), type, "3 @w", lambda w: 3 * w)
    assert (first.key, again.key, other.key) == ("w.scaled", "w.scaled", "w.scaled.2")
    assert module.weights.load(other.key).sum() == 18
