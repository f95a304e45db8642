"""What commands that look at a model accept: a model directory, IR text, or an artifact."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from slmopt.errors import InputError, IRError

if TYPE_CHECKING:
    from slmopt.ir.graph import Module

__all__ = ["is_artifact", "open_module"]


def is_artifact(source: str) -> bool:
    """Whether a path is a directory that `slmopt compile` wrote."""
    return (Path(source) / "manifest.json").is_file()


def open_module(source: str, *, verified: bool = False) -> Module:
    """The module behind a path; `-` is IR text on standard input. Of an artifact, its final IR, without weights.

    With `verified`, IR text that breaks a rule of the IR is an InputError that gives the line, as one that does not
    parse always is.
    """
    if source == "-":
        from slmopt.plugins.discovery import registry

        registry().add_ops()
        return _parse(_read_input(), "standard input", verified)
    from slmopt.api import load

    place = str(Path(source) / "module.slm") if is_artifact(source) else source
    module = load(place)
    if verified:
        _check(module, place)
    return module


def _parse(text: str, place: str, verified: bool) -> Module:
    from slmopt.ir.text import parse_module, read_module

    try:
        return read_module(text) if verified else parse_module(text)
    except IRError as error:
        raise InputError(f"{place}: {error}") from error


def _check(module: Module, place: str) -> None:
    from slmopt.calibrate import read_text
    from slmopt.ir.verify import verify

    try:
        verify(module)
    except IRError:
        if place.endswith(".slm"):
            _parse(read_text(place), place, verified=True)  # which says in what line
        raise


def _read_input() -> str:
    try:
        return sys.stdin.read()
    except UnicodeDecodeError as error:
        raise InputError(f"standard input is not UTF-8 text: {error}") from error
