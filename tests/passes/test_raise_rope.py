"""The pass `raise-rope`."""

from __future__ import annotations

import pytest

from slmopt.passes.raise_ import Raise, RaiseRope
from tests.passes.golden import check_rewrite, check_untouched

HEADS = "%x: f32[b, 4, s, 16], %cos: f32[1, 1, s, 16], %sin: f32[1, 1, s, 16]"
NARROW = "%x: f32[b, 4, s, 16], %cos: f32[1, 1, s, 8], %sin: f32[1, 1, s, 8]"


def test_rotated_halves() -> None:
    before = """
        %a = mul(%x, %cos) : f32[b, 4, s, 16]
        %f = slice(%x) {axis = 3, start = 0, stop = 8} : f32[b, 4, s, 8]
        %g = slice(%x) {axis = 3, start = 8, stop = 16} : f32[b, 4, s, 8]
        %n = neg(%g) : f32[b, 4, s, 8]
        %t = concat(%n, %f) {axis = -1} : f32[b, 4, s, 16]
        %m = mul(%t, %sin) : f32[b, 4, s, 16]
        %r = add(%a, %m) : f32[b, 4, s, 16]
        return %r
    """
    after = """
        %r = rope(%x, %cos, %sin) {style = "half"} : f32[b, 4, s, 16]
        return %r
    """
    changes = check_rewrite(RaiseRope(), before, after, signature=HEADS)
    assert changes == {"rope": 1}


def test_rotated_pairs() -> None:
    before = """
        %a = mul(%x, %cos) : f32[b, 4, s, 16]
        %e = slice(%x) {axis = 3, start = 0, stop = 16, step = 2} : f32[b, 4, s, 8]
        %o = slice(%x) {axis = 3, start = 1, stop = 16, step = 2} : f32[b, 4, s, 8]
        %n = neg(%o) : f32[b, 4, s, 8]
        %n1 = reshape(%n) {shape = [b, 4, s, 8, 1]} : f32[b, 4, s, 8, 1]
        %e1 = reshape(%e) {shape = [b, 4, s, 8, 1]} : f32[b, 4, s, 8, 1]
        %t = concat(%n1, %e1) {axis = 4} : f32[b, 4, s, 8, 2]
        %t1 = reshape(%t) {shape = [b, 4, s, 16]} : f32[b, 4, s, 16]
        %m = mul(%t1, %sin) : f32[b, 4, s, 16]
        %r = add(%a, %m) : f32[b, 4, s, 16]
        return %r
    """
    after = """
        %r = rope(%x, %cos, %sin) {style = "interleaved"} : f32[b, 4, s, 16]
        return %r
    """
    changes = check_rewrite(RaiseRope(), before, after, signature=HEADS)
    assert changes == {"rope": 1}


def test_part_of_a_head() -> None:
    before = """
        %p = slice(%x) {axis = 3, start = 0, stop = 8} : f32[b, 4, s, 8]
        %q = slice(%x) {axis = 3, start = 8, stop = 16} : f32[b, 4, s, 8]
        %a = mul(%p, %cos) : f32[b, 4, s, 8]
        %f = slice(%p) {axis = 3, start = 0, stop = 4} : f32[b, 4, s, 4]
        %g = slice(%p) {axis = 3, start = 4, stop = 8} : f32[b, 4, s, 4]
        %n = neg(%g) : f32[b, 4, s, 4]
        %t = concat(%n, %f) {axis = 3} : f32[b, 4, s, 8]
        %m = mul(%t, %sin) : f32[b, 4, s, 8]
        %y = add(%a, %m) : f32[b, 4, s, 8]
        %r = concat(%y, %q) {axis = 3} : f32[b, 4, s, 16]
        return %r
    """
    after = """
        %r = rope(%x, %cos, %sin) {style = "half"} : f32[b, 4, s, 16]
        return %r
    """
    changes = check_rewrite(Raise(), before, after, signature=NARROW)
    assert changes == {"canonical": 2, "rope": 1, "partial rope": 1}


