"""Checks as text: what is understood, and what is said of the rest."""

from __future__ import annotations

import pytest

from slmopt.bisection.checks import Limit, parse_check
from slmopt.errors import InputError

_METRICS = ("perplexity", "accuracy", "bits-per-byte")


@pytest.mark.parametrize(("text", "kind", "limit"), [
    ("perplexity<=+3%", "perplexity", Limit(True, 0.03, True)),
    ("perplexity <= 12.5", "perplexity", Limit(True, 12.5, False)),
    ("metric:accuracy>=-2%", "accuracy", Limit(False, -0.02, True)),
    ("bits-per-byte<+0.5 %", "bits-per-byte", Limit(True, 0.005, True)),
    ("outputs", "outputs", Limit(True, 1e-3, False)),
    ("outputs<=1e-5", "outputs", Limit(True, 1e-5, False)),
    ("compiles", "compiles", Limit(True, 0.0, False)),
])  # fmt: skip
def test_parses(text: str, kind: str, limit: Limit) -> None:
    found = parse_check(text, _METRICS)
    assert (found.text, found.kind) == (text, kind)
    assert (found.limit.below, found.limit.relative) == (limit.below, limit.relative)
    assert found.limit.number == pytest.approx(limit.number)


@pytest.mark.parametrize(("text", "words"), [
    ("perplexty<=3", "did you mean 'perplexity'?"),
    ("metric:outputs<=3", "unknown property 'outputs'"),
    ("perplexity", "lacks a bound"),
    ("perplexity<=3%", r"write \+3%"),
    ("perplexity<=much", "'much' is no bound"),
    ("perplexity=3", "a bound is written <= or >="),
    ("outputs>=1", "outputs takes the largest difference"),
    ("outputs<=+3%", "outputs takes the largest difference"),
    ("compiles<=3", "compiles takes no bound"),
    ("", "is no check"),
    ("<=3", "is no check"),
])  # fmt: skip
def test_says_what_is_wrong(text: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        parse_check(text, _METRICS)


def test_bounds() -> None:
    above, below = Limit(True, 0.03, True), Limit(False, -0.02, True)
    assert above.holds(10.29, 10.0) and not above.holds(10.31, 10.0)
    assert below.holds(98.1, 100.0) and not below.holds(97.9, 100.0)
    assert not above.holds(float("nan"), 10.0)
    assert above.words(10.0) == "at most 10.3 (+3% of the original's 10)"
