"""What a pass declares: its options and their limits, its name, contract and facts; errors where that cannot be."""

from __future__ import annotations

import dataclasses
import inspect
import re
import types
import typing
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from slmopt.errors import InputError

__all__ = [
    "alternatives", "check_class", "check_declaration", "check_options", "option", "option_help", "option_limits",
    "option_types", "type_name",
]  # fmt: skip

_NAME = re.compile(r"[a-z][a-z0-9_-]*\Z")
_FACTS = ("requires", "follows", "ensures", "breaks")
_PLAIN = (bool, int, float, str)


def option(
    default: Any = dataclasses.MISSING, *, help: str = "", choices: Collection[Any] = (), minimum: float | None = None,
    maximum: float | None = None, multiple_of: int | None = None,
) -> Any:  # fmt: skip
    """A field of a pass with help and limits: `bits: int = option(4, choices=(4, 8), help="bits per weight")`.

    The limits hold wherever the pass is made: on the command line, in a recipe and in Python. In a tuple they hold for
    every item. None, where the type allows it, is within all limits. Without `default` the option is required.
    """
    limits = {"choices": tuple(choices), "minimum": minimum, "maximum": maximum, "multiple_of": multiple_of}
    given = {name: value for name, value in limits.items() if value not in (None, ())}
    value = tuple(default) if isinstance(default, list) else default
    return dataclasses.field(default=value, metadata={"help": help, "limits": given})


# --- reading ---------------------------------------------------------------------------------------------------------
def option_types(cls: type) -> dict[str, Any]:
    """The type of each option."""
    try:
        hints = typing.get_type_hints(cls)
    except NameError as error:
        raise InputError(f"pass {_called(cls)}: the types of {cls.__name__}'s options cannot be read: {error}; import "
                         "what they name outside of `if TYPE_CHECKING`") from error  # fmt: skip
    return {field.name: hints[field.name] for field in dataclasses.fields(cls) if field.init}


def alternatives(expected: Any) -> Iterator[Any]:
    """The types of a union, or the type itself."""
    if isinstance(expected, types.UnionType) or typing.get_origin(expected) is typing.Union:
        yield from typing.get_args(expected)
    else:
        yield expected


def type_name(expected: Any) -> str:
    """A type as people write it: `integer`, `none|number`, `[text,...]`."""
    names = []
    for one in alternatives(expected):
        if one is type(None):
            names.append("none")
        elif typing.get_origin(one) is typing.Literal:
            names.extend(str(value) for value in typing.get_args(one))
        elif typing.get_origin(one) is tuple:
            names.append(f"[{type_name(typing.get_args(one)[0])},...]")
        else:
            names.append({int: "integer", float: "number", bool: "true|false", str: "text"}.get(one, _class_name(one)))
    return "|".join(names)


def _class_name(expected: Any) -> str:
    return expected.__name__.lower() if isinstance(expected, type) else str(expected)


def option_help(cls: type) -> dict[str, str]:
    """What each option means: its `help`, or its line `name:  text` of the docstring, with the lines it goes on in."""
    found = dict(_written_help(cls))
    for field in dataclasses.fields(cls):
        if field.metadata.get("help"):
            found[field.name] = field.metadata["help"]
    return found


def _written_help(cls: type) -> Iterator[tuple[str, str]]:
    names = "|".join(re.escape(field.name) for field in dataclasses.fields(cls))
    text = inspect.getdoc(cls) or ""
    for found in re.finditer(rf"(?m)^({names}):[ \t]+(.+(?:\n[ \t]+\S.*)*)", text) if names else ():
        yield found[1], " ".join(found[2].split())


def option_limits(cls: type) -> dict[str, str]:
    """The limits of each option that has some, in words."""
    found = {field.name: _limits_text(field.metadata.get("limits", {})) for field in dataclasses.fields(cls)}
    return {name: text for name, text in found.items() if text}


def _limits_text(limits: Mapping[str, Any]) -> str:
    parts = []
    if "choices" in limits:
        shown = [str(value) for value in limits["choices"]]
        parts.append(" or ".join([", ".join(shown[:-1]), shown[-1]] if len(shown) > 1 else shown))
    if "minimum" in limits and "maximum" in limits:
        parts.append(f"{limits['minimum']} to {limits['maximum']}")
    elif "minimum" in limits:
        parts.append(f"at least {limits['minimum']}")
    elif "maximum" in limits:
        parts.append(f"at most {limits['maximum']}")
    if "multiple_of" in limits:
        parts.append(f"a multiple of {limits['multiple_of']}")
    return ", ".join(parts)


# --- checking the values of a pass -----------------------------------------------------------------------------------
def check_options(item: Any) -> None:
    """InputError where an option's value is not of its type or beyond its limits; texts become what their type parses.

    Called when a pass is made. A pass with a `__post_init__` of its own begins it with `super().__post_init__()`.
    """
    cls = type(item)
    if not dataclasses.is_dataclass(cls):
        return
    expected = option_types(cls)
    for field in dataclasses.fields(cls):
        if field.name not in expected:
            continue
        value, wanted = getattr(item, field.name), expected[field.name]
        if isinstance(value, str) and hasattr(wanted, "parse"):
            value = wanted.parse(value)
            object.__setattr__(item, field.name, value)
        place = f"pass {_called(cls)}: option {field.name}"
        if not _fits(value, wanted):
            raise InputError(f"{place} must be {type_name(wanted)}, got {value!r}")
        _check_limits(value, field.metadata.get("limits", {}), place)


