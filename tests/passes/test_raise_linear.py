"""The pass `raise-linear`."""

from __future__ import annotations

import pytest

from slmopt.passes.raise_ import RaiseLinear
from tests.passes.golden import check_rewrite, check_untouched


def test_matrix_of_columns_is_transposed_once() -> None:
    before = """
        %m = matmul(%x, weight @w : f32[64, 32]) : f32[b, s, 32]
        %r = add(%m, weight @bias : f32[32]) : f32[b, s, 32]
        return %r
    """
    after = """
        %r = linear(%x, weight @w.transposed : f32[32, 64], weight @bias : f32[32]) {activation = none, act = none} : f32[b, s, 32]
        return %r
    """  # noqa: E501
    changes = check_rewrite(RaiseLinear(), before, after)
    assert changes == {"linear": 1, "linear bias": 1}


def test_transposed_matrix_keeps_its_key() -> None:
    before = """
        %t = permute(weight @w : f32[32, 64]) {axes = [1, 0]} : f32[64, 32]
        %m = matmul(%x, %t) : f32[b, s, 32]
        return %m
    """
    after = """
        %m = linear(%x, weight @w : f32[32, 64]) {activation = none, act = none} : f32[b, s, 32]
        return %m
    """
    changes = check_rewrite(RaiseLinear(), before, after)
    assert changes == {"linear": 1}


@pytest.mark.parametrize(
    "body",
    [
        # Two activations multiply.
        """
        %t = permute(%x) {axes = [0, 2, 1]} : f32[b, 64, s]
        %r = matmul(%x, %t) : f32[b, s, s]
        return %r
        """,
        # An outer product with a row of frequencies is no linear layer.
        """
        %p = slice(%x) {axis = 2, start = 0, stop = 1, step = 1} : f32[b, s, 1]
        %r = matmul(%p, weight @inverse_frequencies : f32[1, 8]) : f32[b, s, 8]
        return %r
        """,
        # A stack of matrices, one for each head.
        """
        %h = reshape(%x) {shape = [b, s, 4, 16]} : f32[b, s, 4, 16]
        %t = permute(%h) {axes = [0, 2, 1, 3]} : f32[b, 4, s, 16]
        %r = matmul(%t, weight @w : f32[4, 16, 8]) : f32[b, 4, s, 8]
        return %r
        """,
        # The product is read without the bias, too.
        """
        %m = linear(%x, weight @w : f32[64, 64]) {activation = none, act = none} : f32[b, s, 64]
        %a = add(%m, weight @bias : f32[64]) : f32[b, s, 64]
        %r = mul(%a, %m) : f32[b, s, 64]
        return %r
        """,
        # A bias after the activation, a second bias, and one of one element.
        """
        %m = linear(%x, weight @w : f32[64, 64], weight @bias : f32[64]) {activation = "relu"} : f32[b, s, 64]
        %a = add(%m, weight @second : f32[64]) : f32[b, s, 64]
        %n = linear(%a, weight @v : f32[64, 64]) {activation = none, act = none} : f32[b, s, 64]
        %r = add(%n, weight @one : f32[1]) : f32[b, s, 64]
        return %r
        """,
    ],
)
def test_leaves_alone(body: str) -> None:
    check_untouched(RaiseLinear(), body)
