"""The pass `prune-heads`."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from slmopt.errors import ContractError, InputError, UnsupportedError
from slmopt.interpreter import forward, step_through
from slmopt.layers import Layers
from slmopt.passes.canonicalize.canonicalize import Canonicalize
from slmopt.passes.fuse.fuse import Fuse
from slmopt.passes.incrementalize import Incrementalize
from slmopt.passes.prune.prune_heads import PruneHeads
from slmopt.passes.raise_.raising import Raise
from slmopt.pipeline import Pipeline
from tests.passes.calibrated import apply_on_text, error_on_text, toy_model
from tests.passes.golden import body_of
from tests.passes.toys import graph_text
from tests.rewritten import VARIETY, check_rewritten, raised, random_calibration, rewritten
from tests.stories import EVALUATED, needs_stories, perplexity_after

GROUPED = """
    %q = linear(%x, weight @q : f32[16, 6]) : f32[b, s, 16]
    %k = linear(%x, weight @k : f32[8, 6]) : f32[b, s, 8]
    %v = linear(%x, weight @v : f32[8, 6], weight @c : f32[8]) : f32[b, s, 8]
    %qr = reshape(%q) {shape = [b, s, 4, 4]} : f32[b, s, 4, 4]
    %kr = reshape(%k) {shape = [b, s, 2, 4]} : f32[b, s, 2, 4]
    %vr = reshape(%v) {shape = [b, s, 2, 4]} : f32[b, s, 2, 4]
    %qn = rms_norm(%qr, weight @n : f32[4]) {eps = 1e-05} : f32[b, s, 4, 4]
    %qp = permute(%qn) {axes = [0, 2, 1, 3]} : f32[b, 4, s, 4]
    %kp = permute(%kr) {axes = [0, 2, 1, 3]} : f32[b, 2, s, 4]
    %vp = permute(%vr) {axes = [0, 2, 1, 3]} : f32[b, 2, s, 4]
    %a = attention(%qp, %kp, %vp, _, _, weight @slopes : f32[4]) {scale = 0.5} : f32[b, 4, s, 4]
    %ap = permute(%a) {axes = [0, 2, 1, 3]} : f32[b, s, 4, 4]
    %m = reshape(%ap) {shape = [b, s, 16]} : f32[b, s, 16]
    %o = linear(%m, weight @o : f32[6, 16], weight @e : f32[6]) : f32[b, s, 6]
    %y = add(%x, %o) : f32[b, s, 6]"""


def drawn(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(11))


def test_golden() -> None:
    """The values of the first of two heads are 0: it goes, with the two queries that read it, and nothing changes."""
    v, c = drawn(8, 6), drawn(8)
    v[:4], c[:4] = 0.0, 0.0
    module = toy_model(GROUPED, 6, weights={"v": v, "c": c})
    found, changes = apply_on_text(module, PruneHeads(damping=1e-9))
    assert body_of(found.graph()) == graph_text("""
        %x = embedding(%ids, weight @table : f32[29, 6]) : f32[b, s, 6]
        %q = linear(%x, weight @q.cut : f32[8, 6]) {activation = none, act = none} : f32[b, s, 8]
        %k = linear(%x, weight @k.cut : f32[4, 6]) {activation = none, act = none} : f32[b, s, 4]
        %v = linear(%x, weight @v.cut : f32[4, 6], weight @c.cut : f32[4]) {activation = none, act = none} : f32[b, s, 4]
        %qr = reshape(%q) {shape = [b, s, 2, 4]} : f32[b, s, 2, 4]
        %kr = reshape(%k) {shape = [b, s, 1, 4]} : f32[b, s, 1, 4]
        %vr = reshape(%v) {shape = [b, s, 1, 4]} : f32[b, s, 1, 4]
        %qn = rms_norm(%qr, weight @n : f32[4]) {eps = 1e-05, output = "f32"} : f32[b, s, 2, 4]
        %qp = permute(%qn) {axes = [0, 2, 1, 3]} : f32[b, 2, s, 4]
        %kp = permute(%kr) {axes = [0, 2, 1, 3]} : f32[b, 1, s, 4]
        %vp = permute(%vr) {axes = [0, 2, 1, 3]} : f32[b, 1, s, 4]
        %a = attention(%qp, %kp, %vp, _, _, weight @slopes.cut : f32[2]) {scale = 0.5, mask = "causal", window = none, chunk = none, sink = none, softcap = none, ring = false} : f32[b, 2, s, 4]
        %ap = permute(%a) {axes = [0, 2, 1, 3]} : f32[b, s, 2, 4]
        %m = reshape(%ap) {shape = [b, s, 8]} : f32[b, s, 8]
        %o = linear(%m, weight @o.refitted : f32[6, 8], weight @e.refitted : f32[6]) {activation = none, act = none} : f32[b, s, 6]
        %y = add(%x, %o) : f32[b, s, 6]
        %logits = linear(%y, weight @head : f32[29, 6]) {activation = none, act = none} : f32[b, s, 29]
        return %logits
    """)  # noqa: E501
    assert changes == {"pruned": 1, "groups": 1}
    assert torch.equal(found.weights.load("q.cut"), module.weights.load("q")[8:])
    assert error_on_text(found, module) < 1e-5


JOINED = """
    %p = linear(%x, weight @p : f32[36, 6], weight @pb : f32[36]) : f32[b, s, 36]
    %r = reshape(%p) {shape = [b, s, 3, 12]} : f32[b, s, 3, 12]
    %t = permute(%r) {axes = [0, 2, 1, 3]} : f32[b, 3, s, 12]
    %q = slice(%t) {axis = 3, start = 0, stop = 4} : f32[b, 3, s, 4]
    %k = slice(%t) {axis = 3, start = 4, stop = 8} : f32[b, 3, s, 4]
    %v = slice(%t) {axis = 3, start = 8, stop = 12} : f32[b, 3, s, 4]
    %a = attention(%q, %k, %v) {scale = 0.5} : f32[b, 3, s, 4]
    %ap = permute(%a) {axes = [0, 2, 1, 3]} : f32[b, s, 3, 4]
    %m = reshape(%ap) {shape = [b, s, 12]} : f32[b, s, 12]
    %y = linear(%m, weight @o : f32[6, 12]) : f32[b, s, 6]"""


@pytest.mark.parametrize("head", range(3))
def test_the_head_that_does_what_another_does_goes(head: int) -> None:
    """Of a joined projection, head by head; its twin does its part."""
    p, pb = drawn(36, 6), drawn(36)
    twin = (head + 1) % 3
    p[12 * head : 12 * head + 12], pb[12 * head : 12 * head + 12] = p[12 * twin :][:12], pb[12 * twin :][:12]
    module = toy_model(JOINED, 6, weights={"p": p, "pb": pb})
    found, changes = apply_on_text(module, PruneHeads(damping=1e-12))
    assert changes == {"pruned": 1, "groups": 1}
    assert found.graph().value("t").shape[1] == 2
    assert error_on_text(found, module) < 1e-5
    plain, _ = apply_on_text(module, PruneHeads(compensate=False))
    assert error_on_text(plain, module) > 1e-2


def test_queries_of_one_head_of_keys_go_one_by_one() -> None:
    body = GROUPED.replace("f32[8, 6]", "f32[4, 6]").replace("f32[8]", "f32[4]").replace(
        "f32[b, s, 8]", "f32[b, s, 4]").replace("[b, s, 2, 4]", "[b, s, 1, 4]").replace(
        "f32[b, 2, s, 4]", "f32[b, 1, s, 4]")  # fmt: skip
    found, changes = apply_on_text(toy_model(body, 6), PruneHeads(3))
    assert changes == {"pruned": 1, "groups": 3}
    assert [found.graph().value(name).shape[1] for name in ("a", "kp", "vp")] == [1, 1, 1]


@pytest.mark.parametrize("body", [
    GROUPED, JOINED, GROUPED.replace('{scale = 0.5}', '{scale = 0.5, window = 4, sink = 1}'),
    GROUPED.replace(", _, _, weight @slopes : f32[4]", "").replace("= attention", "= linear_attention").replace(
        "{scale = 0.5} ", ""),
])  # fmt: skip
def test_a_step_that_is_there_loses_the_same_heads(body: str) -> None:
    module = toy_model(body, 6)
    found, _ = apply_on_text(module, Fuse(), Incrementalize(), PruneHeads())
    ids = torch.tensor([[3, 1, 4, 1, 5, 9, 2, 6, 5, 3]])
    expected = forward(found, ids)
    assert torch.allclose(step_through(found, ids, [1, 4, 5]), expected, rtol=0, atol=1e-5)
    earlier, _ = apply_on_text(module, PruneHeads())
    assert torch.allclose(forward(earlier, ids), expected, rtol=0, atol=1e-4)
    sizes = {value.name: value.shape[1] for value in found.graph("step").inputs[2:]}
    assert set(sizes.values()) == {1 if "weight @k " in body else 2}


def test_more_heads_than_there_are_cannot_be_cut() -> None:
    with pytest.raises(UnsupportedError, match="prune-heads: the attention that %o = linear sums over has 2 groups of "
                                               "heads: 2 cannot be cut, as one must be left"):  # fmt: skip
        apply_on_text(toy_model(GROUPED, 6), PruneHeads(2))


def test_what_cannot_be_cut_is_named() -> None:
    body = GROUPED.replace("%o =", "%w = sum(%a) {axis = 1, keep = true} : f32[b, 1, s, 4]\n%o =").replace(
        "%y = add(%x, %o)", "%wr = reshape(%w) {shape = [b, s, 4]} : f32[b, s, 4]\n"
        "%wo = linear(%wr, weight @wo : f32[6, 4]) : f32[b, s, 6]\n%y = add(%wo, %o)")  # fmt: skip
    with pytest.raises(UnsupportedError, match="the attention that %o = linear sums over cannot be cut: %w = sum "
                                               "combines its positions"):  # fmt: skip
        apply_on_text(toy_model(body, 6), PruneHeads())


@pytest.mark.parametrize("body", ["%y = tanh(%x) : f32[b, s, 6]", """
    %u = linear(%x, weight @u : f32[8, 6]) : f32[b, s, 8]
    %a = silu(%u) : f32[b, s, 8]
    %y = linear(%a, weight @d : f32[6, 8]) : f32[b, s, 6]"""])  # fmt: skip
def test_must_not_fire(body: str) -> None:
    module = toy_model(body, 6)
    found, changes = apply_on_text(module, PruneHeads())
    assert changes == {}
    assert found == module


def test_wrong_options_and_orders_are_errors() -> None:
    for wrong in ({"groups": 0}, {"damping": 2.0}):
        with pytest.raises(InputError, match=f"pass prune-heads: option {next(iter(wrong))}"):
            PruneHeads(**wrong)
    with pytest.raises(InputError, match="there is no layer 7"):
        apply_on_text(toy_model(GROUPED, 6), PruneHeads(layers=Layers("7")))
    with pytest.raises(ContractError, match="'raised'"):
        Pipeline([PruneHeads()]).run(toy_model(GROUPED, 6))


@pytest.mark.parametrize("name", VARIETY)
def test_architectures(tmp_path: Path, name: str) -> None:
    """One layer loses heads and another does not; library, @forward and @step agree, with caches of two sizes."""
    found = rewritten(raised(tmp_path, name), [PruneHeads(layers=Layers("0"))], random_calibration())
    heads = [value.shape[1] for value in found.graph("step").inputs if value.name.endswith("_keys")]
    assert heads == {"gemma2": [1, 2, 2], "gpt_neox": [3, 4], "gpt2": [2, 3]}[name]
    check_rewritten(found, tmp_path)


@pytest.mark.slow
@needs_stories
def test_stories(tmp_path: Path) -> None:
    """A quarter of the heads of a trained model: at most +14 % of perplexity, where nothing is healed."""
    found = perplexity_after([Raise(), Canonicalize(), PruneHeads(), Fuse(), Incrementalize()], tmp_path)
    assert EVALUATED < found < EVALUATED * 1.14
