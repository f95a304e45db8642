"""Every kernel against the interpreter at odd sizes: whole numbers bit by bit, others within what the kernel promises;
and the same bytes with every number of threads.

Widths are no multiples of 16 or 32, heads are one, three or five, tables have fewer rows than a block or one more, and
steps have 1 to 33 tokens. `odd_ops` says what is compiled and how near it must be, `op_module` how that is compared.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import slmopt
from tests.backends.native import host_isas
from tests.backends.odd_ops import add_attention, odd_ops
from tests.backends.op_module import INTEGERS, NORMALS, ROWS, UNUSUAL, CompiledOps, OpModule
from tests.backends.sessions import THREADS, TOKENS, check_parts, check_threads, feed

CUTS = st.lists(st.integers(1, TOKENS - 1), max_size=4)


def sequences(rows: range) -> st.SearchStrategy[list[int]]:
    return st.lists(st.sampled_from(rows), min_size=1, max_size=TOKENS)


@settings(max_examples=15, deadline=None)
@given(ids=sequences(INTEGERS), cuts=CUTS)
def test_whole_numbers_give_the_bits_of_the_interpreter(
    compiled_ops: CompiledOps, ids: list[int], cuts: list[int]
) -> None:
    with compiled_ops.model.session(threads=1) as session:
        compiled_ops.ops.check(feed(session, ids, cuts), ids)


@settings(max_examples=15, deadline=None)
@given(ids=sequences(range(ROWS)), cuts=CUTS)
def test_any_numbers_are_as_near_as_promised(compiled_ops: CompiledOps, ids: list[int], cuts: list[int]) -> None:
    with compiled_ops.model.session(threads=2) as session:
        compiled_ops.ops.check(feed(session, ids, cuts), ids)


@pytest.mark.parametrize("rows", [INTEGERS, range(ROWS)], ids=["whole", "any"])
def test_every_number_of_tokens(compiled_ops: CompiledOps, rows: range) -> None:
    with compiled_ops.model.session(threads=1) as session:
        for tokens in range(1, TOKENS + 1):
            ids = [rows[(tokens + 5 * place) % len(rows)] for place in range(tokens)]
            compiled_ops.ops.check(feed(session, ids, []), ids)


# --- how threads share the work changes no bit: 1 to 8 of them, more than there are cores and blocks ------------------
def test_every_number_of_threads_gives_the_same_bytes(compiled_ops: CompiledOps) -> None:
    ids = [11 * place % ROWS for place in range(TOKENS)]
    check_threads(compiled_ops.model, ids, (1, 2, 3, 8, 15, 16, 17, TOKENS))


@settings(max_examples=20, deadline=None)
@given(
    threads=st.sampled_from(THREADS), ids=st.lists(st.integers(0, ROWS - 1), min_size=1, max_size=TOKENS),
    cuts=st.lists(st.integers(1, TOKENS - 1), max_size=6),
)  # fmt: skip
def test_parts_and_threads_give_the_bytes_of_the_whole(
    compiled_ops: CompiledOps, threads: int, ids: list[int], cuts: list[int]
) -> None:
    check_parts(compiled_ops.model, threads, ids, cuts)


# --- more shapes -----------------------------------------------------------------------------------------------------
@pytest.mark.slow  # `test_small_models` has such caches
@pytest.mark.parametrize("isa", [isa.name for isa in host_isas()])
def test_attention_over_a_cache_of_half_precision(isa: str, tmp_path: Path) -> None:
    ops = OpModule(0)
    add_attention(ops, "f16", more=True)
    ops.finish()
    _check_everywhere(ops, isa, tmp_path, "f16")


@pytest.mark.slow
@pytest.mark.parametrize("isa", [isa.name for isa in host_isas()])
@pytest.mark.parametrize("seed", range(1, 5))
def test_more_shapes(isa: str, seed: int, tmp_path: Path) -> None:
    _check_everywhere(odd_ops(seed, shapes=3), isa, tmp_path, "f32")


def _check_everywhere(ops: OpModule, isa: str, directory: Path, cache: str) -> None:
    """Sequences of every kind of rows, whole and in parts."""
    with slmopt.open(ops.compile(isa, directory, cache)) as model, model.session(threads=2) as session:
        for rows in (INTEGERS, NORMALS, UNUSUAL):
            ids = [rows[7 * place % len(rows)] for place in range(TOKENS)]
            for cuts in ([], [1, 2, 19], range(TOKENS)):
                ops.check(feed(session, ids, cuts), ids)
