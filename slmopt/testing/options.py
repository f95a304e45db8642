"""Hypothesis strategy: options of a pass, from the fields of its dataclass."""

from __future__ import annotations

import dataclasses
import random
import types
import typing
from collections.abc import Mapping
from typing import Any

from hypothesis import strategies as st

from slmopt.errors import SlmError
from slmopt.options import list_options
from slmopt.pipeline import Pass
from slmopt.testing.choices import Choices

__all__ = ["options"]

_TRIES = 4
_NUMBERS: tuple[float, ...] = (0.0, 1.0, 0.5, 0.01, 2.0, -1.0)
_COUNTS = (0, 1, 2, 3, 4, 8, 16, 32, 64, 128, -1)
_TEXTS = ("", "layers", r"\.1\.", "none", "a b")


def options(given_pass: type[Pass]) -> st.SearchStrategy[Mapping[str, Any]]:
    """Options that the pass accepts, {} first: the choices of a field, both booleans, numbers within its limits, texts;
    whatever the pass rejects when it is made is left out.
    """
    list_options(given_pass)  # says what is wrong where it is no dataclass
    fields = [field for field in dataclasses.fields(given_pass) if field.init]  # type: ignore[arg-type]
    hints = typing.get_type_hints(given_pass)

    def choose(choices: Choices) -> Mapping[str, Any]:
        values: dict[str, Any] = {}
        for field in fields:
            part = choices.part(2 * _TRIES)
            for value in _candidates(field, hints[field.name], part):
                if _accepts(given_pass, {**values, field.name: value}):
                    values[field.name] = value
                    break
        return values

    if not fields:
        return st.just({})
    # A number, not bytes: hypothesis would now and then draw for it what it drew for a module.
    size = 2 * _TRIES * len(fields)
    return st.integers(0, 2**32).map(
        lambda number: choose(Choices(random.Random(number).randbytes(size) if number else b""))
    )


def _candidates(field: dataclasses.Field[Any], hint: Any, choices: Choices) -> list[Any]:
    """Values to try in turn; none to keep the default."""
    required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    if not required and choices.pick(True, False):
        return []
    known = _values(hint, field.metadata.get("limits", {}))
    found = [known[choices.below(len(known))] for _ in range(_TRIES - 1)] if known else []
    return found + known if required else found


def _values(hint: Any, limits: Mapping[str, Any]) -> list[Any]:
    """Values of a type, some of which the limits of a field may exclude."""
    origin = typing.get_origin(hint)
    if "choices" in limits and origin is not tuple:
        return list(limits["choices"])
    if origin is typing.Literal:
        return list(typing.get_args(hint))
    if origin in (types.UnionType, typing.Union):
        return [value for one in typing.get_args(hint) for value in _values(one, limits)]
    if origin is tuple:
        inner = _values(typing.get_args(hint)[0], limits)
        return [(), *((value,) for value in inner)]
    named: dict[Any, list[Any]] = {
        bool: [True, False], int: list(_COUNTS), float: list(_NUMBERS), str: list(_TEXTS), type(None): [None],
    }  # fmt: skip
    found = named.get(hint, [])
    return [*_within(hint, limits), *found] if limits and hint in (int, float) else found


def _within(kind: type, limits: Mapping[str, Any]) -> list[Any]:
    """The ends of a range, and what lies a step or two inside of them."""
    step = limits.get("multiple_of") or 1
    ends = [limits["minimum"] + i * step for i in range(3)] if limits.get("minimum") is not None else []
    ends += [limits["maximum"] - i * step for i in range(3)] if limits.get("maximum") is not None else []
    ends += [] if ends else [step, 2 * step]
    return [kind(value) for value in ends]


def _accepts(given_pass: type[Pass], values: Mapping[str, Any]) -> bool:
    try:
        given_pass(**values)
    except (SlmError, TypeError, ValueError):
        return False
    return True
