"""The pass `canonicalize`."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from slmopt.ir.graph import Graph, Module, Value, Weight
from slmopt.ir.text import parse_module
from slmopt.ir.types import TensorType, tensor
from slmopt.passes.canonicalize import Canonicalize, canonicalize
from tests.passes.golden import body_of, check_rewrite, check_untouched, drift
from tests.passes.toys import apply, toy


def test_views_that_change_nothing_go() -> None:
    before = """
        %a = reshape(%x) {shape = [b, s, 64]} : f32[b, s, 64]
        %c = permute(%a) {axes = [0, 1, 2]} : f32[b, s, 64]
        %d = cast(%c) {element = "f32"} : f32[b, s, 64]
        %e = expand(%d) {shape = [b, s, 64]} : f32[b, s, 64]
        %f = slice(%e) {axis = 2, start = 0, stop = none} : f32[b, s, 64]
        %r = exp(%f) : f32[b, s, 64]
        return %r
    """
    after = """
        %r = exp(%x) : f32[b, s, 64]
        return %r
    """
    changes = check_rewrite(Canonicalize(), before, after)
    assert changes == {"reshape": 1, "permute": 1, "cast": 1, "expand": 1, "slice": 1}


def test_consecutive_views_merge() -> None:
    before = """
        %a = reshape(%x) {shape = [b, s, 4, 16]} : f32[b, s, 4, 16]
        %c = reshape(%a) {shape = [b, s, 2, 32]} : f32[b, s, 2, 32]
        %d = permute(%c) {axes = [0, 2, 1, 3]} : f32[b, 2, s, 32]
        %e = permute(%d) {axes = [2, 0, 3, 1]} : f32[s, b, 32, 2]
        %f = slice(%e) {axis = 2, start = 4, stop = 20} : f32[s, b, 16, 2]
        %g = slice(%f) {axis = 2, start = 2, stop = 16, step = 3} : f32[s, b, 5, 2]
        return %g
    """
    after = """
        %c = reshape(%x) {shape = [b, s, 2, 32]} : f32[b, s, 2, 32]
        %e = permute(%c) {axes = [1, 0, 3, 2]} : f32[s, b, 32, 2]
        %g = slice(%e) {axis = 2, start = 6, stop = 20, step = 3} : f32[s, b, 5, 2]
        return %g
    """
    assert check_rewrite(Canonicalize(), before, after) == {"reshape": 1, "permute": 1, "slice": 1}


def test_neutral_arithmetic_goes() -> None:
    before = """
        %zero = constant() {value = 0.0, element = "f32"} : f32[]
        %one = constant() {value = 1.0, element = "f32"} : f32[]
        %a = add(%zero, %x) : f32[b, s, 64]
        %c = mul(%a, %one) : f32[b, s, 64]
        %d = div(%c, %one) : f32[b, s, 64]
        %e = sub(%d, %zero) : f32[b, s, 64]
        %f = neg(%e) : f32[b, s, 64]
        %g = neg(%f) : f32[b, s, 64]
        %r = exp(%g) : f32[b, s, 64]
        return %r
    """
    after = """
        %r = exp(%x) : f32[b, s, 64]
        return %r
    """
    assert check_rewrite(Canonicalize(), before, after) == {"neutral": 4, "neg": 1}


def test_factors_merge() -> None:
    before = """
        %half = constant() {value = 0.5, element = "f32"} : f32[]
        %four = constant() {value = 4.0, element = "f32"} : f32[]
        %a = mul(%x, %half) : f32[b, s, 64]
        %c = mul(%four, %a) : f32[b, s, 64]
        return %c
    """
    after = """
        %c_2 = constant() {value = 2.0, element = "f32"} : f32[]
        %c = mul(%x, %c_2) : f32[b, s, 64]
        return %c
    """
    assert check_rewrite(Canonicalize(), before, after) == {"mul": 1}


def test_concat_of_neighbouring_slices_is_a_slice() -> None:
    before = """
        %a = slice(%x) {axis = 2, start = 8, stop = 24} : f32[b, s, 16]
        %c = slice(%x) {axis = 2, start = 24, stop = 64} : f32[b, s, 40]
        %e = slice(%x) {axis = 2, start = 5, stop = 5} : f32[b, s, 0]
        %d = concat(%a, %c, %e) {axis = -1} : f32[b, s, 56]
        %y = exp(%d) : f32[b, s, 56]
        %z = concat(%x, %y) {axis = 2} : f32[b, s, 120]
        %r = slice(%z) {axis = 2, start = 70, stop = 80} : f32[b, s, 10]
        return %r
    """
    after = """
        %d = slice(%x) {axis = 2, start = 8, stop = 64, step = 1} : f32[b, s, 56]
        %y = exp(%d) : f32[b, s, 56]
        %r = slice(%y) {axis = 2, start = 6, stop = 16, step = 1} : f32[b, s, 10]
        return %r
    """
    assert check_rewrite(Canonicalize(), before, after) == {"concat": 1, "slice": 1}


def test_casts_merge_only_where_nothing_is_lost() -> None:
    before = """
        %a = cast(%x) {element = "f64"} : f64[b, s, 64]
        %c = cast(%a) {element = "f32"} : f32[b, s, 64]
        %h = cast(%c) {element = "f16"} : f16[b, s, 64]
        %r = cast(%h) {element = "f32"} : f32[b, s, 64]
        return %r
    """
    after = """
        %h = cast(%x) {element = "f16"} : f16[b, s, 64]
        %r = cast(%h) {element = "f32"} : f32[b, s, 64]
        return %r
    """
    assert check_rewrite(Canonicalize(), before, after) == {"cast": 2}


def test_broadcasting_does_the_work_of_expand() -> None:
    before = """
        %two = full() {shape = [b, s, 64], value = 2.0, element = "f32"} : f32[b, s, 64]
        %w = reshape(weight @w : f32[64]) {shape = [1, 1, 64]} : f32[1, 1, 64]
        %e = expand(%w) {shape = [b, s, 64]} : f32[b, s, 64]
        %a = mul(%x, %e) : f32[b, s, 64]
        %r = add(%a, %two) : f32[b, s, 64]
        return %r
    """
    after = """
        %a = mul(%x, weight @w : f32[64]) : f32[b, s, 64]
        %r_2 = constant() {value = 2.0, element = "f32"} : f32[]
        %r = add(%a, %r_2) : f32[b, s, 64]
        return %r
    """
    assert check_rewrite(Canonicalize(), before, after) == {"expand": 3}


def test_running_count_of_ones_is_an_arange() -> None:
    before = """
        %ones = full() {shape = [b, s], value = 1, element = "i64"} : i64[b, s]
        %count = cumsum(%ones) {axis = 1} : i64[b, s]
        %masked = mul(%count, %ones) : i64[b, s]
        %one = constant() {value = 1, element = "i64"} : i64[]
        %position = sub(%masked, %one) : i64[b, s]
        %two = constant() {value = 2, element = "i64"} : i64[]
        %row = add(%position, %two) : i64[b, s]
        %p = embedding(%row, weight @positions : f32[40, 64]) : f32[b, s, 64]
        %r = add(%x, %p) : f32[b, s, 64]
        return %r
    """
    after = """
        %row_2_2 = arange() {start = 2, stop = s + 2, element = "i64"} : i64[s]
        %row_2 = reshape(%row_2_2) {shape = [1, s]} : i64[1, s]
        %p_2 = embedding(%row_2, weight @positions : f32[40, 64]) : f32[1, s, 64]
        %r = add(%x, %p_2) : f32[b, s, 64]
        return %r
    """
    assert check_rewrite(Canonicalize(), before, after) == {"positions": 3, "neutral": 1, "expand": 4}


def test_equal_ops_are_shared_and_dead_ones_erased() -> None:
    before = """
        %a = cos(%x) : f32[b, s, 64]
        %c = cos(%x) : f32[b, s, 64]
        %dead = sin(%x) : f32[b, s, 64]
        %r = add(%a, %c) : f32[b, s, 64]
        return %r
    """
    after = """
        %a = cos(%x) : f32[b, s, 64]
        %r = add(%a, %a) : f32[b, s, 64]
        return %r
    """
    assert check_rewrite(Canonicalize(), before, after) == {"dead": 1, "shared": 1}


def test_what_weights_alone_decide_is_computed_once() -> None:
    before = """
        %one = constant() {value = 1.0, element = "f32"} : f32[]
        %w = add(weight @norm.weight : f32[64], %one) : f32[64]
        %a = mul(%x, %w) : f32[b, s, 64]
        %two = constant() {value = 2.0, element = "f32"} : f32[]
        %root = sqrt(%two) : f32[]
        %c = mul(%a, %root) : f32[b, s, 64]
        %d = mul(%c, weight @scale : f32[]) : f32[b, s, 64]
        return %d
    """
    after = """
        %a = mul(%x, weight @norm.weight.add : f32[64]) : f32[b, s, 64]
        %d_2 = constant() {value = 4.2426406145095825, element = "f32"} : f32[]
        %d = mul(%a, %d_2) : f32[b, s, 64]
        return %d
    """
    changes = check_rewrite(Canonicalize(), before, after, tolerance=1e-6, scale=torch.tensor(3.0))
    assert changes == {"folded": 3, "mul": 1}


def test_flattened_rows_are_unflattened() -> None:
    before = """
        %f = reshape(%x) {shape = [b*s, 64]} : f32[b*s, 64]
        %n = layer_norm(%f, weight @g : f32[64]) {eps = 1e-05} : f32[b*s, 64]
        %u = linear(%n, weight @up : f32[96, 64], weight @up_bias : f32[96]) : f32[b*s, 96]
        %a = relu(%u) : f32[b*s, 96]
        %d = linear(%a, weight @down : f32[64, 96]) : f32[b*s, 64]
        %s = add(%f, %d) : f32[b*s, 64]
        %r = reshape(%s) {shape = [b, s, 64]} : f32[b, s, 64]
        return %r
    """
    after = """
        %n_2 = layer_norm(%x, weight @g : f32[64]) {eps = 1e-05, output = "f32"} : f32[b, s, 64]
        %u_2 = linear(%n_2, weight @up : f32[96, 64], weight @up_bias : f32[96]) {activation = none, act = none} : f32[b, s, 96]
        %a_2 = relu(%u_2) : f32[b, s, 96]
        %d_2 = linear(%a_2, weight @down : f32[64, 96]) {activation = none, act = none} : f32[b, s, 64]
        %s_2 = add(%x, %d_2) : f32[b, s, 64]
        return %s_2
    """  # noqa: E501
    assert check_rewrite(Canonicalize(), before, after) == {"flatten": 5, "reshape": 2}


def test_heads_leave_the_batch_axis() -> None:
    before = """
        %h = reshape(%x) {shape = [b, s, 4, 16]} : f32[b, s, 4, 16]
        %p = permute(%h) {axes = [0, 2, 1, 3]} : f32[b, 4, s, 16]
        %f = reshape(%p) {shape = [4*b, s, 16]} : f32[4*b, s, 16]
        %t = permute(%f) {axes = [0, 2, 1]} : f32[4*b, 16, s]
        %m = matmul(%f, %t) : f32[4*b, s, s]
        %w = softmax(%m) {axis = 2} : f32[4*b, s, s]
        %o = matmul(%w, %f) : f32[4*b, s, 16]
        %r = reshape(%o) {shape = [b, 4, s, 16]} : f32[b, 4, s, 16]
        return %r
    """
    after = """
        %h = reshape(%x) {shape = [b, s, 4, 16]} : f32[b, s, 4, 16]
        %p = permute(%h) {axes = [0, 2, 1, 3]} : f32[b, 4, s, 16]
        %t_2 = permute(%h) {axes = [0, 2, 3, 1]} : f32[b, 4, 16, s]
        %m_2 = matmul(%p, %t_2) : f32[b, 4, s, s]
        %w_2 = softmax(%m_2) {axis = 3} : f32[b, 4, s, s]
        %o_2 = matmul(%w_2, %p) : f32[b, 4, s, 16]
        return %o_2
    """
    assert check_rewrite(Canonicalize(), before, after) == {"flatten": 4, "reshape": 2, "permute": 1}


def test_reshapes_around_token_wise_ops_cancel() -> None:
    before = """
        %h = reshape(%x) {shape = [b, s, 4, 16]} : f32[b, s, 4, 16]
        %p = permute(%h) {axes = [0, 1, 3, 2]} : f32[b, s, 16, 4]
        %f = reshape(%p) {shape = [b*s, 64]} : f32[b*s, 64]
        %u = linear(%f, weight @up : f32[96, 64]) : f32[b*s, 96]
        %a = relu(%u) : f32[b*s, 96]
        %r = reshape(%a) {shape = [b, s, 96]} : f32[b, s, 96]
        return %r
    """
    after = """
        %h = reshape(%x) {shape = [b, s, 4, 16]} : f32[b, s, 4, 16]
        %p = permute(%h) {axes = [0, 1, 3, 2]} : f32[b, s, 16, 4]
        %r_2_2 = reshape(%p) {shape = [b, s, 64]} : f32[b, s, 64]
        %r_2 = linear(%r_2_2, weight @up : f32[96, 64]) {activation = none, act = none} : f32[b, s, 96]
        %r = relu(%r_2) : f32[b, s, 96]
        return %r
    """
    assert check_rewrite(Canonicalize(), before, after) == {"flatten": 2, "reshape": 1}


def test_a_residual_keeps_a_linear_in_the_shape_it_has() -> None:
    """The residual of a linear has the shape of its result: what flattens one must flatten the other."""
    kept = """
        %f = reshape(%x) {shape = [b*s, 64]} : f32[b*s, 64]
        %y = linear(%f, weight @up : f32[32, 64], _, %r) {activation = none, act = none} : f32[b*s, 32]
        return %y
    """
    check_untouched(Canonicalize(), kept, "%x: f32[b, s, 64], %r: f32[b*s, 32]")
    before = """
        %f = reshape(%x) {shape = [b*s, 64]} : f32[b*s, 64]
        %g = reshape(%r) {shape = [b*s, 32]} : f32[b*s, 32]
        %y = linear(%f, weight @up : f32[32, 64], _, %g) : f32[b*s, 32]
        %z = reshape(%y) {shape = [b, s, 32]} : f32[b, s, 32]
        return %z
    """
    after = """
        %y_2 = linear(%x, weight @up : f32[32, 64], _, %r) {activation = none, act = none} : f32[b, s, 32]
        return %y_2
    """
    changes = check_rewrite(Canonicalize(), before, after, "%x: f32[b, s, 64], %r: f32[b, s, 32]")
    assert changes == {"flatten": 1, "reshape": 2}


def test_conditions_that_always_hold_go() -> None:
    before = """
        %p = arange() {start = 0, stop = s, element = "i64"} : i64[s]
        %q = reshape(%p) {shape = [1, s, 1]} : i64[1, s, 1]
        %zero = constant() {value = 0, element = "i64"} : i64[]
        %valid = ge(%q, %zero) : bool[1, s, 1]
        %same = eq(%q, %q) : bool[1, s, 1]
        %both = logical_and(%valid, %same) : bool[1, s, 1]
        %y = exp(%x) : f32[b, s, 64]
        %r = where(%both, %x, %y) : f32[b, s, 64]
        %z = tanh(%r) : f32[b, s, 64]
        return %z
    """
    after = """
        %z = tanh(%x) : f32[b, s, 64]
        return %z
    """
    assert check_rewrite(Canonicalize(), before, after) == {"condition": 3, "neutral": 1, "expand": 1}


def test_positions_for_each_row_are_computed_once() -> None:
    before = """
        %p = arange() {start = 0, stop = s, element = "i64"} : i64[s]
        %row = expand(%p) {shape = [b, s]} : i64[b, s]
        %c = reshape(%row) {shape = [b, s, 1]} : i64[b, s, 1]
        %f = cast(%c) {element = "f32"} : f32[b, s, 1]
        %a = mul(%f, weight @frequencies : f32[8]) : f32[b, s, 8]
        %d = concat(%a, %a) {axis = 2} : f32[b, s, 16]
        %cos = cos(%d) : f32[b, s, 16]
        %sin = sin(%d) : f32[b, s, 16]
        %c1 = reshape(%cos) {shape = [b, 1, s, 16]} : f32[b, 1, s, 16]
        %s1 = reshape(%sin) {shape = [b, 1, s, 16]} : f32[b, 1, s, 16]
        %h = reshape(%x) {shape = [b, s, 4, 16]} : f32[b, s, 4, 16]
        %q = permute(%h) {axes = [0, 2, 1, 3]} : f32[b, 4, s, 16]
        %r = rope(%q, %c1, %s1) {style = "half"} : f32[b, 4, s, 16]
        return %r
    """
    module = toy(before)
    found, changes = apply(module, Canonicalize())
    assert changes["expand"] == 9
    types = {made.name: str(made.result.type) for made in found.graph().walk()}
    assert types["cos"] == types["sin"] == "f32[1, s, 16]"
    assert "expand" not in types
    assert drift(module, found) == 0.0


def module_with_table(content: list[int], rows: str = "0", stop: str = "s") -> Module:
    """x plus rows of a learned table, picked by a slice of a stored integer buffer."""
    count = len(content)
    module = parse_module(f"""module @m {{ graph @forward(%x: f32[b, s, 8]) {{
        %ids = slice(weight @position_ids : i64[1, {count}]) {{axis = 1, start = {rows}, stop = {stop}}} : i64[1, s]
        %p = embedding(%ids, weight @table : f32[20, 8]) : f32[1, s, 8]
        %r = add(%x, %p) : f32[b, s, 8]
        return %r
    }} }}""")
    module.weights.add_tensor("position_ids", torch.tensor([content]))
    module.weights.add_tensor("table", torch.randn(20, 8, generator=torch.Generator().manual_seed(3)))
    return module


def test_slice_of_a_stored_count_is_an_arange() -> None:
    before = module_with_table(list(range(3, 15)), rows="1", stop="s + 1")
    after = before.copy()
    assert canonicalize(after) == {"positions": 1}
    (arange,) = [line for line in body_of(after.graph()).splitlines() if "arange" in line]
    assert arange == '%ids_2 = arange() {start = 4, stop = s + 4, element = "i64"} : i64[s]'
    assert drift(before, after) == 0.0


def test_slice_of_another_stored_row_stays() -> None:
    module = module_with_table([0, 1, 2, 4, 3, 5, 6, 7])
    assert canonicalize(module) == {}


@pytest.mark.parametrize(
    "body",
    [
        "%c = permute(%x) {axes = [1, 0, 2]} : f32[s, b, 64]\nreturn %c",
        '%c = constant() {value = 1.0000001, element = "f32"} : f32[]\n%r = mul(%x, %c) : f32[b, s, 64]\nreturn %r',
        '%h = cast(%x) {element = "i64"} : i64[b, s, 64]\n%r = cast(%h) {element = "f32"} : f32[b, s, 64]\nreturn %r',
        '%h = cast(%x) {element = "f16"} : f16[b, s, 64]\n%r = cast(%h) {element = "bf16"} : bf16[b, s, 64]\nreturn %r',
        "%a = cos(%x) : f32[b, s, 64]\n%c = sin(%x) : f32[b, s, 64]\n%r = add(%a, %c) : f32[b, s, 64]\nreturn %r",
        # A slice that reaches over two parts, and neighbours in the wrong order.
        "%c = concat(%x, %x) {axis = 2} : f32[b, s, 128]\n"
        "%r = slice(%c) {axis = 2, start = 60, stop = 70, step = 1} : f32[b, s, 10]\nreturn %r",
        "%a = slice(%x) {axis = 2, start = 0, stop = 8, step = 1} : f32[b, s, 8]\n"
        "%c = slice(%x) {axis = 2, start = 8, stop = 64, step = 1} : f32[b, s, 56]\n"
        "%r = concat(%c, %a) {axis = 2} : f32[b, s, 64]\nreturn %r",
        # x = x does not hold where x is no number.
        "%e = eq(%x, %x) : bool[b, s, 64]\n%y = exp(%x) : f32[b, s, 64]\n"
        "%r = where(%e, %x, %y) : f32[b, s, 64]\nreturn %r",
        # A softmax along the merged axis mixes what the reshape merged.
        "%f = reshape(%x) {shape = [b*s, 64]} : f32[b*s, 64]\n%r = softmax(%f) {axis = 0} : f32[b*s, 64]\nreturn %r",
        # Nor does the merged axis stay where it was.
        "%f = reshape(%x) {shape = [b*s, 64]} : f32[b*s, 64]\n"
        "%t = permute(%f) {axes = [1, 0]} : f32[64, b*s]\nreturn %t",
        # A transposed matrix stays one: tied weights keep their key.
        "%t = permute(weight @w : f32[32, 64]) {axes = [1, 0]} : f32[64, 32]\n"
        "%r = matmul(%x, %t) : f32[b, s, 32]\nreturn %r",
    ],
)  # fmt: skip
def test_leaves_alone(body: str) -> None:
    check_untouched(Canonicalize(), body)


def test_weights_without_numbers_are_left_to_be_computed() -> None:
    module = parse_module("""module @m { graph @forward(%x: f32[b, s, 8]) {
        %one = constant() {value = 1.0, element = "f32"} : f32[]
        %w = add(weight @w : f32[8], %one) : f32[8]
        %r = mul(%x, %w) : f32[b, s, 8]
        return %r
    } }""")
    assert canonicalize(module) == {}


def test_equal_foldings_share_one_derived_weight() -> None:
    text = """module @m { graph @forward(%x: f32[b, s, 8]) {
        %one = constant() {value = 1.0, element = "f32"} : f32[]
        %w = add(weight @w : f32[8], %one) : f32[8]
        %two = constant() {value = 2.0, element = "f32"} : f32[]
        %v = add(weight @w : f32[8], %two) : f32[8]
        %a = mul(%x, %w) : f32[b, s, 8]
        %c = mul(%a, %v) : f32[b, s, 8]
        %u = add(weight @w : f32[8], %one) : f32[8]
        %r = mul(%c, %u) : f32[b, s, 8]
        return %r
    } }"""
    module = parse_module(text)
    module.weights.add_tensor("w", torch.ones(8))
    canonicalize(module)
    keys = [o.key for made in module.graph().walk() for o in made.operands if isinstance(o, Weight)]
    assert keys == ["w.add", "w.add.2", "w.add"]
    assert module.weights.load("w.add.2").tolist() == [3.0] * 8


# --- properties ----------------------------------------------------------------------------------------------------
_KINDS = ("unary", "binary", "number", "reshape", "permute", "slice", "concat", "norm", "linear")
_UNARY = ("neg", "tanh", "sigmoid", "relu")
_SHAPES: tuple[TensorType, ...] = (
    tensor("f32", "b", "s", 24), tensor("f32", "b", "s", 4, 6), tensor("f32", "b*s", 24), tensor("f32", "b", 4, "s", 6),
    tensor("f32", "4*b", "s", 6), tensor("f32", "b*s", 4, 6),
)  # fmt: skip


def _grow(draw: st.DrawFn, graph: Graph, values: list[Value]) -> None:
    """Add one random op on values that exist."""
    x = draw(st.sampled_from(values))
    kind = draw(st.sampled_from(_KINDS))
    rank = x.type.rank
    if kind == "unary":
        made = graph.add(draw(st.sampled_from(_UNARY)), (x,))
    elif kind == "binary":
        y = draw(st.sampled_from([value for value in values if value.type == x.type]))
        made = graph.add(draw(st.sampled_from(("add", "mul", "sub"))), (x, y))
    elif kind == "number":
        number = graph.add("constant", (), {"value": draw(st.sampled_from((0.0, 1.0, 0.5, -2.0))), "element": "f32"})
        made = graph.add(draw(st.sampled_from(("add", "mul", "sub"))), (x, number.result))
    elif kind == "reshape":
        shapes = [type.shape for type in _SHAPES if type.elements == x.type.elements] or [x.shape]
        made = graph.add("reshape", (x,), {"shape": draw(st.sampled_from(shapes))})
    elif kind == "permute":
        made = graph.add("permute", (x,), {"axes": tuple(draw(st.permutations(range(rank))))})
    elif kind == "slice" and isinstance(x.shape[-1], int) and x.shape[-1] > 1:
        start = draw(st.integers(0, x.shape[-1] - 1))
        stop = draw(st.integers(start, x.shape[-1]))
        made = graph.add("slice", (x,), {"axis": rank - 1, "start": start, "stop": stop})
    elif kind == "concat":
        alike = [value for value in values if value.type.rank == rank and value.shape[:-1] == x.shape[:-1]]
        made = graph.add("concat", (x, draw(st.sampled_from(alike))), {"axis": draw(st.sampled_from((-1, rank - 1)))})
    elif kind == "norm" and isinstance(x.shape[-1], int) and x.shape[-1] > 0:
        made = graph.add("rms_norm", (x,), {"eps": 1e-3})
    elif kind == "linear" and x.shape[-1] == 24:
        made = graph.add("linear", (x, Weight("w", tensor("f32", 24, 24))))
    else:
        made = graph.add("expand", (x,), {"shape": x.shape})
    values.append(made.result)


@st.composite
def modules(draw: st.DrawFn) -> Module:
    """A module of random token-wise ops and views."""
    graph = Graph("forward")
    values = [graph.add_input("x", _SHAPES[0])]
    for _ in range(draw(st.integers(1, 14))):
        _grow(draw, graph, values)
    outputs = [value for value in values[1:] if not value.uses]
    graph.set_outputs(outputs)
    module = Module("m", [graph])
    module.weights.add_tensor("w", torch.randn(24, 24, generator=torch.Generator().manual_seed(2)) / 5)
    return module


def _computing(module: Module) -> int:
    """The number of ops that compute; views may be repeated behind each reader."""
    return sum(made.name not in ("reshape", "constant") for made in module.graph().walk())


@settings(max_examples=60, deadline=None)
@given(modules())
def test_keeps_the_numbers_and_ends(module: Module) -> None:
    after = module.copy()
    canonicalize(after)
    for graph in after.graphs.values():
        for made in graph.walk():
            assert made.spec.infer_types(made) == tuple(result.type for result in made.results)
    assert drift(module, after) <= 1e-9
    assert _computing(after) <= _computing(module)
    assert parse_module(str(after)) == after
    assert canonicalize(after) == {}
