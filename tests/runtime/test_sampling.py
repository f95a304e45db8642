"""Sampling against an oracle in numpy that sorts where the runtime pops a heap."""

from __future__ import annotations

import ctypes
import itertools
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from slmopt.errors import InputError
from slmopt.runtime import LanguageModel, Sampling, Session
from slmopt.runtime.library_program import LibraryConversation

from .stand_in import VOCAB

Logits = NDArray[np.float32]
_MASK = 2**64 - 1


@pytest.fixture(scope="module")
def session(stand_in: object) -> Iterator[Session]:
    with LanguageModel(str(stand_in)) as model, model.session(threads=1) as session:
        yield session


def sample(session: Session, logits: Logits, sampling: Sampling) -> int:
    """slm_sample on given logits, as Session.sample does on the model's own."""
    array = np.ascontiguousarray(logits, np.float32)
    pointer = array.ctypes.data_as(ctypes.c_void_p)
    conversation = session._conversation
    assert isinstance(conversation, LibraryConversation)
    id = conversation._library.sample(conversation._handle, pointer, ctypes.byref(sampling.structure()))
    if id < 0:
        raise conversation._library.error(InputError)
    return int(id)


def kept_tokens(logits: Logits, sampling: Sampling, seen: set[int]) -> tuple[list[int], NDArray[np.float64]]:
    """The ids that the filters keep, in the order the runtime walks them, and their probabilities."""
    adjusted = logits.astype(np.float32).copy()
    penalty = np.float32(sampling.repetition_penalty)
    for id in seen:
        adjusted[id] = adjusted[id] / penalty if adjusted[id] > 0 else adjusted[id] * penalty
    order = np.argsort(-adjusted, kind="stable")
    weights = np.exp((adjusted.astype(np.float64) - float(adjusted.max())) / float(np.float32(sampling.temperature)))
    filtered = 0 < sampling.top_k < len(weights) or sampling.top_p < 1 or sampling.min_p > 0
    if not filtered:
        return list(range(len(weights))), weights / weights.sum()
    ids = order[: sampling.top_k or len(order)]
    shares = weights[ids] / weights[ids].sum()
    if sampling.top_p < 1:
        before = np.cumsum(shares) - shares
        ids = ids[before < float(np.float32(sampling.top_p)) - 1e-12]
    ids = ids[(weights[ids] >= float(np.float32(sampling.min_p))) | (ids == ids[0])]
    return [int(id) for id in ids], weights[ids] / weights[ids].sum()


def uniforms(seed: int) -> Iterator[float]:
    """xoshiro256** seeded by splitmix64, as numbers in [0, 1), from the papers."""
    state = []
    for _ in range(4):
        seed = seed + 0x9E3779B97F4A7C15 & _MASK
        z = (seed ^ seed >> 30) * 0xBF58476D1CE4E5B9 & _MASK
        z = (z ^ z >> 27) * 0x94D049BB133111EB & _MASK
        state.append(z ^ z >> 31)
    while True:
        s0, s1, s2, s3 = state
        x = s1 * 5 & _MASK
        yield (((x << 7 | x >> 57) & _MASK) * 9 & _MASK) / 2**64
        s2, s3 = s2 ^ s0, s3 ^ s1
        state = [s0 ^ s3, s1 ^ s2, s2 ^ (s1 << 17 & _MASK), (s3 << 45 | s3 >> 19) & _MASK]


def random_logits(seed: int, scale: float = 3.0) -> Logits:
    return (np.random.default_rng(seed).standard_normal(VOCAB) * scale).astype(np.float32)


TEMPERATURES, TOP_K, TOP_P, MIN_P = (0.2, 1.0, 3.0), (0, 1, 40, VOCAB), (1.0, 0.95, 0.5, 0.01), (0.0, 0.05, 0.5, 1.0)
samplings = st.builds(
    Sampling,
    temperature=st.floats(0.0625, 20.0, width=32),
    top_k=st.one_of(st.just(0), st.integers(1, VOCAB + 9)),
    top_p=st.one_of(st.just(1.0), st.floats(0.0625, 1.0, width=32)),
    min_p=st.one_of(st.just(0.0), st.floats(0.0, 1.0, width=32)),
    repetition_penalty=st.sampled_from([1.0, 1.3, 0.7]),
    seed=st.integers(0, 2**64 - 1),
)


def check_draws(session: Session, logits: Logits, sampling: Sampling, seen: set[int]) -> None:
    """Each draw is the inverse of the oracle's cumulative distribution at the generator's number."""
    ids, shares = kept_tokens(logits, sampling, seen)
    edges = np.concatenate([[0.0], np.cumsum(shares)])
    for uniform, _ in zip(uniforms(sampling.seed), range(8), strict=False):
        at = ids.index(sample(session, logits, sampling))  # fails where the filters should have dropped it
        assert edges[at] - 1e-9 <= uniform <= edges[at + 1] + 1e-9


