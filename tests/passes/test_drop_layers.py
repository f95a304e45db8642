"""The pass `drop-layers`."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from slmopt.errors import ContractError, InputError, UnsupportedError
from slmopt.layers import Layers
from slmopt.passes.incrementalize import Incrementalize
from slmopt.passes.prune.drop_layers import DropLayers
from slmopt.passes.prune.prune_ffn import PruneFFN
from slmopt.passes.prune.prune_heads import PruneHeads
from slmopt.pipeline import Pipeline
from tests.passes.calibrated import apply_on_text, error_on_text, toy_model
from tests.passes.golden import body_of
from tests.passes.toys import graph_text
from tests.rewritten import VARIETY, check_rewritten, raised, random_calibration, rewritten

LAYER = """
    %t{n} = tanh({x}) : f32[b, s, 6] loc("layers.{n}.t")
    %u{n} = linear(%t{n}, weight @u{n} : f32[6, 6]) : f32[b, s, 6] loc("layers.{n}.u")
    %r{n} = add({x}, %u{n}) : f32[b, s, 6] loc("layers.{n}")"""


def layers(count: int, layer: str = LAYER) -> str:
    """So many layers, of which %r0, %r1, ... are the results."""
    return "\n".join(layer.format(n=n, x=f"%r{n - 1}" if n else "%x") for n in range(count))


def sizes(*factors: float) -> dict[str, torch.Tensor]:
    """The weight of each layer: what it adds is so large."""
    generator = torch.Generator().manual_seed(2)
    return {f"u{index}": torch.randn(6, 6, generator=generator) * factor for index, factor in enumerate(factors)}


def test_golden() -> None:
    """The second layer adds nothing: it goes, and nothing changes."""
    module = toy_model(layers(3), 6, "r2", sizes(1, 0, 1))
    found, changes = apply_on_text(module, DropLayers())
    assert body_of(found.graph()) == graph_text("""
        %x = embedding(%ids, weight @table : f32[29, 6]) : f32[b, s, 6]
        %t0 = tanh(%x) : f32[b, s, 6] loc("layers.0.t")
        %u0 = linear(%t0, weight @u0 : f32[6, 6]) {activation = none, act = none} : f32[b, s, 6] loc("layers.0.u")
        %r0 = add(%x, %u0) : f32[b, s, 6] loc("layers.0")
        %t2 = tanh(%r0) : f32[b, s, 6] loc("layers.2.t")
        %u2 = linear(%t2, weight @u2 : f32[6, 6]) {activation = none, act = none} : f32[b, s, 6] loc("layers.2.u")
        %r2 = add(%r0, %u2) : f32[b, s, 6] loc("layers.2")
        %logits = linear(%r2, weight @head : f32[29, 6]) {activation = none, act = none} : f32[b, s, 29]
        return %logits
    """)
    assert changes == {"dropped": 1}
    assert error_on_text(found, module) == 0


@pytest.mark.parametrize(
    ("item", "left"),
    [(DropLayers(), ["t0", "t1", "t3"]), (DropLayers(2), ["t0", "t1"]), (DropLayers(3), ["t1"]),
     (DropLayers(layers=Layers("0-1")), ["t1", "t2", "t3"]), (DropLayers(2, Layers("1-2")), ["t0", "t3"])],
)  # fmt: skip
def test_the_layers_that_change_least_go_first(item: DropLayers, left: list[str]) -> None:
    """Of four layers, in the order of what they add: the third, the fourth, the first, the second."""
    module = toy_model(layers(4), 6, "r3", sizes(1, 2, 0.01, 0.1))
    found, changes = apply_on_text(module, item)
    assert [op.result.name for op in found.graph().walk() if op.name == "tanh"] == left
    assert changes == {"dropped": item.count}


def test_dead_ops_do_not_hide_layers() -> None:
    body = layers(3).replace("%r1 =", "%dead = neg(%t1) : f32[b, s, 6]\n%dead2 = neg(%dead) : f32[b, s, 6]\n%r1 =")
    module = toy_model(body, 6, "r2", sizes(1, 0, 1))
    found, changes = apply_on_text(module, DropLayers())
    assert changes == {"dropped": 1}
    assert error_on_text(found, module) == 0


def test_layers_that_share_weights_may_go() -> None:
    body = layers(3).replace("@u1", "@u0").replace("@u2", "@u0")
    found, changes = apply_on_text(toy_model(body, 6, "r2"), DropLayers(2))
    assert changes == {"dropped": 2}
    assert list(found.weight_types()) == ["table", "u0", "head"]


NO_LAYERS = {
    "one layer": layers(1).replace("%r0", "%y"),
    "layers of different kinds": layers(2).replace("%t1 = tanh", "%t1 = exp").replace("%r1", "%y"),
}


@pytest.mark.parametrize("case", NO_LAYERS)
def test_must_not_fire(case: str) -> None:
    module = toy_model(NO_LAYERS[case], 6)
    found, changes = apply_on_text(module, DropLayers())
    assert changes == {}
    assert found == module


@pytest.mark.parametrize("item", [DropLayers(3), DropLayers(5), DropLayers(2, Layers("1"))])
def test_more_layers_than_there_are_cannot_go(item: DropLayers) -> None:
    with pytest.raises(UnsupportedError, match=r"drop-layers: of \d layers selected, of 3, \d cannot be left out"):
        apply_on_text(toy_model(layers(3), 6, "r2"), item)


def test_layers_that_do_not_add_to_what_they_read_cannot_go() -> None:
    body = layers(3, "%t{n} = tanh({x}) : f32[b, s, 6]\n%r{n} = exp(%t{n}) : f32[b, s, 6]")
    with pytest.raises(UnsupportedError, match="3 of those selected do not add to what they read"):
        apply_on_text(toy_model(body, 6, "r2"), DropLayers())


def test_wrong_options_and_orders_are_errors() -> None:
    module = toy_model(layers(3), 6, "r2")
    with pytest.raises(InputError, match="pass drop-layers: option count"):
        DropLayers(0)
    with pytest.raises(InputError, match="there is no layer 3"):
        apply_on_text(module, DropLayers(layers=Layers("3")))
    with pytest.raises(ContractError, match="'raised'"):
        Pipeline([DropLayers()]).run(module)
    with pytest.raises(UnsupportedError, match="put drop-layers before the pass that derives @step"):
        apply_on_text(module, Incrementalize(), DropLayers())


@pytest.mark.parametrize("name", VARIETY)
def test_architectures(tmp_path: Path, name: str) -> None:
    """A layer goes, and of what is left channels and heads: library, @forward and @step agree."""
    found = rewritten(raised(tmp_path, name), [DropLayers(), PruneFFN(), PruneHeads()], random_calibration())
    left = 2 if name == "gemma2" else 1
    assert [row.changed for row in found.ledger.rows if "prune" in row.name or "drop" in row.name] == [
        {"dropped": 1}, {"pruned": left, "channels": left * {"gemma2": 19, "gpt_neox": 19, "gpt2": 36}[name]},
        {"pruned": left, "groups": left},
    ]  # fmt: skip
    check_rewritten(found, tmp_path)
