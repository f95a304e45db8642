"""The pass `raise-attention`."""

from __future__ import annotations

import pytest
import torch

from slmopt.ir.graph import Module
from slmopt.ir.text import parse_module
from slmopt.passes.raise_ import RaiseAttention
from tests.passes.golden import check_rewrite, check_untouched, drift
from tests.passes.toys import apply, toy

QKV = "%q: f32[b, 4, s, 16], %k: f32[b, 4, s, 16], %v: f32[b, 4, s, 16]"


def test_softmax_with_structural_mask() -> None:
    before = """
        %c = constant() {value = 0.25, element = "f32"} : f32[]
        %t = permute(%k) {axes = [0, 1, 3, 2]} : f32[b, 4, 16, s]
        %m = matmul(%q, %t) : f32[b, 4, s, s]
        %z = mul(%m, %c) : f32[b, 4, s, s]
        %mask = attention_mask() {queries = s, keys = s, window = 3} : f32[1, 1, s, s]
        %d = add(%z, %mask) : f32[b, 4, s, s]
        %w = softmax(%d) {axis = -1} : f32[b, 4, s, s]
        %r = matmul(%w, %v) : f32[b, 4, s, 16]
        return %r
    """
    after = """
        %t = permute(%k) {axes = [0, 1, 3, 2]} : f32[b, 4, 16, s]
        %r_2 = permute(%t) {axes = [0, 1, 3, 2]} : f32[b, 4, s, 16]
        %r = attention(%q, %r_2, %v) {scale = 0.25, mask = "causal", window = 3, chunk = none, sink = none, softcap = none, ring = false} : f32[b, 4, s, 16]
        return %r
    """  # noqa: E501
    changes = check_rewrite(RaiseAttention(), before, after, signature=QKV)
    assert changes == {"attention": 1, "structural mask": 1}


def test_soft_cap() -> None:
    before = """
        %c = constant() {value = 8.0, element = "f32"} : f32[]
        %cap = constant() {value = 5.0, element = "f32"} : f32[]
        %t = permute(%k) {axes = [0, 1, 3, 2]} : f32[b, 4, 16, s]
        %m = matmul(%q, %t) : f32[b, 4, s, s]
        %z = div(%m, %c) : f32[b, 4, s, s]
        %y = div(%z, %cap) : f32[b, 4, s, s]
        %h = tanh(%y) : f32[b, 4, s, s]
        %d = mul(%h, %cap) : f32[b, 4, s, s]
        %w = softmax(%d) {axis = 3} : f32[b, 4, s, s]
        %r = matmul(%w, %v) : f32[b, 4, s, 16]
        return %r
    """
    after = """
        %t = permute(%k) {axes = [0, 1, 3, 2]} : f32[b, 4, 16, s]
        %r_2 = permute(%t) {axes = [0, 1, 3, 2]} : f32[b, 4, s, 16]
        %r = attention(%q, %r_2, %v) {scale = 0.125, mask = "full", window = none, chunk = none, sink = none, softcap = 5.0, ring = false} : f32[b, 4, s, 16]
        return %r
    """  # noqa: E501
    changes = check_rewrite(RaiseAttention(), before, after, signature=QKV)
    assert changes == {"attention": 1}


def test_slopes_times_key_positions() -> None:
    before = """
        %n = arange() {start = 0, stop = s, element = "f32"} : f32[s]
        %p = mul(weight @slopes : f32[4, 1, 1], %n) : f32[4, 1, s]
        %o = reshape(%p) {shape = [1, 4, 1, s]} : f32[1, 4, 1, s]
        %mask = attention_mask() {queries = s, keys = s} : f32[1, 1, s, s]
        %t = permute(%k) {axes = [0, 1, 3, 2]} : f32[b, 4, 16, s]
        %m = matmul(%q, %t) : f32[b, 4, s, s]
        %z = add(%m, %o) : f32[b, 4, s, s]
        %d = add(%z, %mask) : f32[b, 4, s, s]
        %w = softmax(%d) {axis = -1} : f32[b, 4, s, s]
        %r = matmul(%w, %v) : f32[b, 4, s, 16]
        return %r
    """
    after = """
        %t = permute(%k) {axes = [0, 1, 3, 2]} : f32[b, 4, 16, s]
        %r_2 = permute(%t) {axes = [0, 1, 3, 2]} : f32[b, 4, s, 16]
        %r = attention(%q, %r_2, %v, _, _, weight @slopes.slopes : f32[4]) {scale = 1.0, mask = "causal", window = none, chunk = none, sink = none, softcap = none, ring = false} : f32[b, 4, s, 16]
        return %r
    """  # noqa: E501
    changes = check_rewrite(RaiseAttention(), before, after, signature=QKV)
    assert changes == {"attention": 1, "structural mask": 1, "slopes": 1}


