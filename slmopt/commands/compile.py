"""Compile a model into a self-contained program: a directory with a shared library, its weights and its tokenizer.

SOURCE is a Hugging Face model directory (safetensors). The recipe's passes are verified one by one; with --text, the
recipe's budget is enforced, and a model that leaves it is not compiled (exit code 1).
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from slmopt.commands.console import add_json, open_progress, positive, print_json

if TYPE_CHECKING:
    from slmopt.ir.graph import Module

__all__ = ["add_arguments", "add_recipe", "compile_and_print", "recipe_of", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", help="model directory")
    parser.add_argument("-o", "--output", metavar="DIR", help="artifact to write; default: build/NAME")
    parser.add_argument(
        "-t", "--target", help="such as cpu or cpu:isa=avx2,context=512; default: the first this machine runs"
    )
    add_recipe(parser)
    parser.add_argument("--name", help="of the artifact's library; default: the directory's name")
    add_json(parser)


def add_recipe(parser: argparse.ArgumentParser, *, verify: bool = True) -> None:
    """The options that say which passes run and how they are checked."""
    chosen = parser.add_mutually_exclusive_group()
    chosen.add_argument("-r", "--recipe", metavar="NAME", help="f32, f16, w8, w4, w4-gptq, w4-kv8, or a TOML file")
    chosen.add_argument(
        "-p", "--pass", dest="passes", action="append", metavar="PASS", help="such as quantize{bits=4}; repeatable"
    )
    parser.add_argument("--text", metavar="FILE", help="UTF-8 text for perplexity, the budget and calibration")
    parser.add_argument("--text-tokens", type=positive, metavar="N", help="tokens of the text; default: 4096")
    if verify:
        parser.add_argument("--no-verify", action="store_true", help="do not compare numbers after each pass")


def recipe_of(arguments: argparse.Namespace, default: str | list[str]) -> str | list[str]:
    """The recipe's name or file, or the list of passes that was asked for."""
    if arguments.passes is not None:
        return list(arguments.passes)
    return default if arguments.recipe is None else str(arguments.recipe)


def run(arguments: argparse.Namespace) -> int:
    compile_and_print(arguments, recipe_of(arguments, "w8"))
    return 0


def compile_and_print(arguments: argparse.Namespace, recipe: str | list[str]) -> Path:
    """Compile as the arguments say, print the ledger and the size of what was written; returns the artifact's path."""
    from slmopt.api import TEXT_TOKENS, compile
    from slmopt.calibrate import read_text
    from slmopt.ledger import format_count

    modules: list[Module] = []
    text = None if arguments.text is None else read_text(arguments.text)
    with open_progress(arguments) as bar:
        path = compile(
            arguments.source, arguments.target, arguments.output, recipe=recipe, name=arguments.name, text=text,
            text_tokens=arguments.text_tokens or TEXT_TOKENS, verify=not arguments.no_verify, report=bar.share,
            observe=modules.append,
        )  # fmt: skip
    ledger = modules[-1].ledger
    size = sum(entry.stat().st_size for entry in path.iterdir())
    if arguments.json:
        print_json({"artifact": str(path), "bytes": size, "ledger": None if ledger is None else ledger.to_json()})
    else:
        if ledger is not None:
            print(ledger.table())
        print(f"wrote {path} ({format_count(size, 'B')})")
    return path
