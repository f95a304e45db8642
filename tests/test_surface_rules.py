"""Rules as pass authors write them: declared, with attributes, constants and use counts; and what is wrong is said."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest

from slmopt.errors import IRError
from slmopt.ir.graph import Module, Value
from slmopt.ir.ops import registry
from slmopt.ir.spec import OpSpec
from slmopt.ir.text import parse_module
from slmopt.pipeline import Context
from slmopt.rewrite import (
    Match,
    RewritePass,
    Rewriter,
    Rule,
    any_,
    constant,
    either,
    find_matches,
    match,
    op,
    replace,
    rewrite,
    rule,
    weight,
)
from tests.passes.golden import body_of, check_rewrite, check_untouched

SIGMOID = "%g = sigmoid(%x) : f32[b, s, 64]\n"
SILU = replace("silu", op("mul", any_("x"), op("sigmoid", any_("x"))), op("silu", any_("x")))


def module_of(body: str, signature: str = "%x: f32[b, s, 64], %y: f32[b, s, 64]") -> Module:
    return parse_module(f"module @m {{\n graph @forward({signature}) {{\n{body}\n }}\n}}")


def passes_of(*given: Rule) -> RewritePass:
    @dataclass(frozen=True)
    class Sample(RewritePass):
        """what the rules say"""

        name: ClassVar[str] = "sample"
        rules: ClassVar[Sequence[Rule]] = given

    return Sample()


# --- declared rules --------------------------------------------------------------------------------------------------
def test_a_declared_rule_rewrites() -> None:
    before = f"{SIGMOID}%r = mul(%g, %x) : f32[b, s, 64]\nreturn %r"
    changes = check_rewrite(passes_of(SILU), before, "%r = silu(%x) : f32[b, s, 64]\nreturn %r")
    assert changes == {"silu": 1}
    assert SILU.text == "mul(x, sigmoid(x)) -> silu(x)"


def test_a_declared_rule_leaves_what_is_something_else() -> None:
    other = f"{SIGMOID}%r = mul(%g, %y) : f32[b, s, 64]\nreturn %r"
    check_untouched(passes_of(SILU), other, "%x: f32[b, s, 64], %y: f32[b, s, 64]")


def test_constants_are_built_with_the_element_type_of_their_neighbours() -> None:
    square = replace("square", op("mul", any_("x"), any_("x")), op("pow", any_("x"), constant(2)))
    after = """
        %r_2 = constant() {value = 2.0, element = "f32"} : f32[]
        %r = pow(%x, %r_2) : f32[b, s, 64]
        return %r"""
    check_rewrite(passes_of(square), "%r = mul(%x, %x) : f32[b, s, 64]\nreturn %r", after)
    half = module_of("%c = cast(%x) {element = \"f16\"} : f16[b, s, 64]\n%r = mul(%c, %c) : f16[b, s, 64]\nreturn %r")
    assert rewrite(half, [square]) == {"square": 1}
    assert "constant() {value = 2.0, element = \"f16\"}" in body_of(half.graph())


def test_bound_constants_and_attributes_are_built_again() -> None:
    factor = replace("factor", op("neg", op("mul", any_("x"), constant(name="c"))),
                     op("mul", op("neg", any_("x")), constant(name="c")))  # fmt: skip
    module = module_of("""
        %c = constant() {value = 3.0, element = "f32"} : f32[]
        %m = mul(%x, %c) : f32[b, s, 64]
        %r = neg(%m) : f32[b, s, 64]
        return %r""")
    assert rewrite(module, [factor]) == {"factor": 1}
    assert "value = 3.0" in body_of(module.graph())
    bare = replace("bare", op("rms_norm", any_("x"), weight("w"), eps=any_("eps")),
                   op("mul", op("rms_norm", any_("x"), eps=any_("eps")), weight("w")))  # fmt: skip
    before = "%r = rms_norm(%x, weight @w : f32[64]) {eps = 1e-05} : f32[b, s, 64]\nreturn %r"
    module = module_of(before)
    rewrite(module, [bare])
    assert [made.name for made in module.graph().walk()] == ["rms_norm", "mul"]
    assert module.graph().outputs[0].op.value(0).op.attributes["eps"] == 1e-05  # type: ignore[union-attr]


def test_an_attribute_may_be_a_function_of_the_match() -> None:
    doubled = replace("doubled", op("rms_norm", any_("x"), eps=any_("e", lambda eps: eps < 1e-3)),
                      op("rms_norm", any_("x"), eps=lambda m: 1000 * m.number("e")))  # fmt: skip
    module = module_of("%r = rms_norm(%x) {eps = 1e-05} : f32[b, s, 64]\nreturn %r")
    assert rewrite(module, [doubled]) == {"doubled": 1}  # 0.01 is refused: it does not go on
    assert module.graph().outputs[0].op.attributes["eps"] == pytest.approx(0.01)  # type: ignore[union-attr]


def test_a_replacement_may_be_what_was_bound() -> None:
    drop = replace("drop_one", op("mul", any_("x"), constant(1)), any_("x"), "x * 1 -> x")
    before = '%c = constant() {value = 1.0, element = "f32"} : f32[]\n%r = mul(%x, %c) : f32[b, s, 64]\nreturn %r'
    check_rewrite(passes_of(drop), before, "return %x")
    assert drop.text == "x * 1 -> x"


@pytest.mark.parametrize(
    ("replacement", "message"),
    [
        (any_("z"), "reads 'z', which the pattern does not bind; it binds x"),
        (any_("xx"), "did you mean 'x'"),
        (op("silu", any_("x"), once=True), "cannot be built"),
        (op(("silu", "gelu"), any_("x")), "cannot be built"),
        (op("silu", ...), "cannot be built"),
        (either(any_("x"), any_("x")), "made of op, any_, weight and constant"),
        (constant(), "which the pattern does not bind"),
    ],
)
def test_a_replacement_that_cannot_be_built_is_an_error_at_once(replacement: Any, message: str) -> None:
    with pytest.raises(IRError, match=message) as error:
        replace("bad rule", op("neg", any_("x")), replacement)
    assert "the rule 'bad rule'" in str(error.value)


# --- functions -------------------------------------------------------------------------------------------------------
def test_a_rule_is_called_as_its_function_and_says_its_docstring() -> None:
    @rule(op("neg", op("neg", any_("x"))))
    def _double_negation(at: Rewriter, m: Match) -> Value:
        """-(-x) -> x

        For integers too.
        """
        return m.value("x")

    assert (_double_negation.kind, _double_negation.text) == ("double_negation", "-(-x) -> x")
    named = rule("neg", op("neg", any_("x")))(lambda at, m: None)
    assert (named.kind, named.text) == ("neg", "neg(x) -> ...")


def test_what_a_rule_returns_and_raises_names_the_rule() -> None:
    module = module_of("%r = neg(%x) : f32[b, s, 64]\nreturn %r")
    pattern = op("neg", any_("x"))
    bad: Any = lambda at, m: at.add_op("exp", m["x"])  # noqa: E731
    with pytest.raises(IRError, match=r"the rule 'made' at @forward/%r returned <%r_2 = exp>, .*: return its result"):
        rewrite(module, [Rule("made", pattern, bad)])
    with pytest.raises(IRError, match=r"the rule 'asks' at @forward/%r: .* binds no 'y'.*; it binds x"):
        rewrite(module, [Rule("asks", pattern, lambda at, m: m["y"])])
    with pytest.raises(ZeroDivisionError) as error:
        rewrite(module, [Rule("divides", pattern, lambda at, m: at.constant(1 / 0, m["x"]))])
    assert error.value.__notes__ == ["in the rule 'divides' at @forward/%r"]


# --- attributes, absent operands and use counts ----------------------------------------------------------------------
NORM = "%r = rms_norm(%x, weight @w : f32[64]) {eps = 1e-06} : f32[b, s, 64]\nreturn %r"


def test_attributes_are_equal_or_accepted_or_bound() -> None:
    made = module_of(NORM).graph().outputs[0]
    assert match(made, op("rms_norm", ..., eps=1e-06)) is not None
    assert match(made, op("rms_norm", ..., eps=lambda eps: eps > 1e-3)) is None
    found = match(made, op("rms_norm", any_("x"), weight("w"), eps=any_("eps"), output=any_("output")))
    assert found is not None
    assert (found.number("eps"), found.attribute("output")) == (1e-06, "f32")
    with pytest.raises(IRError, match="no operand"):
        found["eps"]
    with pytest.raises(IRError, match="not to an attribute"):
        found.attribute("x")
    with pytest.raises(IRError, match="'f32', not to a number"):
        found.number("output")


def test_a_name_binds_one_attribute() -> None:
    two = module_of("""
        %a = rms_norm(%x) {eps = 1e-06} : f32[b, s, 64]
        %r = rms_norm(%a) {eps = 1e-05} : f32[b, s, 64]
        return %r""").graph().outputs[0]
    inner = op("rms_norm", any_("x"), eps=any_("e"))
    assert match(two, op("rms_norm", inner, eps=any_("e"))) is None
    assert match(two, op("rms_norm", inner, eps=any_("f"))) is not None


def test_lists_are_the_tuples_that_attributes_hold() -> None:
    made = module_of("%r = permute(%x) {axes = [0, 2, 1]} : f32[b, 64, s]\nreturn %r").graph().outputs[0]
    assert match(made, op("permute", any_(), axes=[0, 2, 1])) is not None  # type: ignore[arg-type]


def test_none_is_an_operand_that_is_absent() -> None:
    body = "%r = linear(%x, weight @w : f32[64, 64], {}, %y) : f32[b, s, 64]\nreturn %r"
    pattern = op("linear", any_("x"), weight("w"), None, any_("r"))
    found = match(module_of(body.format("_")).graph().outputs[0], pattern)
    assert found is not None and found.value("r").name == "y"
    assert match(module_of(body.format("weight @b : f32[64]")).graph().outputs[0], pattern) is None


@pytest.mark.parametrize(("uses", "returned", "matches"), [(1, "%r", True), (2, "%r", False), (2, "%r, %g", True)])
def test_uses_count_operands_and_outputs(uses: int, returned: str, matches: bool) -> None:
    graph = module_of(f"{SIGMOID}%r = mul(%x, %g) : f32[b, s, 64]\nreturn {returned}").graph()
    pattern = op("mul", any_("x"), op("sigmoid", any_("x"), uses=uses))
    assert (match(graph.outputs[0], pattern) is not None) == matches


def test_uses_of_anything() -> None:
    graph = module_of(f"{SIGMOID}%r = mul(%y, %g) : f32[b, s, 64]\n%t = add(%r, %g) : f32[b, s, 64]\nreturn %t").graph()
    found = list(find_matches(graph.walk(), op("mul", any_("a"), any_("b", uses=2))))
    assert [m.root.result.name for m in found] == ["r"]
    assert list(find_matches(graph.walk(), op("mul", any_("a", uses=3), any_("b")))) == []


# --- patterns that can never match -----------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        (op("sigmoyd", any_("x")), r"unknown op 'sigmoyd'; did you mean 'sigmoid'\?"),
        (op("neg", op("rmsnorm", ...)), r"unknown op 'rmsnorm'; did you mean 'rms_norm'\?"),
        (either(op("neg", any_("x")), op("ngeg", any_("x"))), "unknown op 'ngeg'"),
        (op("rms_norm", any_("x"), epsilon=1.0), r"rms_norm has no attribute 'epsilon'; did you mean 'eps'"),
        (op("rms_norm", any_("x"), outptu="f32"), r"did you mean 'output'\?"),
        (op("mul", any_("x")), r"mul takes \(a, b\), mul\(x\) has 1 operands"),
        (op("neg", any_("x"), any_("y")), r"neg takes \(x\), neg\(x, y\) has 2 operands"),
        (op("neg", any_("x", uses=0)), "uses=0"),
    ],
)
def test_a_pattern_that_can_never_match_is_an_error(pattern: Any, message: str) -> None:
    entry = Rule("odd", pattern, lambda at, m: None)
    with pytest.raises(IRError, match=rf"the rule 'odd' can never match: .*{message}"):
        rewrite(module_of("return %x"), [entry])


@pytest.mark.parametrize(
    ("replacement", "message"),
    [
        (op("sillu", any_("x")), "unknown op 'sillu'; did you mean 'silu'"),
        (op("gelu", any_("x"), approx=True), "gelu has no attribute 'approx'"),
        (op("rms_norm", any_("x")), "rms_norm needs the attribute 'eps'"),
        (op("mul", any_("x")), "mul takes"),
    ],
)
def test_a_replacement_that_is_no_op_is_an_error(replacement: Any, message: str) -> None:
    entry = replace("odd", op("neg", any_("x")), replacement)
    with pytest.raises(IRError, match=f"the rule 'odd' cannot be built: .*{message}"):
        rewrite(module_of("return %x"), [entry])


def test_ops_may_become_known_after_the_rule_was_made() -> None:
    late = replace("late", op("neg", any_("x")), op("surface_late", any_("x")))
    with pytest.raises(IRError, match="unknown op 'surface_late'"):
        rewrite(module_of("return %x"), [late])
    spec = OpSpec("surface_late", ("x",), lambda made: made.value(0).type, lambda made, x: -x, "-x, for a test")
    with registry.having([spec], "tests"):
        module = module_of("%r = neg(%x) : f32[b, s, 64]\nreturn %r")
        assert rewrite(module, [late]) == {"late": 1}


# --- passes of rules -------------------------------------------------------------------------------------------------
def test_a_pass_of_rules_takes_those_of_plugins_too() -> None:
    item = passes_of(SILU)
    asked: list[str] = []

    def more(name: str) -> list[Rule]:
        asked.append(name)
        return [replace("neg", op("neg", op("neg", any_("x"))), any_("x"))]

    negated = "%n = neg(%m) : f32[b, s, 64]\n%r = neg(%n) : f32[b, s, 64]\nreturn %r"
    module = module_of(f"{SIGMOID}%m = mul(%g, %x) : f32[b, s, 64]\n{negated}")
    assert item.run(module, Context(rules=more)) == {"silu": 1, "neg": 1}
    assert asked == ["sample"] and item.takes_rules
    assert [made.name for made in module.graph().walk()] == ["silu"]


def test_rules_may_be_limited_to_some_ops() -> None:
    module = module_of("""
        %a = neg(%x) : f32[b, s, 64]
        %b = neg(%a) : f32[b, s, 64]
        %c = neg(%b) : f32[b, s, 64]
        return %c""")
    there = replace("exp", op("neg", any_("x")), op("exp", any_("x")))
    on = replace("tanh", op("exp", any_("x")), op("tanh", any_("x")))
    second = module.graph().value("b").op
    assert second is not None
    assert rewrite(module, [there, on], within=[second]) == {"exp": 1, "tanh": 1}
    assert [made.name for made in module.graph().walk()] == ["neg", "tanh", "neg"]
