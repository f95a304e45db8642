"""The pass `raise-glu`."""

from __future__ import annotations

import pytest

from slmopt.passes.raise_ import RaiseGlu
from tests.passes.golden import check_rewrite, check_untouched


def test_gate_and_up() -> None:
    before = """
        %a = gelu(%g) {approximate = true} : f32[b, s, 64]
        %r = mul(%u, %a) : f32[b, s, 64]
        return %r
    """
    after = """
        %r = glu(%g, %u) {activation = "gelu_tanh", output = "f32"} : f32[b, s, 64]
        return %r
    """
    changes = check_rewrite(RaiseGlu(), before, after, signature="%g: f32[b, s, 64], %u: f32[b, s, 64]")
    assert changes == {"glu": 1}


def test_halves_of_one_linear() -> None:
    before = """
        %g = slice(%x) {axis = 2, start = 0, stop = 32, step = 1} : f32[b, s, 32]
        %u = slice(%x) {axis = 2, start = 32, stop = 64, step = 1} : f32[b, s, 32]
        %a = silu(%g) : f32[b, s, 32]
        %r = mul(%u, %a) : f32[b, s, 32]
        return %r
    """
    after = """
        %g = slice(%x) {axis = 2, start = 0, stop = 32, step = 1} : f32[b, s, 32]
        %u = slice(%x) {axis = 2, start = 32, stop = 64, step = 1} : f32[b, s, 32]
        %r = glu(%g, %u) {activation = "silu", output = "f32"} : f32[b, s, 32]
        return %r
    """
    changes = check_rewrite(RaiseGlu(), before, after)
    assert changes == {"glu": 1}


@pytest.mark.parametrize(
    "body",
    [
        # x sigmoid(x) is silu, no gate.
        """
        %g = sigmoid(%x) : f32[b, s, 64]
        %r = mul(%x, %g) : f32[b, s, 64]
        return %r
        """,
        # relu(x)^2 has no second operand.
        """
        %a = relu(%x) : f32[b, s, 64]
        %r = mul(%a, %a) : f32[b, s, 64]
        return %r
        """,
        # A capped value times a number.
        """
        %cap = constant() {value = 30.0, element = "f32"} : f32[]
        %t = tanh(%x) : f32[b, s, 64]
        %r = mul(%t, %cap) : f32[b, s, 64]
        return %r
        """,
        # x tanh(softplus(x)): the gate is made from what it gates.
        """
        %z = softplus(%x) : f32[b, s, 64]
        %t = tanh(%z) : f32[b, s, 64]
        %r = mul(%x, %t) : f32[b, s, 64]
        return %r
        """,
        # One gate for a whole row.
        """
        %m = mean(%x) {axis = 2, keep = true} : f32[b, s, 1]
        %g = sigmoid(%m) : f32[b, s, 1]
        %r = mul(%x, %g) : f32[b, s, 64]
        return %r
        """,
    ],
)
def test_leaves_alone(body: str) -> None:
    check_untouched(RaiseGlu(), body)