def _fits(value: Any, expected: Any) -> bool:
    """Whether a value is of a type; True for types that say more than this looks at."""
    if len(options := list(alternatives(expected))) > 1:
        return any(_fits(value, one) for one in options)
    origin = typing.get_origin(expected)
    if origin is typing.Literal:
        return any(value == one and type(value) is type(one) for one in typing.get_args(expected))
    if origin is tuple:
        return isinstance(value, tuple)
    if expected in (type(None), None):
        return value is None
    if expected is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if expected in (int, bool, str):
        return isinstance(value, expected) and (expected is bool) == isinstance(value, bool)
    return True


def _check_limits(value: Any, limits: Mapping[str, Any], place: str) -> None:
    if value is None or not limits:
        return
    for part in value if isinstance(value, tuple) else (value,):
        wrong = "choices" in limits and part not in limits["choices"]
        wrong = wrong or ("minimum" in limits and not part >= limits["minimum"])
        wrong = wrong or ("maximum" in limits and not part <= limits["maximum"])
        wrong = wrong or ("multiple_of" in limits and part % limits["multiple_of"] != 0)
        if wrong:
            raise InputError(f"{place} must be {_limits_text(limits)}, got {part!r}")


# --- checking the class of a pass ------------------------------------------------------------------------------------
def check_class(cls: Any) -> None:
    """InputError where what a pass's class declares is of the wrong kind. Called when the class is made."""
    own = cls.__dict__
    name = own.get("name")
    if name is not None and not (isinstance(name, str) and _NAME.match(name)):
        raise InputError(f"pass {cls.__name__}: name = {name!r}, expected lower-case letters, digits, - and _")
    if "contract" in own:
        _check_contract(cls, own["contract"])
    for fact in _FACTS:
        if fact in own:
            setattr(cls, fact, _read_facts(cls, fact, own[fact]))
    annotated = {name for base in cls.__mro__ for name in inspect.get_annotations(base)}
    for name, value in own.items():
        if name[:1].islower() and isinstance(value, _PLAIN) and name not in annotated:
            kind = type(value).__name__
            raise InputError(f"pass {_called(cls)}: {name} = {value!r} is no option without its type: write "
                             f"`{name}: {kind} = {value!r}`, or `{name}: ClassVar[{kind}]` if it is none")  # fmt: skip


def _check_contract(cls: type, contract: Any) -> None:
    from slmopt.pipeline import Exact, Lossy

    if not isinstance(contract, Exact | Lossy):
        hint = f"{contract.__name__}()" if contract in (Exact, Lossy) else "Exact(), Exact(tolerance) or Lossy()"
        raise InputError(f"pass {_called(cls)}: contract = {contract!r}, expected {hint}")


def _read_facts(cls: type, kind: str, value: Any) -> frozenset[str]:
    if isinstance(value, set | frozenset | tuple | list) and all(isinstance(item, str) for item in value):
        return frozenset(value)
    hint = f"frozenset({{{value!r}}})" if isinstance(value, str) else "a set of texts"
    raise InputError(f"pass {_called(cls)}: {kind} = {value!r}, expected {hint}")


def check_declaration(cls: Any, *, published: bool = False) -> None:
    """InputError where a pass's class lacks what running it needs: a name, `run`, @dataclass(frozen=True).

    A pass that is `published`, by a plugin, needs a docstring too: listings show its first line.
    """
    from slmopt.pipeline import Pass

    if not isinstance(getattr(cls, "name", None), str):
        raise InputError(f'pass {cls.__name__} has no name: write `name: ClassVar[str] = "..."`, as recipes call it')
    place = f"pass {cls.name}"
    fields = _fields(cls)
    lost = [name for name in _annotated(cls) if fields is not None and name not in fields]
    if fields is None or lost:
        what = f": its option {lost[0]} would be lost" if lost else ""
        raise InputError(f"{place} is no dataclass{what}: decorate {cls.__name__} with @dataclass(frozen=True)")
    if not cls.__dataclass_params__.frozen:
        raise InputError(f"{place} is not frozen: decorate {cls.__name__} with @dataclass(frozen=True)")
    declared = [name for name in fields if name in Pass.__annotations__]
    if declared:
        raise InputError(f"{place}: {declared[0]} has become an option: annotate it as ClassVar")
    if cls.run is Pass.run:
        raise InputError(f"{place} has no run(module, context)")
    written = cls.__dict__.get("__doc__") or ""
    if published and (not written.strip() or written.startswith(f"{cls.__name__}(")):  # @dataclass writes its own
        raise InputError(f"{place} has no docstring: its first line is the rewrite, such as x * 1 -> x")


def _fields(cls: Any) -> list[str] | None:
    return [field.name for field in dataclasses.fields(cls)] if dataclasses.is_dataclass(cls) else None


def _annotated(cls: type) -> list[str]:
    """What a class itself annotates as options."""
    return [name for name, type in inspect.get_annotations(cls).items() if "ClassVar" not in str(type)]


def _called(cls: type) -> str:
    name = getattr(cls, "name", None)
    return name if isinstance(name, str) else cls.__name__
