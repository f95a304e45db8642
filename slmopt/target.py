"""Targets: a backend's name and options, written `cpu` or `cpu:isa=avx2,threads=4`.

A kind of machine that several backends compile for is told apart by the option `via`: `cpu:via=mlir,isa=avx2` is the
backend `cpu:via=mlir` with the option isa.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from slmopt.errors import InputError

__all__ = ["Target", "parse_target"]

_VIA = "via"  # the option that belongs to a backend's name


@dataclass(frozen=True)
class Target:
    """A backend, `via` and all, and what it is told. Each backend checks its own options."""

    backend: str
    options: Mapping[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        options = ",".join(f"{name}={value}" for name, value in sorted(self.options.items()))
        separator = "," if ":" in self.backend else ":"
        return f"{self.backend}{separator}{options}" if options else self.backend


def parse_target(text: str) -> Target:
    """Parse `backend[:option=value{,option=value}]`; InputError says what is wrong."""
    backend, _, rest = text.partition(":")
    if not re.fullmatch(r"[a-z][a-z0-9_-]*", backend):
        raise InputError(f"{text!r} is no target: expected a backend such as cpu, or cpu:isa=avx2,context=512")
    options: dict[str, str] = {}
    for part in filter(None, rest.split(",")):
        name, equals, value = part.partition("=")
        if not equals or not name or not value:
            raise InputError(f"target {text!r}: {part!r} is not of the form option=value")
        if name in options:
            raise InputError(f"target {text!r} gives the option {name!r} twice")
        options[name] = value
    via = options.pop(_VIA, None)
    return Target(backend if via is None else f"{backend}:{_VIA}={via}", options)
