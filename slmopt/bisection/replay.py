"""Replaying a reproducer: whether the fault is still there."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slmopt.bisection.checks import Check, parse_check
from slmopt.bisection.isolate import Subject
from slmopt.bisection.properties import CommandCheck, OutputsCheck, Texts, make_check
from slmopt.errors import InputError, SlmError
from slmopt.options import build_pass
from slmopt.pipeline import Context

if TYPE_CHECKING:
    from slmopt.ir.graph import Module
    from slmopt.pipeline import Pass

__all__ = ["Replayed", "replay"]

_FORMAT = 1
_KEYS = ("pass", "class", "weights", "inputs", "rewrites", "raises", "check", "command", "graph", "target")


@dataclass(frozen=True)
class Replayed:
    """Whether the pass still does what it should not, and what was seen. raised: the pass itself raised an error."""

    fails: bool
    words: str
    raised: bool = False


def replay(directory: str | os.PathLike[str]) -> Replayed:
    """Run a reproducer that `slmopt bisect` wrote. It imports the pass, and runs the shell command of its check.

    InputError where the directory is no reproducer, or its pass is not installed.
    """
    from slmopt.api import load
    from slmopt.stand_in import add_stand_ins

    place = Path(directory)
    told, texts = _read(place / "reproducer.json"), _read_texts(place)
    item = _find_item(told["pass"], told["class"])
    module: Module = load(place / "before.slm")
    if not told["weights"]:
        add_stand_ins(module, drawn=True)
    original = place / "original.slm"
    context = _context(told, texts, load(original) if original.is_file() else None)
    subject = Subject(item, module, None, context)
    allowed = None if told["rewrites"] is None else frozenset(told["rewrites"])
    if told["raises"] is not None:
        return _replay_error(subject, allowed, told["raises"])
    check = _find_check(place, told, texts)
    before = check.prepare(module)
    if not before.holds:
        return Replayed(False, f"the check does not hold of before.slm itself: {before.words}")
    try:
        after = subject.run(allowed)
    except Exception as error:
        return Replayed(True, f"the pass raises {type(error).__name__}: {error}", raised=True)
    found = check.measure(after)
    return Replayed(not found.holds, found.words)


def _replay_error(subject: Subject, allowed: frozenset[str] | None, name: str) -> Replayed:
    from slmopt.bisection.trail import freeze
    from slmopt.journal import open_journal
    from slmopt.pipeline import Pipeline

    try:
        with open_journal(allowed):
            Pipeline([subject.item], verify=False).run(freeze(subject.before), subject.context)
    except Exception as error:
        same = type(error).__name__ == name
        return Replayed(same, f"it raises {type(error).__name__}: {error}", raised=True)
    return Replayed(False, "it raises nothing")


def _read(file: Path) -> dict[str, Any]:
    from slmopt.frontends.safetensors_files import read_json

    told = read_json(file)
    if told.get("format") != _FORMAT:
        raise InputError(f"{file} has format {told.get('format')!r}; this slmopt replays format {_FORMAT}")
    missing = [key for key in _KEYS if key not in told]
    if missing:
        raise InputError(f"{file} lacks {missing[0]!r}: it was not written by `slmopt bisect`")
    for key, name in (("weights", "before.safetensors"), ("inputs", "inputs.safetensors")):
        if told[key] and not (file.parent / name).is_file():
            raise InputError(f"{file.parent} lacks {name}")
    return told


def _read_texts(place: Path) -> Texts:
    from slmopt.calibrate import Calibration
    from slmopt.frontends.safetensors_files import read_json
    from slmopt.metrics import Document

    if not (place / "tokens.json").is_file():
        return Texts()
    told = read_json(place / "tokens.json")
    calibration, documents = told.get("calibration"), told.get("documents")
    return Texts(
        None if calibration is None else Calibration(tuple(tuple(ids) for ids in calibration)),
        None if documents is None else tuple(Document(tuple(ids), size) for ids, size in documents),
    )


def _context(told: dict[str, Any], texts: Texts, original: Module | None) -> Context:
    from slmopt.api import load
    from slmopt.plugins.discovery import registry
    from slmopt.target import parse_target

    target = None if told["target"] is None else parse_target(told["target"])
    return Context(target, texts.calibration, rules=registry().rules_for, original=original, load=load)


def _find_check(place: Path, told: dict[str, Any], texts: Texts) -> Check:
    from slmopt.plugins.discovery import registry

    if told["command"] is not None:
        return CommandCheck(told["command"])
    parsed = parse_check(told["check"], tuple(registry().metrics))
    if not told["inputs"]:
        return make_check(parsed, texts, told["target"])
    from safetensors.torch import load_file

    return OutputsCheck(parsed.text, parsed.limit, load_file(place / "inputs.safetensors"), told["graph"])


def _find_item(text: str, place: str | None) -> Pass:
    """The pass; InputError where it is not installed, or does not take its options."""
    try:
        return build_pass(text, lambda name: _find_class(name, place))
    except SlmError as error:
        raise InputError(f"the reproducer's pass cannot be made: {error}") from error


def _find_class(name: str, place: str | None) -> type[Pass]:
    from importlib import import_module

    from slmopt.pipeline import Pass
    from slmopt.plugins.discovery import registry

    if place is None:
        return registry().find_pass(name)
    module, _, attribute = place.partition(":")
    try:
        found: Any = import_module(module)
        for part in attribute.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError) as error:
        raise InputError(f"{name} is {place}, which cannot be imported: {error}") from error
    if not (isinstance(found, type) and issubclass(found, Pass)):
        raise InputError(f"{name} is {place}, which is no Pass")
    return found
