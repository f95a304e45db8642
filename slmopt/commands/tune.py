"""Measure how the matrix products of a model run best on this machine, and write an instruction set that knows it.

The FILE.toml describes the target's instruction set, with an entry for each shape that gains from other numbers of
blocks and tokens in flight; results stay the same to the bit. It is used as any other:

    slmopt tune MODEL --recipe w4 -o mine.toml
    slmopt compile MODEL --recipe w4 --target cpu:isa=mine.toml

Compiling measures nothing, so the same file gives the same program everywhere. Entries that the target's instruction
set has for other shapes are kept: -t cpu:isa=mine.toml tunes for another model too. The machine should be idle.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from slmopt.commands.compile import add_recipe, recipe_of
from slmopt.commands.console import add_json, open_progress, positive, print_json
from slmopt.errors import InputError

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", help="model directory")
    parser.add_argument("-o", "--output", metavar="FILE", required=True, help="TOML file to write")
    parser.add_argument("-t", "--target", help="such as cpu or cpu:isa=avx2; default: the first this machine runs")
    add_recipe(parser, verify=False)
    parser.add_argument("--rounds", type=positive, default=31, metavar="N", help="turns of each variant; default: 31")
    add_json(parser)


def run(arguments: argparse.Namespace) -> int:
    from slmopt.api import TEXT_TOKENS, prepare, resolve_recipe
    from slmopt.calibrate import read_text
    from slmopt.plugins.discovery import registry
    from slmopt.target import parse_target

    if not arguments.output.endswith(".toml"):
        raise InputError(f"{arguments.output}: an instruction set is a file that ends in .toml")
    target = parse_target(arguments.target or registry().default_target())
    backend = registry().find_backend(target.backend)
    tune = getattr(backend, "tune", None)
    if tune is None:
        raise InputError(f"target {target.backend} has nothing to tune")
    text = None if arguments.text is None else read_text(arguments.text)
    passes = resolve_recipe(recipe_of(arguments, "w8"))
    with open_progress(arguments) as bar:
        module = prepare(arguments.source, target, backend, passes, text=text, verify=False, report=bar.share,
                         text_tokens=arguments.text_tokens or TEXT_TOKENS)  # fmt: skip
        written = tune(module, target, rounds=arguments.rounds, report=bar.step)
    path = Path(arguments.output)
    try:
        path.write_text(written)
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror}") from error
    if arguments.json:
        print_json({"isa": str(path), "text": written})
    else:
        print(f"wrote {path}; compile with --target {target.backend}:isa={path}")
    return 0
