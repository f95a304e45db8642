"""Instruction sets as data: vector width, dot-product instruction, processor features; one TOML file each."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any

from slmopt.errors import InputError, nearest

__all__ = ["Isa", "available_isas", "detect_isa", "load_isa"]

_DIRECTORY = Path(__file__).parent.parent / "cpu" / "isa"
_CPU_INFO = Path("/proc/cpuinfo")


@dataclass(frozen=True)
class Isa:
    """What the kernel generators must know of a processor."""

    name: str
    summary: str
    rank: int  # the host's best ISA is the one of highest rank it has
    cpu: str  # LLVM's -mcpu
    attributes: tuple[str, ...]  # LLVM's -mattr, such as "+avx2"
    cpu_features: tuple[str, ...]  # names of gcc's __builtin_cpu_supports, checked when an artifact is opened
    flags: tuple[str, ...]  # the same as /proc/cpuinfo spells them
    lanes: int  # float32 numbers in a vector register
    dot: str  # how 8-bit products are summed: "vpdpbusd", "maddubs" or "maddwd"
    dot_intrinsic: str  # LLVM intrinsic of the dot product
    half: bool  # whether it converts float16 in hardware
    fused: bool  # whether it multiplies and adds in one instruction
    registers: int  # vector registers
    streams: int  # blocks of quantized weights that are read at once for one token
    token_tile: int  # tokens that share one unpacked block of weights
    prefetch: int  # bytes of weights fetched ahead


def available_isas() -> list[str]:
    """The names of all instruction sets, best first."""
    return sorted((path.stem for path in _DIRECTORY.glob("*.toml")), key=lambda name: -load_isa(name).rank)


@cache
def load_isa(name: str) -> Isa:
    """The description of an instruction set. InputError suggests the nearest name."""
    path = _DIRECTORY / f"{name}.toml"
    if not path.is_file():
        known = sorted(item.stem for item in _DIRECTORY.glob("*.toml"))
        raise InputError(f"unknown instruction set {name!r}{nearest(name, known)}; known are {', '.join(known)}")
    data: dict[str, Any] = tomllib.loads(path.read_text())
    values: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in data.items()}
    missing = {field.name for field in fields(Isa)} - {"name"} - set(values)
    if missing:
        raise InputError(f"{path.name} lacks {', '.join(sorted(missing))}")
    unknown = set(values) - {field.name for field in fields(Isa)}
    if unknown:
        raise InputError(f"{path.name} has unknown fields {', '.join(sorted(unknown))}")
    return Isa(name=name, **values)


def detect_isa() -> str:
    """The best instruction set this processor has."""
    try:
        text = _CPU_INFO.read_text()
    except OSError:
        text = ""
    line = next((line for line in text.splitlines() if line.startswith("flags")), "")
    host = set(line.split())
    return next(name for name in available_isas() if set(load_isa(name).flags) <= host)