def test_halves_turned_apart() -> None:
    before = """
        %f = slice(%x) {axis = 3, start = 0, stop = 8} : f32[b, 4, s, 8]
        %g = slice(%x) {axis = 3, start = 8, stop = 16} : f32[b, 4, s, 8]
        %fc = mul(%f, %cos) : f32[b, 4, s, 8]
        %gs = mul(%g, %sin) : f32[b, 4, s, 8]
        %gc = mul(%cos, %g) : f32[b, 4, s, 8]
        %fs = mul(%f, %sin) : f32[b, 4, s, 8]
        %a = sub(%fc, %gs) : f32[b, 4, s, 8]
        %c = add(%gc, %fs) : f32[b, 4, s, 8]
        %r = concat(%a, %c) {axis = 3} : f32[b, 4, s, 16]
        return %r
    """
    after = """
        %r_2 = concat(%cos, %cos) {axis = 3} : f32[1, 1, s, 16]
        %r_3 = concat(%sin, %sin) {axis = 3} : f32[1, 1, s, 16]
        %r = rope(%x, %r_2, %r_3) {style = "half"} : f32[b, 4, s, 16]
        return %r
    """
    changes = check_rewrite(RaiseRope(), before, after, signature=NARROW)
    assert changes == {"rope": 1}


def test_pairs_turned_apart() -> None:
    before = """
        %f = slice(%x) {axis = 3, start = 0, stop = none, step = 2} : f32[b, 4, s, 8]
        %g = slice(%x) {axis = 3, start = 1, stop = none, step = 2} : f32[b, 4, s, 8]
        %fc = mul(%f, %cos) : f32[b, 4, s, 8]
        %gs = mul(%g, %sin) : f32[b, 4, s, 8]
        %gc = mul(%g, %cos) : f32[b, 4, s, 8]
        %fs = mul(%f, %sin) : f32[b, 4, s, 8]
        %a = sub(%fc, %gs) : f32[b, 4, s, 8]
        %c = add(%fs, %gc) : f32[b, 4, s, 8]
        %a1 = reshape(%a) {shape = [b, 4, s, 8, 1]} : f32[b, 4, s, 8, 1]
        %c1 = reshape(%c) {shape = [b, 4, s, 8, 1]} : f32[b, 4, s, 8, 1]
        %t = concat(%a1, %c1) {axis = 4} : f32[b, 4, s, 8, 2]
        %r = reshape(%t) {shape = [b, 4, s, 16]} : f32[b, 4, s, 16]
        return %r
    """
    after = """
        %r_2 = reshape(%cos) {shape = [1, 1, s, 8, 1]} : f32[1, 1, s, 8, 1]
        %r_3 = concat(%r_2, %r_2) {axis = 4} : f32[1, 1, s, 8, 2]
        %r_4 = reshape(%r_3) {shape = [1, 1, s, 16]} : f32[1, 1, s, 16]
        %r_5 = reshape(%sin) {shape = [1, 1, s, 8, 1]} : f32[1, 1, s, 8, 1]
        %r_6 = concat(%r_5, %r_5) {axis = 4} : f32[1, 1, s, 8, 2]
        %r_7 = reshape(%r_6) {shape = [1, 1, s, 16]} : f32[1, 1, s, 16]
        %r = rope(%x, %r_4, %r_7) {style = "interleaved"} : f32[b, 4, s, 16]
        return %r
    """
    changes = check_rewrite(RaiseRope(), before, after, signature=NARROW)
    assert changes == {"rope": 1}


