"""Plugins: offers by name, clashes, broken plugins, and that listing imports nothing."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest

from slmopt.errors import InputError
from slmopt.ir.dims import Dim
from slmopt.ir.graph import Module, Op
from slmopt.ir.ops import registry as ops
from slmopt.ir.spec import OpSpec
from slmopt.ir.text import parse_module
from slmopt.pipeline import Context, Pass
from slmopt.plugins import builtin
from slmopt.plugins.discovery import Registry, registry
from slmopt.plugins.hooks import slmopt_plugin


@dataclass(frozen=True)
class Nothing(Pass):
    """x -> x"""

    name = "nothing"

    def run(self, module: Module, context: Context) -> dict[str, int]:
        return {}


class Texts:
    """A frontend for strings that begin with "text:"."""

    summary = "text"

    def accepts(self, source: Any) -> bool:
        return isinstance(source, str) and source.startswith("text:")

    def load(self, source: Any, **options: Any) -> Any:
        return parse_module(source.removeprefix("text:"))


def plugin(**hooks: Any) -> SimpleNamespace:
    """A plugin with the given hooks, each returning a fixed mapping."""
    return SimpleNamespace(**{name: slmopt_plugin(lambda found=found: found) for name, found in hooks.items()})


def test_every_built_in_is_there_and_is_what_its_name_says() -> None:
    known = registry()
    for name, offer in known.passes.items():
        found = known.find_pass(name)
        assert found.name == name and found.__doc__ and offer.owner == "slmopt"
    for name in known.backends:
        assert known.find_backend(name).name == name
    for name in known.recipes:
        assert known.find_recipe(name).build(known.find_pass)
    for offer in known.frontends.values():
        assert offer.load()().summary


def test_every_built_in_pass_can_be_imported() -> None:
    assert list(registry().working_passes()) == list(registry().passes)


def test_a_plugin_adds_to_the_built_ins() -> None:
    mine = plugin(slmopt_passes={"nothing": f"{__name__}:Nothing"})
    known = Registry([("slmopt", builtin), ("mine", mine)])
    assert known.find_pass("nothing") is Nothing and known.passes["nothing"].owner == "mine"
    assert "quantize" in known.passes


def test_unknown_names_suggest_the_nearest() -> None:
    with pytest.raises(InputError, match="unknown pass 'fues'; did you mean 'fuse'"):
        registry().find_pass("fues")
    with pytest.raises(InputError, match="unknown target 'cpuu'; did you mean 'cpu'"):
        registry().find_backend("cpuu")


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("no.such.module:Thing", "'bad', offered by mine, cannot be imported"),
        (f"{__name__}:Absent", "'bad', offered by mine, cannot be imported"),
        (f"{__name__}:Texts", "is no Pass with name = 'bad'"),
        (f"{__name__}:Nothing", "is no Pass with name = 'bad'"),
    ],
)
def test_an_offer_that_is_not_what_it_says(place: str, message: str) -> None:
    known = Registry([("mine", plugin(slmopt_passes={"bad": place}))])
    with pytest.raises(InputError, match=message):
        known.find_pass("bad")


def test_frontends_of_plugins_are_asked_first() -> None:
    mine = plugin(slmopt_frontends={"texts": f"{__name__}:Texts"})
    known = Registry([("slmopt", builtin), ("mine", mine)])
    assert isinstance(known.find_frontend("text:module @m {}"), Texts)
    assert type(known.find_frontend("some/directory")).__name__ == "HuggingFaceDirectory"
    with pytest.raises(InputError, match="3 is nothing that can be loaded"):
        known.find_frontend(3)


def _flops(op: Op) -> Dim:
    return 1


SPECS = (OpSpec("test_plugin_op", ("x",), lambda op: op.value(0).type, lambda op, x: x, "x", flops=_flops),)


def test_ops_of_plugins_join_the_ir() -> None:
    known = Registry([("mine", plugin(slmopt_ops={"test_plugin_op": f"{__name__}:SPECS"}))])
    known.add_ops()
    known.add_ops()  # twice is once
    assert "test_plugin_op" in ops
    text = "module @m {\n  graph @forward(%x: f32[2]) {\n    %y = test_plugin_op(%x) : f32[2]\n    return %y\n  }\n}\n"
    assert str(parse_module(text)) == text


def test_listing_imports_no_pass_and_nothing_heavy() -> None:
    code = """
import sys
from slmopt.plugins.discovery import registry
known = registry()
assert len(known.passes) > 10 and known.backends and known.recipes and known.frontends
names = ("torch", "tvm", "numpy", "transformers", "slmopt.passes", "slmopt.backends")
heavy = [name for name in sys.modules if name.startswith(names)]
sys.exit(", ".join(heavy) or 0)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
