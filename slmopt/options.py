"""Passes as text: `quantize{bits=4,group=32}`, parsed against the fields of the pass's dataclass."""

from __future__ import annotations

import dataclasses
import json
import re
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from slmopt.declaration import (
    alternatives,
    check_declaration,
    option_help,
    option_limits,
    option_types,
    type_name,
)
from slmopt.errors import InputError, nearest
from slmopt.pipeline import Pass

__all__ = ["Option", "PassText", "build_pass", "describe_pass", "list_options", "parse_pass", "split_passes"]

_REQUIRED = "required"
_NAME = re.compile(r"[a-z][a-z0-9_-]*\Z")
_OPTION = re.compile(r'\s*([A-Za-z_]\w*)\s*=\s*("(?:[^"\\]|\\.)*"|\[[^\]]*\]|[^,"{}\[\]]*?)\s*(?:,|\Z)')


@dataclass(frozen=True)
class PassText:
    """A pass as written: its name, and option values that are not yet checked."""

    name: str
    options: Mapping[str, str]


@dataclass(frozen=True)
class Option:
    """An option of a pass: `type` as people write it, `default` as text, `help` and `limits` in words, maybe empty."""

    name: str
    type: str
    default: str
    help: str = ""
    limits: str = ""


def split_passes(text: str) -> list[str]:
    """Split `raise, quantize{bits=4,group=32}` at the commas and blanks outside braces and quotes."""
    parts, depth, quoted, current = [], 0, False, ""
    for index, character in enumerate(text):
        if character == '"' and (index == 0 or text[index - 1] != "\\"):
            quoted = not quoted
        depth += 0 if quoted else (character == "{") - (character == "}")
        if depth == 0 and not quoted and (character == "," or character.isspace()):
            parts.append(current)
            current = ""
        else:
            current += character
    return [part for part in (*parts, current) if part]


def parse_pass(text: str) -> PassText:
    """Parse `name` or `name{option=value,...}`; InputError says what is wrong."""
    name, brace, rest = text.strip().partition("{")
    if not _NAME.match(name.strip()) or (brace and not rest.endswith("}")):
        raise InputError(f"{text!r} is no pass: expected a name, or one with options such as quantize{{bits=4}}")
    options: dict[str, str] = {}
    body, place = rest[:-1].strip(), 0
    while place < len(body):
        match = _OPTION.match(body, place)
        if match is None or not match[2]:
            raise InputError(f"pass {text!r}: {body[place:]!r} is not of the form option=value,...")
        if match[1] in options:
            raise InputError(f"pass {text!r} gives the option {match[1]!r} twice")
        options[match[1]] = match[2]
        place = match.end()
    return PassText(name.strip(), options)


def build_pass(
    text: str | PassText, lookup: Callable[[str], type[Pass]], defaults: Mapping[str, Any] | None = None
) -> Pass:
    """The pass that `text` describes. `defaults` are options (text or values) that the text overrides.

    `lookup` gives the class of a name. InputError names an unknown option, suggesting the nearest, or a value that
    does not fit the option's type.
    """
    written = parse_pass(text) if isinstance(text, str) else text
    cls = lookup(written.name)
    check_declaration(cls)
    fields = option_types(cls)
    values: dict[str, Any] = {}
    for name, value in {**(defaults or {}), **written.options}.items():
        if name not in fields:
            takes = f"it takes {', '.join(fields)}" if fields else "it takes none"
            raise InputError(f"pass {written.name} has no option {name!r}{nearest(name, fields)}; {takes}")
        place = f"pass {written.name}: option {name}"
        read = _convert if isinstance(value, str) else _check
        values[name] = read(value, fields[name], place)
    missing = [option.name for option in list_options(cls) if option.default == _REQUIRED and option.name not in values]
    if missing:
        raise InputError(f"pass {written.name} needs the option {missing[0]!r}: {written.name}{{{missing[0]}=...}}")
    return cls(**values)


def list_options(cls: type[Pass]) -> list[Option]:
    """The options of a pass, in order; InputError where it is no dataclass."""
    check_declaration(cls)
    hints, found = option_types(cls), []
    text, limits = option_help(cls), option_limits(cls)
    for field in dataclasses.fields(cls):  # type: ignore[arg-type]
        default = field.default
        if field.default_factory is not dataclasses.MISSING:
            default = field.default_factory()
        shown = _REQUIRED if default is dataclasses.MISSING else _print(default)
        name = field.name
        found.append(Option(name, type_name(hints[name]), shown, text.get(name, ""), limits.get(name, "")))
    return found


def describe_pass(item: Pass) -> str:
    """The pass as a recipe writes it, with the options that differ from their defaults."""
    parts = []
    for field in dataclasses.fields(item):  # type: ignore[arg-type]
        default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
        value = getattr(item, field.name)
        if value != default or type(value) is not type(default):
            parts.append(f"{field.name}={_print(value)}")
    return f"{item.name}{{{','.join(parts)}}}" if parts else item.name


def _convert(text: str, expected: Any, place: str) -> Any:
    """The value that `text` writes, of the expected type."""
    for one in alternatives(expected):
        found = _convert_one(text, one, place)
        if found is not _NO_VALUE:
            return found
    raise InputError(f"{place} must be {type_name(expected)}, got {text}")


_NO_VALUE = object()


def _convert_one(text: str, expected: Any, place: str) -> Any:
    origin = typing.get_origin(expected)
    if expected is type(None):
        return None if text == "none" else _NO_VALUE
    if expected is bool:
        return {"true": True, "false": False}.get(text, _NO_VALUE)
    if expected is int:
        return int(text) if re.fullmatch(r"[+-]?\d+", text) else _NO_VALUE
    if expected is float:
        return float(text) if re.fullmatch(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", text) else _NO_VALUE
    if expected is str:
        return _unquote(text, place)
    if origin is typing.Literal:
        matching = [value for value in typing.get_args(expected) if str(value) == _unquote(text, place)]
        return matching[0] if matching else _NO_VALUE
    if hasattr(expected, "parse"):
        return _parse(_unquote(text, place), expected, place)
    if origin is tuple and text.startswith("["):
        item = typing.get_args(expected)[0]
        return tuple(_convert(part.strip(), item, place) for part in text[1:-1].split(",") if part.strip())
    return _NO_VALUE


def _parse(text: str, expected: Any, place: str) -> Any:
    try:
        return expected.parse(text)
    except InputError as error:
        raise InputError(f"{place}: {error}") from error


def _unquote(text: str, place: str) -> str:
    if not text.startswith('"'):
        return text
    try:
        return str(json.loads(text))
    except ValueError as error:
        raise InputError(f"{place}: {text} is no quoted text: {error}") from error


def _check(value: Any, expected: Any, place: str) -> Any:
    """A value from TOML or Python, of the expected type."""
    if isinstance(value, list):
        value = tuple(value)
    for one in alternatives(expected):
        origin = typing.get_origin(one)
        if one is float and isinstance(value, int) and not isinstance(value, bool):
            return float(value)
        if origin is typing.Literal and value in typing.get_args(one):
            return value
        if origin is tuple and isinstance(value, tuple):
            return tuple(_check(item, typing.get_args(one)[0], place) for item in value)
        if isinstance(one, type) and isinstance(value, one) and (one is bool) == isinstance(value, bool):
            return value
    raise InputError(f"{place} must be {type_name(expected)}, got {value!r}")


def _print(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return value if re.fullmatch(r"[\w.+-]+", value) else json.dumps(value)
    if isinstance(value, tuple | list):
        return "[" + ",".join(map(_print, value)) + "]"
    return str(value) if isinstance(value, int | float) else _print(str(value))
