"""Minimal sets: the fewest of many changes that still break something."""

from __future__ import annotations

from collections.abc import Callable, Sequence

__all__ = ["find_minimal"]


def find_minimal(items: Sequence[str], fails: Callable[[frozenset[str]], bool]) -> tuple[str, ...]:
    """A set of items that fails, of which no single one can be left out (1-minimal: Zeller and Hildebrandt 2002).

    All items together must fail, and none must not. The shortest prefix that fails ends with an item that is needed;
    what else is needed lies before it (as in QuickXplain, Junker 2004). For k of n items that takes about k log2(n) + k
    tests, where delta debugging by halves takes k^2 + 3n at worst. Nothing is assumed of sets: where more items can
    mend what fewer break, the set found is 1-minimal all the same.
    """
    known: dict[frozenset[str], bool] = {frozenset(items): True, frozenset(): False}

    def test(chosen: Sequence[str]) -> bool:
        key = frozenset(chosen)
        if key not in known:
            known[key] = fails(key)
        return known[key]

    needed: list[str] = []
    candidates = list(items)
    while candidates and not test(needed):
        low, high = 0, len(candidates)  # with candidates[:high] it fails, with candidates[:low] it does not
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if test([*needed, *candidates[:middle]]) else (middle, high)
        needed.append(candidates[high - 1])
        candidates = candidates[: high - 1]
    return _drop_each(needed, items, test)


def _drop_each(needed: list[str], items: Sequence[str], test: Callable[[Sequence[str]], bool]) -> tuple[str, ...]:
    """Leave out what can be left out, one at a time, until nothing can; in the order of `items`."""
    kept = list(needed)
    again = len(kept) > 1
    while again:
        again = False
        for item in list(kept):
            fewer = [other for other in kept if other != item]
            if fewer and test(fewer):
                kept, again = fewer, True
    return tuple(item for item in dict.fromkeys(items) if item in kept)
