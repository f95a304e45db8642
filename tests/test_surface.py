"""What a pass author imports, and a useful pass of twenty lines through the whole compiler."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

import slmopt
from slmopt import Match, Module, RewritePass, Rewriter, Value, any_, op, rule, weight
from slmopt.interpreter import forward
from slmopt.pipeline import Context
from slmopt.testing import check_pass
from tests.passes.golden import check_rewrite, check_untouched
from tests.toy_model import toy_model


# --- the pass --------------------------------------------------------------------------------------------------------
@rule(op("linear", op("rms_norm", any_("x"), weight("g"), bind="norm", output="f32"), weight("w", element="f32"), ...))
def fold_norm(at: Rewriter, m: Match) -> Value | None:
    """linear(rms_norm(x, g), w) -> linear(rms_norm(x), w * g)"""
    folded = at.derive([m.weight("w"), m.weight("g")], "scaled", lambda w, g: w * g)
    if folded is None:
        return None
    return at.again(m.root, at.again(m.op("norm"), m["x"]), folded, *m.root.operands[2:])


@dataclass(frozen=True)
class FoldNorms(RewritePass):
    """linear(rms_norm(x, g), w) -> linear(rms_norm(x), w * g): norms lose their weights."""

    name = "fold-norms"
    unties = True
    rules = (fold_norm,)


# --- what it does ----------------------------------------------------------------------------------------------------
BEFORE = """
    %n = rms_norm(%x, weight @g : f32[64]) {eps = 1e-05, output = "f32"} : f32[b, s, 64] loc("norm")
    %y = linear(%n, weight @w : f32[8, 64], weight @b : f32[8]) {activation = none, act = none} : f32[b, s, 8] loc("up")
    return %y
"""
AFTER = """
    %y_2 = rms_norm(%x) {eps = 1e-05, output = "f32"} : f32[b, s, 64] loc("up")
    %y = linear(%y_2, weight @w.scaled : f32[8, 64], weight @b : f32[8]) {activation = none, act = none} : f32[b, s, 8] loc("up")
    return %y
"""  # noqa: E501


def test_it_rewrites() -> None:
    assert check_rewrite(FoldNorms(), BEFORE, AFTER, tolerance=1e-6) == {"fold_norm": 1}


def test_it_leaves_what_is_something_else() -> None:
    check_untouched(FoldNorms(), BEFORE.replace("%n, weight @w", "%x, weight @w").replace("return %y", "return %y, %n"))


def test_it_keeps_every_promise() -> None:
    check_pass(FoldNorms, examples=10)


def test_it_goes_through_the_compiler(tmp_path: Path) -> None:
    module = toy_model()
    found = slmopt.optimize(module, [FoldNorms(), "canonicalize"])
    assert found.ledger.rows[1].changed == {"fold_norm": 2}
    ids = torch.tensor([[1, 5, 9, 30, 17]])
    expected = forward(module, ids)[0]
    with slmopt.open(slmopt.compile(found, "cpu", tmp_path / "toy", recipe="f32")) as compiled:
        np.testing.assert_allclose(compiled.logits(ids[0].tolist()), expected.numpy(), atol=1e-4)


def test_a_module_without_numbers_is_left_as_it_is() -> None:
    module = slmopt.parse(f"module @m {{\n graph @forward(%x: f32[b, s, 64]) {{\n{BEFORE}\n }}\n}}")
    assert FoldNorms().run(module, Context()) == {}


# --- the names -------------------------------------------------------------------------------------------------------
def test_every_name_is_there() -> None:
    assert {name for name in slmopt.__all__ if getattr(slmopt, name, None) is None} == set()
    assert set(slmopt.__all__) <= set(dir(slmopt))
    assert slmopt.Module is Module


def test_the_surface_is_light() -> None:
    heavy = ("torch", "numpy", "networkx", "tvm", "transformers", "pluggy", "hypothesis")
    names = [name for name in slmopt.__all__ if name != "LanguageModel"]
    code = f"import sys, slmopt; [getattr(slmopt, n) for n in {names}]; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
