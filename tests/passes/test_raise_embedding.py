"""The pass `raise-embedding`."""

from __future__ import annotations

import pytest

from slmopt.passes.raise_ import RaiseEmbedding
from tests.passes.golden import check_rewrite, check_untouched


def test_gathered_rows() -> None:
    before = """
        %r = gather(weight @t : f32[20, 8], %ids) {axis = 0} : f32[b, s, 8]
        return %r
    """
    after = """
        %r = embedding(%ids, weight @t : f32[20, 8]) : f32[b, s, 8]
        return %r
    """
    changes = check_rewrite(RaiseEmbedding(), before, after, signature="%ids: i64[b, s]")
    assert changes == {"embedding": 1}


def test_first_rows_of_learned_positions() -> None:
    before = """
        %p = slice(weight @t : f32[20, 8]) {axis = 0, start = 2, stop = s + 2} : f32[s, 8]
        %r = add(%x, %p) : f32[b, s, 8]
        return %r
    """
    after = """
        %p_2 = arange() {start = 2, stop = s + 2, element = "i64"} : i64[s]
        %p = embedding(%p_2, weight @t : f32[20, 8]) : f32[s, 8]
        %r = add(%x, %p) : f32[b, s, 8]
        return %r
    """
    changes = check_rewrite(RaiseEmbedding(), before, after, signature="%x: f32[b, s, 8]")
    assert changes == {"embedding": 1}


@pytest.mark.parametrize(
    "body",
    [
        # Columns of a table.
        """
        %i = arange() {start = 0, stop = s, element = "i64"} : i64[s]
        %c = gather(weight @table : f32[64, 9], %i) {axis = 1} : f32[64, s]
        %r = matmul(%x, %c) : f32[b, s, s]
        return %r
        """,
        # A fixed number of rows, and rows of an activation.
        """
        %t = slice(weight @table : f32[20, 64]) {axis = 0, start = 0, stop = 1, step = 1} : f32[1, 64]
        %i = arange() {start = 0, stop = s, element = "i64"} : i64[s]
        %g = gather(%x, %i) {axis = 1} : f32[b, s, 64]
        %r = add(%g, %t) : f32[b, s, 64]
        return %r
        """,
    ],
)
def test_leaves_alone(body: str) -> None:
    check_untouched(RaiseEmbedding(), body)
