"""Conversion of ATen ops: one small function per op, in a table by name.

A rule gets the builder and the node's arguments (values, weights, sizes, numbers, lists of these) and returns the
value, number or list of values that stands for the node. Names are ATen's without namespace, `aten.max.dim` before
`aten.max`; ops of another namespace keep theirs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from slmopt.frontends.aten import create, elementwise, language, reduce, shape

__all__ = ["IGNORED", "RULES", "find_rule"]

RULES: dict[str, Callable[..., Any]] = {}
for _part in (elementwise, shape, create, reduce, language):
    RULES.update(_part.RULES)

# What only checks at run time, or says something about memory.
IGNORED = frozenset({
    "_assert_tensor_metadata", "_assert_async", "_assert_scalar", "sym_constrain_range", "sym_constrain_range_for_size",
    "_functional_assert_async", "_functional_sym_constrain_range", "record_stream",
})  # fmt: skip


def find_rule(namespace: str, name: str, overload: str) -> Callable[..., Any] | None:
    """The rule for an op, the one of its overload first; None where there is none."""
    prefix = "" if namespace == "aten" else f"{namespace}."
    return RULES.get(f"{prefix}{name}.{overload}") or RULES.get(f"{prefix}{name}")