def test_mask_among_other_terms() -> None:
    before = """
        %mask = attention_mask() {queries = s, keys = s, chunk = 2} : f32[1, 1, s, s]
        %f = expand(%mask) {shape = [b, 1, s, s]} : f32[b, 1, s, s]
        %z = add(%f, %e) : f32[b, 1, s, s]
        %r = attention(%q, %k, %v, %z) {scale = 0.25, mask = "full", window = 4} : f32[b, 4, s, 16]
        return %r
    """
    after = """
        %r = attention(%q, %k, %v, %e) {scale = 0.25, mask = "causal", window = 4, chunk = 2, sink = none, softcap = none, ring = false} : f32[b, 4, s, 16]
        return %r
    """  # noqa: E501
    signature = f"{QKV}, %e: f32[b, 1, s, s]"
    changes = check_rewrite(RaiseAttention(), before, after, signature=signature)
    assert changes == {"structural mask": 1}


def test_repeated_heads_are_read_unrepeated() -> None:
    before = """
        %k1 = reshape(%k) {shape = [b, 2, 1, s, 16]} : f32[b, 2, 1, s, 16]
        %k2 = expand(%k1) {shape = [b, 2, 2, s, 16]} : f32[b, 2, 2, s, 16]
        %k3 = reshape(%k2) {shape = [b, 4, s, 16]} : f32[b, 4, s, 16]
        %v1 = reshape(%v) {shape = [b, 2, 1, s, 16]} : f32[b, 2, 1, s, 16]
        %v2 = expand(%v1) {shape = [b, 2, 2, s, 16]} : f32[b, 2, 2, s, 16]
        %v3 = reshape(%v2) {shape = [b, 4, s, 16]} : f32[b, 4, s, 16]
        %r = attention(%q, %k3, %v3) {scale = 0.25} : f32[b, 4, s, 16]
        return %r
    """
    after = """
        %r = attention(%q, %k, %v) {scale = 0.25, mask = "causal", window = none, chunk = none, sink = none, softcap = none, ring = false} : f32[b, 4, s, 16]
        return %r
    """  # noqa: E501
    signature = "%q: f32[b, 4, s, 16], %k: f32[b, 2, s, 16], %v: f32[b, 2, s, 16]"
    changes = check_rewrite(RaiseAttention(), before, after, signature=signature)
    assert changes == {"grouped heads": 1}


def test_numbers_go_into_scale() -> None:
    before = """
        %c = constant() {value = 0.25, element = "f32"} : f32[]
        %d = constant() {value = 2.0, element = "f32"} : f32[]
        %y = mul(%x, %c) : f32[b, s, 64]
        %h = reshape(%y) {shape = [b, s, 4, 16]} : f32[b, s, 4, 16]
        %q = permute(%h) {axes = [0, 2, 1, 3]} : f32[b, 4, s, 16]
        %l = div(%k, %d) : f32[b, 4, s, 16]
        %r = attention(%q, %l, %v) {scale = 1.0} : f32[b, 4, s, 16]
        return %r
    """
    after = """
        %r_2 = reshape(%x) {shape = [b, s, 4, 16]} : f32[b, s, 4, 16]
        %r_3 = permute(%r_2) {axes = [0, 2, 1, 3]} : f32[b, 4, s, 16]
        %r = attention(%r_3, %k, %v) {scale = 0.125, mask = "causal", window = none, chunk = none, sink = none, softcap = none, ring = false} : f32[b, 4, s, 16]
        return %r
    """  # noqa: E501
    signature = "%x: f32[b, s, 64], %k: f32[b, 4, s, 16], %v: f32[b, 4, s, 16]"
    changes = check_rewrite(RaiseAttention(), before, after, signature=signature)
    assert changes == {"scale": 1}


