"""The pass `raise-activation`."""

from __future__ import annotations

import pytest

from slmopt.passes.raise_ import RaiseActivation
from tests.passes.golden import check_rewrite, check_untouched


def test_gelu_by_tanh_of_a_cube() -> None:
    before = """
        %half = constant() {value = 0.5, element = "f32"} : f32[]
        %one = constant() {value = 1.0, element = "f32"} : f32[]
        %three = constant() {value = 3.0, element = "f32"} : f32[]
        %k = constant() {value = 0.044715, element = "f32"} : f32[]
        %c = constant() {value = 0.7978845608028654, element = "f32"} : f32[]
        %h = mul(%x, %half) : f32[b, s, 64]
        %p = pow(%x, %three) : f32[b, s, 64]
        %u = mul(%p, %k) : f32[b, s, 64]
        %v = add(%x, %u) : f32[b, s, 64]
        %w = mul(%v, %c) : f32[b, s, 64]
        %t = tanh(%w) : f32[b, s, 64]
        %o = add(%t, %one) : f32[b, s, 64]
        %r = mul(%h, %o) : f32[b, s, 64]
        return %r
    """
    after = """
        %r = gelu(%x) {approximate = true} : f32[b, s, 64]
        return %r
    """
    changes = check_rewrite(RaiseActivation(), before, after, tolerance=1e-8)
    assert changes == {"gelu_tanh": 1}


def test_gelu_by_tanh_of_a_square() -> None:
    before = """
        %half = constant() {value = 0.5, element = "f32"} : f32[]
        %one = constant() {value = 1.0, element = "f32"} : f32[]
        %k = constant() {value = 0.044715, element = "f32"} : f32[]
        %c = constant() {value = 0.79788456, element = "f32"} : f32[]
        %h = mul(%x, %half) : f32[b, s, 64]
        %p = mul(%x, %c) : f32[b, s, 64]
        %u = mul(%x, %k) : f32[b, s, 64]
        %v = mul(%u, %x) : f32[b, s, 64]
        %w = add(%v, %one) : f32[b, s, 64]
        %z = mul(%p, %w) : f32[b, s, 64]
        %t = tanh(%z) : f32[b, s, 64]
        %o = add(%one, %t) : f32[b, s, 64]
        %r = mul(%h, %o) : f32[b, s, 64]
        return %r
    """
    after = """
        %r = gelu(%x) {approximate = true} : f32[b, s, 64]
        return %r
    """
    changes = check_rewrite(RaiseActivation(), before, after, tolerance=1e-8)
    assert changes == {"gelu_tanh": 1}


def test_gelu_by_erf() -> None:
    before = """
        %half = constant() {value = 0.5, element = "f32"} : f32[]
        %one = constant() {value = 1.0, element = "f32"} : f32[]
        %c = constant() {value = 1.4142135623730951, element = "f32"} : f32[]
        %z = div(%x, %c) : f32[b, s, 64]
        %e = erf(%z) : f32[b, s, 64]
        %o = add(%e, %one) : f32[b, s, 64]
        %h = mul(%x, %o) : f32[b, s, 64]
        %r = mul(%half, %h) : f32[b, s, 64]
        return %r
    """
    after = """
        %r = gelu(%x) {approximate = false} : f32[b, s, 64]
        return %r
    """
    changes = check_rewrite(RaiseActivation(), before, after, tolerance=1e-8)
    assert changes == {"gelu": 1}


def test_silu_by_sigmoid() -> None:
    before = """
        %g = sigmoid(%x) : f32[b, s, 64]
        %r = mul(%g, %x) : f32[b, s, 64]
        return %r
    """
    after = """
        %r = silu(%x) : f32[b, s, 64]
        return %r
    """
    changes = check_rewrite(RaiseActivation(), before, after)
    assert changes == {"silu": 1}


def test_silu_by_exponential() -> None:
    before = """
        %one = constant() {value = 1.0, element = "f32"} : f32[]
        %n = neg(%x) : f32[b, s, 64]
        %e = exp(%n) : f32[b, s, 64]
        %d = add(%one, %e) : f32[b, s, 64]
        %r = div(%x, %d) : f32[b, s, 64]
        return %r
    """
    after = """
        %r = silu(%x) : f32[b, s, 64]
        return %r
    """
    changes = check_rewrite(RaiseActivation(), before, after)
    assert changes == {"silu": 1}


