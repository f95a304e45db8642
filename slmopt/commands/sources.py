"""What commands that look at a model accept: a model directory, IR text, or an artifact."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from slmopt.errors import IRError

if TYPE_CHECKING:
    from slmopt.ir.graph import Module

__all__ = ["is_artifact", "open_module"]


def is_artifact(source: str) -> bool:
    """Whether a path is a directory that `slmopt compile` wrote."""
    return (Path(source) / "manifest.json").is_file()


def open_module(source: str) -> Module:
    """The module behind a path; `-` is IR text on standard input. Of an artifact, its final IR, without weights."""
    if source == "-":
        from slmopt.ir.text import parse_module
        from slmopt.plugins.discovery import registry

        registry().add_ops()
        try:
            return parse_module(sys.stdin.read())
        except IRError as error:
            raise IRError(f"standard input: {error}") from error
    from slmopt.api import load

    return load(str(Path(source) / "module.slm") if is_artifact(source) else source)