def with_stored_mask(table: torch.Tensor) -> Module:
    """Attention whose scores are very low where a stored table of truth values says so."""
    module = parse_module(f"""module @m {{ graph @forward({QKV}) {{
        %c = constant() {{value = 4.0, element = "f32"}} : f32[]
        %low = constant() {{value = -3.4028234663852886e+38, element = "f32"}} : f32[]
        %rows = slice(weight @mask : bool[1, 1, 9, 9]) {{axis = 2, stop = s}} : bool[1, 1, s, 9]
        %seen = slice(%rows) {{axis = 3, stop = s}} : bool[1, 1, s, s]
        %t = permute(%k) {{axes = [0, 1, 3, 2]}} : f32[b, 4, 16, s]
        %m = matmul(%q, %t) : f32[b, 4, s, s]
        %z = div(%m, %c) : f32[b, 4, s, s]
        %y = where(%seen, %z, %low) : f32[b, 4, s, s]
        %w = softmax(%y) {{axis = 3}} : f32[b, 4, s, s]
        %r = matmul(%w, %v) : f32[b, 4, s, 16]
        return %r
    }} }}""")
    module.weights.add_tensor("mask", table.reshape(1, 1, 9, 9))
    return module


DISTANCE = torch.arange(9)[:, None] - torch.arange(9)[None, :]


@pytest.mark.parametrize(("window", "attribute"), [(9, None), (3, 3), (1, 1)])
def test_stored_causal_mask(window: int, attribute: int | None) -> None:
    module = with_stored_mask((DISTANCE >= 0) & (window > DISTANCE))
    found, changes = apply(module, RaiseAttention())
    (attention,) = [made for made in found.graph().walk() if made.name == "attention"]
    assert changes == {"attention": 1, "structural mask": 1}
    assert [attention.attributes[name] for name in ("mask", "window", "scale")] == ["causal", attribute, 0.25]
    assert len(attention.operands) == 3
    assert drift(module, found) <= 1e-12


@pytest.mark.parametrize("table", [(DISTANCE >= 0) & (DISTANCE != 2), DISTANCE >= -1])
def test_stored_mask_of_another_kind_stays(table: torch.Tensor) -> None:
    """With a hole, with a look ahead: a table, not a structure."""
    module = with_stored_mask(table)
    before = str(module)
    found, _ = apply(module, RaiseAttention())
    kept = [made for made in found.graph().walk() if made.name == "where"]
    assert len(kept) == 1
    assert str(module) == before


def test_factor_of_a_sum_and_floor() -> None:
    before = """
        %c = constant() {value = 4.0, element = "f32"} : f32[]
        %low = constant() {value = -3.4028234663852886e+38, element = "f32"} : f32[]
        %mask = attention_mask() {queries = s, keys = s} : f32[1, 1, s, s]
        %t = permute(%k) {axes = [0, 1, 3, 2]} : f32[b, 4, 16, s]
        %m = matmul(%q, %t) : f32[b, 4, s, s]
        %z = add(%m, %mask) : f32[b, 4, s, s]
        %y = add(%z, %e) : f32[b, 4, s, s]
        %d = div(%y, %c) : f32[b, 4, s, s]
        %f = maximum(%d, %low) : f32[b, 4, s, s]
        %w = softmax(%f) {axis = 3} : f32[b, 4, s, s]
        %r = matmul(%w, %v) : f32[b, 4, s, 16]
        return %r
    """
    after = """
        %t = permute(%k) {axes = [0, 1, 3, 2]} : f32[b, 4, 16, s]
        %r_2 = constant() {value = 0.25, element = "f32"} : f32[]
        %r_3 = mul(%e, %r_2) : f32[b, 1, s, s]
        %r_4 = permute(%t) {axes = [0, 1, 3, 2]} : f32[b, 4, s, 16]
        %r = attention(%q, %r_4, %v, %r_3) {scale = 0.25, mask = "causal", window = none, chunk = none, sink = none, softcap = none, ring = false} : f32[b, 4, s, 16]
        return %r
    """  # noqa: E501
    changes = check_rewrite(RaiseAttention(), before, after, signature=f"{QKV}, %e: f32[b, 1, s, s]")
    assert changes == {"attention": 1, "structural mask": 1}


def test_one_key_head_for_all_queries() -> None:
    before = """
        %t = permute(%k) {axes = [0, 1, 3, 2]} : f32[b, 1, 16, s]
        %m = matmul(%q, %t) : f32[b, 4, s, s]
        %w = softmax(%m) {axis = 3} : f32[b, 4, s, s]
        %r = matmul(%w, %v) : f32[b, 4, s, 16]
        return %r
    """
    module = toy(before, signature="%q: f32[b, 4, s, 16], %k: f32[b, 1, s, 16], %v: f32[b, 1, s, 16]")
    found, changes = apply(module, RaiseAttention())
    assert changes == {"attention": 1}
    assert drift(module, found) <= 1e-12


