"""The pass `raise-norm`."""

from __future__ import annotations

import pytest

from slmopt.passes.raise_ import Raise, RaiseNorm
from tests.passes.golden import check_rewrite, check_untouched


def test_rms_norm_with_weight() -> None:
    before = """
        %two = constant() {value = 2.0, element = "f32"} : f32[]
        %eps = constant() {value = 1e-05, element = "f32"} : f32[]
        %p = pow(%x, %two) : f32[b, s, 64]
        %m = mean(%p) {axis = -1, keep = true} : f32[b, s, 1]
        %v = add(%m, %eps) : f32[b, s, 1]
        %i = rsqrt(%v) : f32[b, s, 1]
        %n = mul(%x, %i) : f32[b, s, 64]
        %r = mul(weight @w : f32[64], %n) : f32[b, s, 64]
        return %r
    """
    after = """
        %r = rms_norm(%x, weight @w : f32[64]) {eps = 1e-05, output = "f32"} : f32[b, s, 64]
        return %r
    """
    changes = check_rewrite(RaiseNorm(), before, after)
    assert changes == {"rms_norm": 1, "norm weight": 1}


def test_rms_norm_by_square_root_and_division() -> None:
    before = """
        %eps = constant() {value = 1e-05, element = "f32"} : f32[]
        %p = mul(%x, %x) : f32[b, s, 64]
        %m = mean(%p) {axis = 2, keep = true} : f32[b, s, 1]
        %v = add(%eps, %m) : f32[b, s, 1]
        %i = sqrt(%v) : f32[b, s, 1]
        %r = div(%x, %i) : f32[b, s, 64]
        return %r
    """
    after = """
        %r = rms_norm(%x) {eps = 1e-05, output = "f32"} : f32[b, s, 64]
        return %r
    """
    changes = check_rewrite(RaiseNorm(), before, after)
    assert changes == {"rms_norm": 1}


def test_decomposed_layer_norm() -> None:
    before = """
        %two = constant() {value = 2.0, element = "f32"} : f32[]
        %eps = constant() {value = 1e-05, element = "f32"} : f32[]
        %mu = mean(%x) {axis = 2, keep = true} : f32[b, s, 1]
        %c = sub(%x, %mu) : f32[b, s, 64]
        %p = pow(%c, %two) : f32[b, s, 64]
        %m = mean(%p) {axis = 2, keep = true} : f32[b, s, 1]
        %v = add(%m, %eps) : f32[b, s, 1]
        %i = sqrt(%v) : f32[b, s, 1]
        %n = div(%c, %i) : f32[b, s, 64]
        %g = mul(%n, weight @w : f32[64]) : f32[b, s, 64]
        %r = add(%g, weight @bias : f32[64]) : f32[b, s, 64]
        return %r
    """
    after = """
        %r = layer_norm(%x, weight @w : f32[64], weight @bias : f32[64]) {eps = 1e-05, output = "f32"} : f32[b, s, 64]
        return %r
    """
    changes = check_rewrite(RaiseNorm(), before, after)
    assert changes == {"rms_norm": 1, "norm weight": 1, "layer_norm": 1, "norm bias": 1}


def test_weight_plus_one_becomes_a_derived_weight() -> None:
    before = """
        %two = constant() {value = 2.0, element = "f32"} : f32[]
        %eps = constant() {value = 1e-05, element = "f32"} : f32[]
        %one = constant() {value = 1.0, element = "f32"} : f32[]
        %p = pow(%x, %two) : f32[b, s, 64]
        %m = mean(%p) {axis = 2, keep = true} : f32[b, s, 1]
        %v = add(%m, %eps) : f32[b, s, 1]
        %i = rsqrt(%v) : f32[b, s, 1]
        %n = mul(%x, %i) : f32[b, s, 64]
        %w = add(%one, weight @w : f32[64]) : f32[64]
        %r = mul(%n, %w) : f32[b, s, 64]
        return %r
    """
    after = """
        %r = rms_norm(%x, weight @w.add : f32[64]) {eps = 1e-05, output = "f32"} : f32[b, s, 64]
        return %r
    """
    changes = check_rewrite(Raise(), before, after, tolerance=1e-6)
    assert changes == {"canonical": 1, "rms_norm": 1, "norm weight": 1}


@pytest.mark.parametrize(
    "body",
    [
        # Another value is normalized than the one measured.
        """
        %y = exp(%x) : f32[b, s, 64]
        %two = constant() {value = 2.0, element = "f32"} : f32[]
        %eps = constant() {value = 1e-05, element = "f32"} : f32[]
        %p = pow(%y, %two) : f32[b, s, 64]
        %m = mean(%p) {axis = 2, keep = true} : f32[b, s, 1]
        %v = add(%m, %eps) : f32[b, s, 1]
        %i = rsqrt(%v) : f32[b, s, 1]
        %r = mul(%x, %i) : f32[b, s, 64]
        return %r
        """,
        # The mean runs over positions.
        """
        %two = constant() {value = 2.0, element = "f32"} : f32[]
        %eps = constant() {value = 1e-05, element = "f32"} : f32[]
        %p = pow(%x, %two) : f32[b, s, 64]
        %m = mean(%p) {axis = 1, keep = true} : f32[b, 1, 64]
        %v = add(%m, %eps) : f32[b, 1, 64]
        %i = rsqrt(%v) : f32[b, 1, 64]
        %r = mul(%x, %i) : f32[b, s, 64]
        return %r
        """,
        # A sum is no mean.
        """
        %two = constant() {value = 2.0, element = "f32"} : f32[]
        %eps = constant() {value = 1e-05, element = "f32"} : f32[]
        %p = pow(%x, %two) : f32[b, s, 64]
        %m = sum(%p) {axis = 2, keep = true} : f32[b, s, 1]
        %v = add(%m, %eps) : f32[b, s, 1]
        %i = rsqrt(%v) : f32[b, s, 1]
        %r = mul(%x, %i) : f32[b, s, 64]
        return %r
        """,
        # The fourth power is no square.
        """
        %two = constant() {value = 4.0, element = "f32"} : f32[]
        %eps = constant() {value = 1e-05, element = "f32"} : f32[]
        %p = pow(%x, %two) : f32[b, s, 64]
        %m = mean(%p) {axis = 2, keep = true} : f32[b, s, 1]
        %v = add(%m, %eps) : f32[b, s, 1]
        %i = rsqrt(%v) : f32[b, s, 1]
        %r = mul(%x, %i) : f32[b, s, 64]
        return %r
        """,
        # A weight for each position, and one for all.
        """
        %n = rms_norm(%x) {eps = 1e-05, output = "f32"} : f32[b, s, 64]
        %w = mul(%n, weight @w : f32[1]) : f32[b, s, 64]
        %a = add(%w, weight @bias : f32[64]) : f32[b, s, 64]
        return %a
        """,
        # The epsilon is no number known here.
        """
        %e = mean(%x) {axis = 2, keep = true} : f32[b, s, 1]
        %two = constant() {value = 2.0, element = "f32"} : f32[]
        %p = pow(%x, %two) : f32[b, s, 64]
        %m = mean(%p) {axis = 2, keep = true} : f32[b, s, 1]
        %v = add(%m, %e) : f32[b, s, 1]
        %i = rsqrt(%v) : f32[b, s, 1]
        %r = mul(%x, %i) : f32[b, s, 64]
        return %r
        """,
    ],
)
def test_leaves_alone(body: str) -> None:
    check_untouched(RaiseNorm(), body)
