"""Minimal sets: what is found fails, and nothing of it can be left out; few tests are needed."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from slmopt.bisection.minimal import find_minimal

_ITEMS = [str(number) for number in range(40)]


@given(st.lists(st.frozensets(st.sampled_from(_ITEMS), min_size=1, max_size=4), min_size=1, max_size=3))
def test_finds_a_minimal_set_of_culprits(groups: list[frozenset[str]]) -> None:
    """Something fails where it holds all of one group."""
    tests: list[frozenset[str]] = []

    def fails(chosen: frozenset[str]) -> bool:
        tests.append(chosen)
        return any(group <= chosen for group in groups)

    found = frozenset(find_minimal(_ITEMS, fails))
    assert any(group <= found for group in groups)
    assert not any(group <= found - {item} for item in found for group in groups)
    assert len(tests) == len(set(tests))  # no set is tested twice
    assert len(tests) <= 4 * 7 + 4 * 4


def test_one_culprit_among_a_thousand() -> None:
    items, count = [str(number) for number in range(1000)], 0

    def fails(chosen: frozenset[str]) -> bool:
        nonlocal count
        count += 1
        return "617" in chosen

    assert find_minimal(items, fails) == ("617",)
    assert count <= 11


@given(st.sets(st.integers(0, 2**12 - 1)))
def test_is_minimal_where_more_changes_mend_what_fewer_break(broken: set[int]) -> None:
    """No order among sets is assumed: any table of what fails, but for nothing and everything."""
    items = [str(number) for number in range(12)]

    def fails(chosen: frozenset[str]) -> bool:
        return sum(1 << int(item) for item in chosen) in broken or len(chosen) == 12

    found = frozenset(find_minimal(items, fails))
    assert fails(found)
    assert not any(fails(found - {item}) for item in found if len(found) > 1)


def test_keeps_the_order_of_the_items() -> None:
    assert find_minimal(["c", "a", "b"], lambda chosen: {"a", "c"} <= chosen) == ("c", "a")
