"""What was measured for single shapes: the entries `linear` of an instruction set, which `slmopt tune` writes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from slmopt.errors import InputError, IRError, nearest
from slmopt.ir.types import DType, parse_element

__all__ = ["TunedLinear", "read_entries", "write_entries"]

_MOST = {"streams": 16, "tokens": 32, "blocks": 8}  # above these, code only grows


@dataclass(frozen=True)
class TunedLinear:
    """The blocking (see blocking.py) of a linear with weights [rows, columns] of a type, such as q4g32."""

    element: str
    rows: int
    columns: int
    streams: int
    tokens: int
    blocks: int
    prefetch: int


def read_entries(value: Any) -> tuple[TunedLinear, ...]:
    """The entries of parsed TOML. InputError names the entry, the field and what it should be."""
    if not isinstance(value, list) or not all(isinstance(entry, dict) for entry in value):
        raise InputError(f"linear must be a list of tables, got {value!r}")
    entries = tuple(_read_entry(f"linear, entry {index + 1}", entry) for index, entry in enumerate(value))
    seen: set[tuple[str, int, int]] = set()
    for index, entry in enumerate(entries):
        key = (entry.element, entry.rows, entry.columns)
        if key in seen:
            raise InputError(f"linear, entry {index + 1}: there already is one for {entry.element} "
                             f"[{entry.rows}, {entry.columns}]")  # fmt: skip
        seen.add(key)
    return entries


def _read_entry(place: str, entry: Mapping[str, Any]) -> TunedLinear:
    names = [field.name for field in fields(TunedLinear)]
    every = f"its fields are {', '.join(names)}"
    if missing := [name for name in names if name not in entry]:
        raise InputError(f"{place} lacks {', '.join(missing)}; {every}")
    if unknown := [name for name in entry if name not in names]:
        raise InputError(f"{place} has unknown fields {', '.join(unknown)}{nearest(unknown[0], names)}; {every}")
    if not isinstance(entry["element"], str):
        raise InputError(f"{place}: element must be text such as 'q4g32', got {entry['element']!r}")
    for name in names[1:]:
        least, most = (0 if name == "prefetch" else 1), _MOST.get(name)
        if type(entry[name]) is not int or not least <= entry[name] <= (most or entry[name]):
            limit = f"from {least} to {most}" if most else f"of at least {least}"
            raise InputError(f"{place}: {name} must be a whole number {limit}, got {entry[name]!r}")
    try:
        element = parse_element(entry["element"])
    except IRError as error:
        raise InputError(f"{place}: {error}") from error
    if isinstance(element, DType) and not element.is_float:
        raise InputError(f"{place}: element must be a type of weights, got {entry['element']!r}")
    return TunedLinear(**entry)


def write_entries(entries: tuple[TunedLinear, ...]) -> str:
    """TOML that `read_entries` reads, an entry to a line; nothing where there are none."""
    if not entries:
        return ""
    lines = []
    for entry in entries:
        values = [("element", f'"{entry.element}"')]
        values += [(field.name, str(getattr(entry, field.name))) for field in fields(entry)[1:]]
        lines.append("    { " + ", ".join(f"{name} = {value}" for name, value in values) + " },")
    return "\n".join(["linear = [", *lines, "]", ""])
