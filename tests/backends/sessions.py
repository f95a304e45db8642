"""Sequences given to a compiled model in parts and to threads: what must not change a bit of its logits."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from slmopt.runtime import LanguageModel
from slmopt.runtime.session import Session

__all__ = ["THREADS", "TOKENS", "check_parts", "check_threads", "feed"]

THREADS = range(1, 9)  # more than there are cores, and than some kernels have blocks
TOKENS = 33  # of the longest sequence: one more than tiles of any size hold


def feed(session: Session, ids: Sequence[int], cuts: Sequence[int]) -> np.ndarray:
    """All logits of tokens that are given in parts which meet at the cuts."""
    edges = sorted({0, len(ids), *(min(cut, len(ids)) for cut in cuts)})
    session.reset()
    return np.concatenate([session.logits(ids[start:stop]) for start, stop in pairwise(edges)])


def check_threads(model: LanguageModel, ids: Sequence[int], lengths: Sequence[int]) -> None:
    """Every number of threads gives the same bytes for the first tokens of `ids`, so many as each of `lengths`."""
    expected: dict[int, bytes] = {}
    for threads in THREADS:
        with model.session(threads) as session:
            assert session.threads == threads
            for tokens in lengths:
                found = feed(session, ids[:tokens], []).tobytes()
                assert expected.setdefault(tokens, found) == found, f"{threads} threads, {tokens} tokens"


def check_parts(model: LanguageModel, threads: int, ids: Sequence[int], cuts: Sequence[int]) -> None:
    """Parts and threads give the bytes of the whole in one thread, also where only the last position is asked for."""
    with model.session(threads=1) as session:
        whole = feed(session, ids, [])
    with model.session(threads) as session:
        assert feed(session, ids, cuts).tobytes() == whole.tobytes()
        session.reset()
        session.prefill(ids)  # only the last position is computed to the end
        assert session.last_logits().tobytes() == whole[-1].tobytes()
