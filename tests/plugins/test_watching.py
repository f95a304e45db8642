"""Plugins at work in a pipeline: observers that cannot harm it, rules that join a pass, ops that join the IR."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest

import slmopt
from slmopt import api
from slmopt.errors import InputError, IRError, PluginWarning
from slmopt.ir.graph import Module
from slmopt.ir.spec import OpRegistry, OpSpec
from slmopt.pipeline import Context, Pass
from slmopt.plugins import builtin, discovery
from slmopt.plugins.discovery import Registry
from slmopt.plugins.hooks import slmopt_plugin
from slmopt.rewrite import Rule, any_, op, rewrite
from tests.toy_model import TEXT, toy_model

HERE = __name__


@dataclass(frozen=True)
class TakesRules(Pass):
    """What plugins say"""

    name = "takes-rules"
    takes_rules: ClassVar[bool] = True

    def run(self, module: Module, context: Context) -> dict[str, int]:
        return rewrite(module, context.rules(self.name))


TWICE = (Rule("halves", op("add", any_("x"), any_("y")), lambda at, m: at.add("add", m["y"], m["x"])),)
FLIP = [Rule("flip", op("rms_norm", any_("x"), ...), lambda at, m: None)]
SPEC = OpSpec("test_own_op", ("x",), lambda op: op.value(0).type, lambda op, x: x + 1, "x + 1")
CORE = OpSpec("linear", ("x",), lambda op: op.value(0).type, lambda op, x: x, "not linear at all")


@pytest.fixture
def use(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Makes a plugin with these functions the only one beside the built-ins; returns the registry."""

    def use(**functions: Any) -> Registry:
        content = SimpleNamespace(**{name: slmopt_plugin(function) for name, function in functions.items()})
        known = Registry([("slmopt", builtin), ("mine", content)])
        monkeypatch.setattr(discovery, "registry", lambda: known)
        return known

    return use


# --- observers ------------------------------------------------------------------------------------------------------
def test_observers_are_told_of_every_pass_and_of_the_ledger(use: Any) -> None:
    seen: list[Any] = []
    use(
        slmopt_before_pass=lambda item: seen.append(("before", item.name)),
        slmopt_after_pass=lambda module, row: seen.append(("after", row.name, len(module.graphs))),
        slmopt_on_ledger=lambda ledger: seen.append(("ledger", [row.name for row in ledger.rows])),
    )
    slmopt.optimize(toy_model(), ["canonicalize", "incrementalize"])
    assert seen == [
        ("before", "canonicalize"), ("after", "canonicalize", 1), ("before", "incrementalize"),
        ("after", "incrementalize", 2), ("ledger", ["original", "canonicalize", "incrementalize"]),
    ]  # fmt: skip


def test_an_observer_cannot_harm_what_it_sees(use: Any) -> None:
    def vandalize(item: Pass, module: Module, row: Any = None) -> None:
        module.graphs.clear()
        module.metadata.clear()
        module.weights.load("table").zero_()

    def empty(ledger: Any, module: Module) -> None:
        module.graph().set_outputs([])
        ledger.rows.clear()

    expected = slmopt.optimize(toy_model(), ["canonicalize"])
    use(slmopt_before_pass=vandalize, slmopt_after_pass=vandalize, slmopt_on_ledger=empty)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = slmopt.optimize(toy_model(), ["canonicalize"])
    assert found == expected and [row.name for row in found.ledger.rows] == ["original", "canonicalize"]
    assert (found.weights.load("table") == expected.weights.load("table")).all()
    assert found.metadata == expected.metadata


def test_an_observer_that_raises_is_a_warning_and_is_not_called_again(use: Any) -> None:
    calls, others = [], []

    def fails(item: Pass) -> None:
        calls.append(item.name)
        raise RuntimeError("no more")

    use(slmopt_before_pass=fails, slmopt_after_pass=lambda item: others.append(item.name))
    with pytest.warns(PluginWarning) as caught:
        slmopt.optimize(toy_model(), ["canonicalize", "fuse"])
    slmopt.optimize(toy_model(), ["canonicalize"])
    assert [str(item.message) for item in caught] == [
        "plugin mine: hook slmopt_before_pass: raised RuntimeError: no more; it is not called again"
    ]
    assert calls == ["canonicalize"] and others == ["canonicalize", "fuse", "canonicalize"]