def test_relu_by_maximum() -> None:
    before = """
        %zero = constant() {value = 0.0, element = "f32"} : f32[]
        %r = maximum(%zero, %x) : f32[b, s, 64]
        return %r
    """
    after = """
        %r = relu(%x) : f32[b, s, 64]
        return %r
    """
    changes = check_rewrite(RaiseActivation(), before, after)
    assert changes == {"relu": 1}


@pytest.mark.parametrize(
    "body",
    [
        # A coefficient is off.
        """
        %half = constant() {value = 0.5, element = "f32"} : f32[]
        %one = constant() {value = 1.0, element = "f32"} : f32[]
        %three = constant() {value = 3.0, element = "f32"} : f32[]
        %k = constant() {value = 0.0447, element = "f32"} : f32[]
        %c = constant() {value = 0.7978845608028654, element = "f32"} : f32[]
        %h = mul(%x, %half) : f32[b, s, 64]
        %p = pow(%x, %three) : f32[b, s, 64]
        %u = mul(%p, %k) : f32[b, s, 64]
        %v = add(%x, %u) : f32[b, s, 64]
        %w = mul(%v, %c) : f32[b, s, 64]
        %t = tanh(%w) : f32[b, s, 64]
        %o = add(%t, %one) : f32[b, s, 64]
        %r = mul(%h, %o) : f32[b, s, 64]
        return %r
        """,
        # A scale is off.
        """
        %half = constant() {value = 0.5, element = "f32"} : f32[]
        %one = constant() {value = 1.0, element = "f32"} : f32[]
        %three = constant() {value = 3.0, element = "f32"} : f32[]
        %k = constant() {value = 0.044715, element = "f32"} : f32[]
        %c = constant() {value = 0.8, element = "f32"} : f32[]
        %h = mul(%x, %half) : f32[b, s, 64]
        %p = pow(%x, %three) : f32[b, s, 64]
        %u = mul(%p, %k) : f32[b, s, 64]
        %v = add(%x, %u) : f32[b, s, 64]
        %w = mul(%v, %c) : f32[b, s, 64]
        %t = tanh(%w) : f32[b, s, 64]
        %o = add(%t, %one) : f32[b, s, 64]
        %r = mul(%h, %o) : f32[b, s, 64]
        return %r
        """,
        # A square where the cube stands.
        """
        %half = constant() {value = 0.5, element = "f32"} : f32[]
        %one = constant() {value = 1.0, element = "f32"} : f32[]
        %three = constant() {value = 2.0, element = "f32"} : f32[]
        %k = constant() {value = 0.044715, element = "f32"} : f32[]
        %c = constant() {value = 0.7978845608028654, element = "f32"} : f32[]
        %h = mul(%x, %half) : f32[b, s, 64]
        %p = pow(%x, %three) : f32[b, s, 64]
        %u = mul(%p, %k) : f32[b, s, 64]
        %v = add(%x, %u) : f32[b, s, 64]
        %w = mul(%v, %c) : f32[b, s, 64]
        %t = tanh(%w) : f32[b, s, 64]
        %o = add(%t, %one) : f32[b, s, 64]
        %r = mul(%h, %o) : f32[b, s, 64]
        return %r
        """,
        # Not half.
        """
        %half = constant() {value = 1.0, element = "f32"} : f32[]
        %one = constant() {value = 1.0, element = "f32"} : f32[]
        %three = constant() {value = 3.0, element = "f32"} : f32[]
        %k = constant() {value = 0.044715, element = "f32"} : f32[]
        %c = constant() {value = 0.7978845608028654, element = "f32"} : f32[]
        %h = mul(%x, %half) : f32[b, s, 64]
        %p = pow(%x, %three) : f32[b, s, 64]
        %u = mul(%p, %k) : f32[b, s, 64]
        %v = add(%x, %u) : f32[b, s, 64]
        %w = mul(%v, %c) : f32[b, s, 64]
        %t = tanh(%w) : f32[b, s, 64]
        %o = add(%t, %one) : f32[b, s, 64]
        %r = mul(%h, %o) : f32[b, s, 64]
        return %r
        """,
        # x sigmoid(1.702 x) is not silu.
        """
        %k = constant() {value = 1.702, element = "f32"} : f32[]
        %z = mul(%x, %k) : f32[b, s, 64]
        %g = sigmoid(%z) : f32[b, s, 64]
        %r = mul(%x, %g) : f32[b, s, 64]
        return %r
        """,
        # The larger of two values.
        """
        %y = exp(%x) : f32[b, s, 64]
        %r = maximum(%x, %y) : f32[b, s, 64]
        return %r
        """,
    ],
)
def test_leaves_alone(body: str) -> None:
    check_untouched(RaiseActivation(), body)