@pytest.mark.parametrize("coarse", [False, True])
def test_every_combination_of_filters_draws_as_the_oracle(session: Session, coarse: bool) -> None:
    session.reset()
    for index, options in enumerate(itertools.product(TEMPERATURES, TOP_K, TOP_P, MIN_P)):
        logits = random_logits(index)
        check_draws(session, np.round(logits) if coarse else logits, Sampling(*options, seed=index), set())


@settings(max_examples=150, deadline=None)
@given(sampling=samplings, seed=st.integers(0, 2**32), coarse=st.booleans(), history=st.lists(st.integers(0, 40)))
def test_draws_are_the_oracles(
    session: Session, sampling: Sampling, seed: int, coarse: bool, history: list[int]
) -> None:
    logits = random_logits(seed)
    if coarse:
        logits = np.round(logits)  # many ties
    session.reset()
    if history:
        session.prefill(history[:90])
    check_draws(session, logits, sampling, set(history[:90]))


def test_frequencies_follow_the_softmax(session: Session) -> None:
    logits = random_logits(5, scale=1.0)
    session.reset()
    draws = [sample(session, logits, Sampling(temperature=1.0, seed=11)) for _ in range(30_000)]
    found = np.bincount(draws, minlength=VOCAB)
    expected = np.exp(logits.astype(np.float64))
    expected *= len(draws) / expected.sum()
    chi_square = float(np.sum((found - expected) ** 2 / expected))
    degrees = VOCAB - 1
    assert abs(chi_square - degrees) < 5 * np.sqrt(2 * degrees)


@given(seed=st.integers(0, 2**32), coarse=st.booleans())
@settings(max_examples=40, deadline=None)
def test_greedy_takes_the_first_of_the_largest(session: Session, seed: int, coarse: bool) -> None:
    logits = np.round(random_logits(seed)) if coarse else random_logits(seed)
    assert sample(session, logits, Sampling()) == int(np.argmax(logits))
    narrow = Sampling(temperature=1.0, top_k=1, seed=seed)
    assert sample(session, logits, narrow) == int(np.argmax(logits))


def test_the_penalty_applies_to_what_the_session_took(session: Session) -> None:
    logits = np.full(VOCAB, -1.0, np.float32)
    logits[[3, 4]] = 2.0, 1.9
    penalised = Sampling(repetition_penalty=1.2)
    session.reset()
    assert sample(session, logits, penalised) == 3
    session.prefill([7, 3])
    assert sample(session, logits, penalised) == 4
    session.reset()
    assert sample(session, logits, penalised) == 3


def test_a_seed_reproduces_and_a_reset_starts_again(session: Session) -> None:
    logits = random_logits(3)

    def draw(seed: int, count: int = 20) -> list[int]:
        return [sample(session, logits, Sampling(temperature=2.0, seed=seed)) for _ in range(count)]

    session.reset()
    first = draw(1)
    assert draw(2) != first
    assert draw(1) == first  # another seed in between
    assert draw(1) != first  # the stream goes on
    session.reset()
    assert draw(1) == first


def test_masked_tokens_never_come(session: Session) -> None:
    logits = np.full(VOCAB, -np.inf, np.float32)
    logits[[10, 20]] = 0.0
    session.reset()
    for sampling in (Sampling(1.0), Sampling(1.0, top_p=0.999), Sampling(1.0, min_p=1e-30), Sampling(5.0, top_k=9)):
        assert {sample(session, logits, sampling) for _ in range(60)} == {10, 20}


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_bad_logits_are_refused(session: Session, value: float, temperature: float) -> None:
    logits = random_logits(1)
    logits[17] = value
    with pytest.raises(InputError, match=r"token 17"):
        sample(session, logits, Sampling(temperature))
    with pytest.raises(InputError, match="largest logit is -inf"):
        sample(session, np.full(VOCAB, -np.inf, np.float32), Sampling(temperature))


@pytest.mark.parametrize(
    ("sampling", "message"),
    [
        (Sampling(temperature=-1.0), "temperature is -1"),
        (Sampling(temperature=float("nan")), "temperature is"),
        (Sampling(temperature=float("inf")), "temperature is inf"),
        (Sampling(top_k=-1), "top_k is -1"),
        (Sampling(top_k=2**31), "top_k is 2147483648"),
        (Sampling(top_p=0.0), "top_p is 0"),
        (Sampling(top_p=1.01), "top_p is 1.01"),
        (Sampling(top_p=float("nan")), "top_p"),
        (Sampling(min_p=-0.1), "min_p is -0.1"),
        (Sampling(min_p=1.1), "min_p is 1.1"),
        (Sampling(repetition_penalty=0.0), "repetition_penalty is 0"),
        (Sampling(seed=-1), "seed is -1"),
        (Sampling(seed=2**64), "seed is 18446744073709551616"),
    ],
)
def test_bad_options_are_refused(session: Session, sampling: Sampling, message: str) -> None:
    with pytest.raises(InputError, match=message):
        sample(session, random_logits(1), sampling)
