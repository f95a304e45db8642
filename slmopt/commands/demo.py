"""Compile the bundled model, a small one that has read the Python standard library, and let it write some code."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from slmopt.commands.compile import compile_and_print, recipe_of
from slmopt.commands.console import add_json, positive
from slmopt.errors import InputError

__all__ = ["add_arguments", "run"]

_PROMPT = "class Parser:\n    def __init__(self, name, value):\n        self.name"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    recipes = "f32, f16, w8, w4, w4-gptq, w4-kv8, or a TOML file; default: w8"
    parser.add_argument("-r", "--recipe", default="w8", help=recipes)
    parser.add_argument("-t", "--target", help="default: the first this machine runs")
    parser.add_argument("-o", "--output", default="build/demo", metavar="DIR", help="default: build/demo")
    parser.add_argument("-p", "--prompt", default=_PROMPT, help="Python to continue")
    parser.add_argument("-n", "--max-tokens", type=positive, default=56, metavar="N", help="default: 56")
    add_json(parser)
    parser.set_defaults(passes=None, name="pycode", text=None, text_tokens=None, no_verify=False)


def run(arguments: argparse.Namespace) -> int:
    from slmopt.runtime import open

    arguments.source = str(_bundled())
    path = compile_and_print(arguments, recipe_of(arguments, "w8"))
    if arguments.json:
        return 0
    with open(path) as model:
        print(f"\n{arguments.prompt}", end="")
        start = time.perf_counter()
        for piece in model.stream(arguments.prompt, arguments.max_tokens):
            print(piece, end="", flush=True)
        print(f"\n\n{time.perf_counter() - start:.2f} s", file=sys.stderr)
    return 0


def _bundled() -> Path:
    path = Path(__file__).resolve().parent.parent / "models" / "pycode"
    if not (path / "config.json").is_file():
        raise InputError(f"the bundled model is not at {path}: install slmopt whole, or train it with its train.py")
    return path
