"""Targets as text."""

from __future__ import annotations

import pytest

from slmopt.errors import InputError
from slmopt.plugins.discovery import registry
from slmopt.target import Target, parse_target


def test_targets_parse_and_print() -> None:
    assert parse_target("cpu") == Target("cpu")
    found = parse_target("cpu:isa=avx2,context=512")
    assert found == Target("cpu", {"isa": "avx2", "context": "512"})
    assert str(found) == "cpu:context=512,isa=avx2" and parse_target(str(found)) == found


def test_via_belongs_to_the_name_of_the_backend() -> None:
    found = parse_target("cpu:isa=avx2,via=mlir")
    assert found == Target("cpu:via=mlir", {"isa": "avx2"}) and str(found) == "cpu:via=mlir,isa=avx2"
    assert parse_target(str(found)) == found and str(parse_target("cpu:via=mlir")) == "cpu:via=mlir"


def test_backends_of_one_machine_are_told_apart() -> None:
    known = registry()
    assert known.find_backend("cpu").name == "cpu"
    assert known.find_backend(parse_target("cpu:via=mlir,context=8").backend).name == "cpu:via=mlir"
    with pytest.raises(InputError, match=r"unknown target 'cpu:via=mlri'; did you mean 'cpu:via=mlir'.*cpu, cpu:via"):
        known.find_backend(parse_target("cpu:via=mlri").backend)


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