def test_nothing_is_copied_for_nobody(use: Any) -> None:
    from slmopt.plugins import watching

    assert use(slmopt_metrics=lambda: {"one": f"{HERE}:SPEC"}).observers() == ()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(watching, "_copy", lambda module: pytest.fail("copied"))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            use(slmopt_after_pass=lambda item: None)
            slmopt.optimize(toy_model(), ["canonicalize"])


# --- rules ------------------------------------------------------------------------------------------------------------
def test_rules_join_the_pass_they_are_for(use: Any) -> None:
    known = use(
        slmopt_passes=lambda: {"takes-rules": f"{HERE}:TakesRules"},
        slmopt_rules=lambda: {"takes-rules/b": f"{HERE}:FLIP", "takes-rules/a": f"{HERE}:TWICE"},
    )
    assert known.rules_for("takes-rules") == (*TWICE, *FLIP) and known.rules_for("fuse") == ()
    with pytest.raises(IRError, match=r"rules undo each other in graph @forward: halves never end"):
        slmopt.optimize(toy_model(), ["takes-rules"])  # so they are tried


def test_rules_for_a_pass_that_takes_none_are_a_warning(use: Any) -> None:
    use(slmopt_rules=lambda: {"quantize/mine": f"{HERE}:FLIP"})
    message = "ruleset 'quantize/mine' is for the pass 'quantize' of slmopt, which takes no rules"
    with pytest.warns(PluginWarning, match=f"plugin mine: hook slmopt_rules: {message}"):
        slmopt.optimize(toy_model(), ["canonicalize"])


@pytest.mark.parametrize(
    ("place", "cause"),
    [
        ("no_such_package:RULES", "cannot be imported from 'no_such_package:RULES': ModuleNotFoundError"),
        (f"{HERE}:HERE", "is no sequence of slmopt.rewrite.Rule"),
        (f"{HERE}:SPEC", "is no sequence of slmopt.rewrite.Rule"),
    ],
)
def test_rules_that_are_none_are_a_warning_and_left_out(use: Any, place: str, cause: str) -> None:
    known = use(
        slmopt_passes=lambda: {"takes-rules": f"{HERE}:TakesRules"},
        slmopt_rules=lambda: {"takes-rules/bad": place, "takes-rules/good": f"{HERE}:FLIP"},
    )
    with pytest.warns(PluginWarning, match="takes-rules/bad") as caught:
        assert known.rules_for("takes-rules") == tuple(FLIP)
    assert cause in str(caught[0].message)


# --- ops --------------------------------------------------------------------------------------------------------------
def test_an_op_is_imported_when_text_names_it(use: Any) -> None:
    known = use(slmopt_ops=lambda: {"test_own_op": f"{HERE}:SPEC", "test_broken_op": "no_such_package:SPEC"})
    head = "    %logits = linear("
    text = TEXT.replace(f"{head}%r,", f"    %rr = test_own_op(%r) : f32[b, s, 32]\n{head}%rr,")
    module = api.parse(text)
    assert "test_own_op" in str(module) and known.problems == []
    assert slmopt.optimize(module, ["canonicalize"], verify=False)
    with pytest.raises(InputError, match=r"op 'test_broken_op', offered by mine, cannot be imported"):
        api.parse(text.replace("test_own_op", "test_broken_op"))
    with pytest.raises(IRError, match=r"unknown op 'test_onw_op'.*; did you mean 'test_own_op'"):
        api.parse(text.replace("test_own_op", "test_onw_op"))


def test_an_op_of_the_core_is_not_replaced(use: Any) -> None:
    known = use(slmopt_ops=lambda: {"linear": f"{HERE}:CORE"})
    with pytest.warns(PluginWarning, match="op 'linear' of mine is already defined by slmopt, whose op stays"):
        module = api.parse(TEXT)
    assert next(item for item in module.graph().walk() if item.name == "linear").spec is not CORE
    assert [problem.hook for problem in known.problems] == ["slmopt_ops"]


def test_a_promised_op_clashes_as_any_other() -> None:
    ops = OpRegistry()
    ops.add([CORE], "core")
    with pytest.raises(IRError, match="op 'linear' of mine is already defined by core"):
        ops.promise("linear", "mine", lambda: CORE)
    ops.promise("test_own_op", "mine", lambda: SPEC)
    with pytest.raises(IRError, match="op 'test_own_op' of other is already defined by mine"):
        ops.promise("test_own_op", "other", lambda: SPEC)
    assert "test_own_op" in ops and ops.owner("test_own_op") == "mine" and ops.lookup("test_own_op") is SPEC
    assert ops.owner("test_own_op") == "mine" and [spec.name for spec in ops] == ["linear", "test_own_op"]
