"""Options of a pass, drawn from its fields."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import pytest
from hypothesis import find, given, settings

from slmopt.errors import InputError
from slmopt.ir.graph import Module
from slmopt.pipeline import Context, Pass
from slmopt.testing import options


@dataclass(frozen=True)
class _Optioned(Pass):
    """x -> x"""

    name: ClassVar[str] = "optioned"

    kind: Literal["a", "b"]
    on: bool = True
    count: int = 3
    share: float | None = None
    sizes: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.count < 1 or self.count % 2 == 0:
            raise InputError("optioned: count must be odd and above 0")

    def run(self, module: Module, context: Context) -> dict[str, int]:
        return {}


@settings(max_examples=200, deadline=None)
@given(options(_Optioned))
def test_every_draw_is_accepted(values: dict[str, Any]) -> None:
    made = _Optioned(**values)
    assert made.kind in ("a", "b")
    assert made.count % 2 == 1


@pytest.mark.parametrize(
    ("name", "wanted"), [("kind", "b"), ("on", False), ("count", 1), ("share", 0.5), ("sizes", (2,))]
)
def test_every_field_varies(name: str, wanted: object) -> None:
    assert find(options(_Optioned), lambda values: values.get(name) == wanted)[name] == wanted


def test_the_simplest_leaves_every_default() -> None:
    assert find(options(_Optioned), lambda values: True) == {"kind": "a"}
