"""What was measured for single shapes: the entries `linear` of an instruction set, which `slmopt tune` writes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from slmopt.errors import InputError, IRError, nearest
from slmopt.ir.types import DType, parse_element

__all__ = ["MOST", "TunedLinear", "check_fields", "read_entries", "write_entries"]

MOST = {"streams": 16, "tokens": 32, "blocks": 8}  # above these, code only grows


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

    @property
    def key(self) -> tuple[str, int, int]:
        """What it is looked up by."""
        return self.element, self.rows, self.columns


def read_entries(value: Any) -> tuple[TunedLinear, ...]:
    """The entries of parsed TOML. InputError names the entry, the field and what it should be."""
    if not isinstance(value, list) or not all(isinstance(entry, dict) for entry in value):
        raise InputError(f"linear must be a list of tables, got {value!r}")
    entries = tuple(_read_entry(f"linear, entry {index + 1}", entry) for index, entry in enumerate(value))
    seen: set[tuple[str, int, int]] = set()
    for index, entry in enumerate(entries):
        if entry.key in seen:
            raise InputError(f"linear, entry {index + 1}: there already is one for {entry.element} "
                             f"[{entry.rows}, {entry.columns}]")  # fmt: skip
        seen.add(entry.key)
    return entries


def _read_entry(place: str, entry: Mapping[str, Any]) -> TunedLinear:
    names = [field.name for field in fields(TunedLinear)]
    check_fields(place, entry, names)
    if not isinstance(entry["element"], str):
        raise InputError(f"{place}: element must be text such as 'q4g32', got {entry['element']!r}")
    for name in names[1:]:
        least, most = (0 if name == "prefetch" else 1), MOST.get(name)
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


def check_fields(place: str, given: Mapping[str, Any], names: Sequence[str], optional: str = "") -> None:
    """InputError where fields are missing or unknown; `optional` names one that may be there, and says when."""
    every = f"its fields are {', '.join(names)}" + (f", and {optional}" if optional else "")
    if missing := [name for name in names if name not in given]:
        raise InputError(f"{place} lacks {', '.join(missing)}; {every}")
    known = [*names, *optional.split()[:1]]
    if unknown := [name for name in given if name not in known]:
        raise InputError(f"{place} has unknown fields {', '.join(unknown)}{nearest(unknown[0], known)}; {every}")


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
