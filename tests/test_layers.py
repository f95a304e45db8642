"""Layers: selections as text, and the blocks of a graph that they are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slmopt.declaration import option
from slmopt.errors import InputError
from slmopt.ir.graph import Module
from slmopt.ir.text import parse_module
from slmopt.layers import Layers, find_layers
from slmopt.options import build_pass, describe_pass, list_options
from slmopt.pipeline import Context, Pass
from slmopt.rewrite import any_, find_matches, op, replace, rewrite


@pytest.mark.parametrize(
    ("text", "numbers"),
    [("all", range(9)), ("0-3,7", (0, 1, 2, 3, 7)), ("4-", range(4, 9)), ("2", (2,)), ("0, 5-5,6", (0, 5, 6))],
)
def test_what_a_selection_contains(text: str, numbers: Any) -> None:
    assert [number for number in range(9) if number in Layers(text)] == list(numbers)


@pytest.mark.parametrize("text", ["", "none", "3-1", "1;2", "-2", "1,,2", "a"])
def test_what_selects_nothing_is_an_error(text: str) -> None:
    with pytest.raises(InputError, match="selects no layers: expected all, or numbers and ranges"):
        Layers(text)


@given(st.sets(st.integers(0, 30), min_size=1))
def test_numbers_select_themselves(numbers: set[int]) -> None:
    layers = Layers(",".join(map(str, numbers)))
    assert {number for number in range(40) if number in layers} == numbers


# --- as an option ----------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Negate(Pass):
    """exp(x) -> neg(x), in some layers"""

    name: ClassVar[str] = "negate"

    layers: Layers = option(Layers())  # noqa: RUF009 (what it makes cannot be changed)

    def run(self, module: Module, context: Context) -> dict[str, int]:
        changed: dict[str, int] = {}
        for block in find_layers(module.graph(), self.layers).values():
            found = rewrite(module, [replace("exp", op("exp", any_("x")), op("neg", any_("x")))], within=block.ops)
            changed = {kind: changed.get(kind, 0) + count for kind, count in found.items()}
        return changed


def test_an_option_of_layers_is_read_from_text() -> None:
    built = build_pass('negate{layers="0-3,7"}', lambda name: Negate)
    assert built == Negate(Layers("0-3,7")) == Negate(layers="0-3,7")  # type: ignore[arg-type]
    assert describe_pass(built) == 'negate{layers="0-3,7"}'
    assert build_pass(describe_pass(built), lambda name: Negate) == built
    assert build_pass("negate", lambda name: Negate, {"layers": "4-"}) == Negate(Layers("4-"))
    assert [(o.name, o.type, o.default) for o in list_options(Negate)] == [("layers", "layers", "all")]
    with pytest.raises(InputError, match="pass negate: option layers: 'x' selects no layers"):
        build_pass("negate{layers=x}", lambda name: Negate)


# --- blocks ----------------------------------------------------------------------------------------------------------
def layered(names: list[str]) -> Module:
    """Layers x + exp(tanh(x)), one for each name."""
    lines, last = [], "x"
    for index, name in enumerate(names):
        loc = f' loc("{name}.mlp")' if name else ""
        lines += [
            f"%t{index} = tanh(%{last}) : f32[b, 8]{loc}", f"%e{index} = exp(%t{index}) : f32[b, 8]{loc}",
            f"%r{index} = add(%{last}, %e{index}) : f32[b, 8]{loc}",
        ]  # fmt: skip
        last = f"r{index}"
    return parse_module("module @m { graph @forward(%x: f32[b, 8]) {\n" + "\n".join(lines) + f"\nreturn %{last} }} }}")


def test_layers_have_the_numbers_of_their_paths() -> None:
    found = find_layers(layered([f"model.layers.{number}" for number in (1, 2, 3)]).graph())
    assert list(found) == [1, 2, 3]
    assert [sorted(made.name for made in block.ops) for block in found.values()] == [["add", "exp", "tanh"]] * 3
    assert list(find_layers(layered(["", "", ""]).graph())) == [0, 1, 2]


def test_layers_that_do_not_exist_are_an_error() -> None:
    graph = layered([f"model.layers.{number}" for number in (1, 2, 3)]).graph()
    assert list(find_layers(graph, Layers("2-"))) == [2, 3]
    with pytest.raises(InputError, match="layers 0-1: there is no layer 0; the layers are 1 to 3"):
        find_layers(graph, Layers("0-1"))
    with pytest.raises(InputError, match="the layers are none"):
        find_layers(layered(["model.layers.0"]).graph(), Layers("0"))


def test_a_pass_works_in_some_layers() -> None:
    module = layered([f"model.layers.{number}" for number in range(4)])
    assert Negate(Layers("1,3")).run(module, Context()) == {"exp": 2}
    assert [made.name for made in module.graph().walk()] == ["tanh", "exp", "add", "tanh", "neg", "add"] * 2


def test_patterns_are_matched_within_a_block() -> None:
    blocks = find_layers(layered(["", "", ""]).graph())
    found = [m for block in blocks.values() for m in find_matches(block.ops, op("exp", op("tanh", any_("x"))))]
    assert [m.root.result.name for m in found] == ["e0", "e1", "e2"]