@pytest.mark.parametrize(
    "body",
    [
        # The softmax runs over queries.
        """
        %t = permute(%k) {axes = [0, 1, 3, 2]} : f32[b, 4, 16, s]
        %m = matmul(%q, %t) : f32[b, 4, s, s]
        %w = softmax(%m) {axis = 2} : f32[b, 4, s, s]
        %r = matmul(%w, %v) : f32[b, 4, s, 16]
        return %r
        """,
        # No softmax.
        """
        %t = permute(%k) {axes = [0, 1, 3, 2]} : f32[b, 4, 16, s]
        %m = matmul(%q, %t) : f32[b, 4, s, s]
        %w = sigmoid(%m) : f32[b, 4, s, s]
        %r = matmul(%w, %v) : f32[b, 4, s, 16]
        return %r
        """,
        # Two products are added up.
        """
        %t = permute(%k) {axes = [0, 1, 3, 2]} : f32[b, 4, 16, s]
        %m = matmul(%q, %t) : f32[b, 4, s, s]
        %n = matmul(%v, %t) : f32[b, 4, s, s]
        %d = add(%m, %n) : f32[b, 4, s, s]
        %w = softmax(%d) {axis = 3} : f32[b, 4, s, s]
        %r = matmul(%w, %v) : f32[b, 4, s, 16]
        return %r
        """,
        # The scores are squashed.
        """
        %t = permute(%k) {axes = [0, 1, 3, 2]} : f32[b, 4, 16, s]
        %m = matmul(%q, %t) : f32[b, 4, s, s]
        %d = tanh(%m) : f32[b, 4, s, s]
        %w = softmax(%d) {axis = 3} : f32[b, 4, s, s]
        %r = matmul(%w, %v) : f32[b, 4, s, 16]
        return %r
        """,
        # The mask is of other lengths than the scores.
        """
        %e = attention_mask() {queries = 1, keys = s, mask = "causal", window = none, chunk = none} : f32[1, 1, 1, s]
        %r = attention(%q, %k, %v, %e) {scale = 0.25} : f32[b, 4, s, 16]
        return %r
        """,
        # Chunks that differ cannot be one attribute.
        """
        %e = attention_mask() {queries = s, keys = s, mask = "causal", window = none, chunk = 2} : f32[1, 1, s, s]
        %r = attention(%q, %k, %v, %e) {scale = 0.25, chunk = 3} : f32[b, 4, s, 16]
        return %r
        """,
        # Slopes times query positions, and times what is no position.
        """
        %n = arange() {start = 0, stop = s, element = "f32"} : f32[s]
        %c = reshape(%n) {shape = [s, 1]} : f32[s, 1]
        %p = mul(weight @slopes : f32[4, 1, 1], %c) : f32[4, s, 1]
        %e = exp(%n) : f32[s]
        %o = mul(weight @slopes : f32[4, 1, 1], %e) : f32[4, 1, s]
        %z = add(%p, %o) : f32[4, s, s]
        %r = attention(%q, %k, %v, %z) {scale = 0.25} : f32[b, 4, s, 16]
        return %r
        """,
        # Slopes beside sinks: the sinks' logits are not shifted along.
        """
        %n = arange() {start = 0, stop = s, element = "f32"} : f32[s]
        %p = mul(weight @slopes : f32[4, 1, 1], %n) : f32[4, 1, s]
        %r = attention(%q, %k, %v, %p, _, _, weight @sinks : f32[4]) {scale = 0.25} : f32[b, 4, s, 16]
        return %r
        """,
        # Keys alone are repeated; heads are interleaved, not repeated.
        """
        %k1 = slice(%k) {axis = 1, start = 0, stop = 2, step = 1} : f32[b, 2, s, 16]
        %k2 = reshape(%k1) {shape = [b, 1, 2, s, 16]} : f32[b, 1, 2, s, 16]
        %k3 = expand(%k2) {shape = [b, 2, 2, s, 16]} : f32[b, 2, 2, s, 16]
        %k4 = reshape(%k3) {shape = [b, 4, s, 16]} : f32[b, 4, s, 16]
        %r = attention(%q, %k4, %k4) {scale = 0.25} : f32[b, 4, s, 16]
        return %r
        """,
        # The scaled keys are read elsewhere, the values' scale is no scale of the scores.
        """
        %c = constant() {value = 0.5, element = "f32"} : f32[]
        %l = mul(%k, %c) : f32[b, 4, s, 16]
        %u = mul(%v, %c) : f32[b, 4, s, 16]
        %a = attention(%q, %l, %u) {scale = 0.25} : f32[b, 4, s, 16]
        %r = add(%a, %l) : f32[b, 4, s, 16]
        return %r
        """,
    ],
)
def test_leaves_alone(body: str) -> None:
    check_untouched(RaiseAttention(), body, signature=QKV)
