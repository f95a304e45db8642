"""Targets as text."""

from __future__ import annotations

import pytest

from slmopt.errors import InputError
from slmopt.target import Target, parse_target


def test_targets_parse_and_print() -> None:
    assert parse_target("cpu") == Target("cpu")
    found = parse_target("cpu:isa=avx2,context=512")
    assert found == Target("cpu", {"isa": "avx2", "context": "512"})
    assert str(found) == "cpu:context=512,isa=avx2" and parse_target(str(found)) == found


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "'' is no target: expected a backend"),
        ("CPU", "is no target"),
        ("cpu:isa", "'isa' is not of the form option=value"),
        ("cpu:isa=", "'isa=' is not of the form"),
        ("cpu:=2", "'=2' is not of the form"),
        ("cpu:isa=a,isa=b", "gives the option 'isa' twice"),
    ],
)
def test_what_is_wrong_is_said(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        parse_target(text)