@pytest.mark.parametrize(
    "body",
    [
        # The parts are no halves.
        """
        %a = mul(%x, %cos) : f32[b, 4, s, 16]
        %f = slice(%x) {axis = 3, start = 0, stop = 4, step = 1} : f32[b, 4, s, 4]
        %g = slice(%x) {axis = 3, start = 4, stop = 16, step = 1} : f32[b, 4, s, 12]
        %n = neg(%g) : f32[b, 4, s, 12]
        %t = concat(%n, %f) {axis = 3} : f32[b, 4, s, 16]
        %m = mul(%t, %sin) : f32[b, 4, s, 16]
        %r = add(%a, %m) : f32[b, 4, s, 16]
        return %r
        """,
        # The halves are not swapped.
        """
        %a = mul(%x, %cos) : f32[b, 4, s, 16]
        %f = slice(%x) {axis = 3, start = 0, stop = 8, step = 1} : f32[b, 4, s, 8]
        %g = slice(%x) {axis = 3, start = 8, stop = 16, step = 1} : f32[b, 4, s, 8]
        %n = neg(%g) : f32[b, 4, s, 8]
        %t = concat(%f, %n) {axis = 3} : f32[b, 4, s, 16]
        %m = mul(%t, %sin) : f32[b, 4, s, 16]
        %r = add(%a, %m) : f32[b, 4, s, 16]
        return %r
        """,
        # Another value is turned than the one scaled.
        """
        %y = exp(%x) : f32[b, 4, s, 16]
        %a = mul(%y, %cos) : f32[b, 4, s, 16]
        %f = slice(%x) {axis = 3, start = 0, stop = 8, step = 1} : f32[b, 4, s, 8]
        %g = slice(%x) {axis = 3, start = 8, stop = 16, step = 1} : f32[b, 4, s, 8]
        %n = neg(%g) : f32[b, 4, s, 8]
        %t = concat(%n, %f) {axis = 3} : f32[b, 4, s, 16]
        %m = mul(%t, %sin) : f32[b, 4, s, 16]
        %r = add(%a, %m) : f32[b, 4, s, 16]
        return %r
        """,
        # The rotation is of the other sign.
        """
        %a = mul(%x, %cos) : f32[b, 4, s, 16]
        %f = slice(%x) {axis = 3, start = 0, stop = 8, step = 1} : f32[b, 4, s, 8]
        %g = slice(%x) {axis = 3, start = 8, stop = 16, step = 1} : f32[b, 4, s, 8]
        %n = neg(%g) : f32[b, 4, s, 8]
        %t = concat(%n, %f) {axis = 3} : f32[b, 4, s, 16]
        %m = mul(%t, %sin) : f32[b, 4, s, 16]
        %r = sub(%a, %m) : f32[b, 4, s, 16]
        return %r
        """,
        # One cosine for the whole head.
        """
        %c = slice(%cos) {axis = 3, start = 0, stop = 1, step = 1} : f32[1, 1, s, 1]
        %a = mul(%x, %c) : f32[b, 4, s, 16]
        %f = slice(%x) {axis = 3, start = 0, stop = 8, step = 1} : f32[b, 4, s, 8]
        %g = slice(%x) {axis = 3, start = 8, stop = 16, step = 1} : f32[b, 4, s, 8]
        %n = neg(%g) : f32[b, 4, s, 8]
        %t = concat(%n, %f) {axis = 3} : f32[b, 4, s, 16]
        %m = mul(%t, %sin) : f32[b, 4, s, 16]
        %r = add(%a, %m) : f32[b, 4, s, 16]
        return %r
        """,
        # What stands beside the turned part is not the rest of it.
        """
        %p = slice(%x) {axis = 3, start = 0, stop = 8, step = 1} : f32[b, 4, s, 8]
        %q = slice(%x) {axis = 3, start = 4, stop = 12, step = 1} : f32[b, 4, s, 8]
        %c = slice(%cos) {axis = 3, start = 0, stop = 8, step = 1} : f32[1, 1, s, 8]
        %d = slice(%sin) {axis = 3, start = 0, stop = 8, step = 1} : f32[1, 1, s, 8]
        %y = rope(%p, %c, %d) {style = "half"} : f32[b, 4, s, 8]
        %r = concat(%y, %q) {axis = 3} : f32[b, 4, s, 16]
        return %r
        """,
    ],
)
def test_leaves_alone(body: str) -> None:
    check_untouched(RaiseRope(), body, signature=HEADS)
