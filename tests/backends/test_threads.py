"""How threads share the work changes no bit of any kernel: 1 to 8 of them, more than there are cores and blocks."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.backends.op_module import ROWS, CompiledOps
from tests.backends.sessions import THREADS, TOKENS, check_parts, check_threads


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
