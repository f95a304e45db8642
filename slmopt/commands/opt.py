"""Run passes on a model or on IR text, and print IR text.

SOURCE is a model directory, a file of IR text, or - for standard input. IR text has no weights: passes then run without
a comparison of numbers, or with --check on random ones. --print-after-all prints the IR after each pass to standard
error. A pass that breaks the IR or its contract is a failed check (exit code 1).
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from slmopt.commands.compile import add_recipe, recipe_of
from slmopt.commands.console import open_progress
from slmopt.commands.sources import open_module
from slmopt.errors import InputError

if TYPE_CHECKING:
    from slmopt.ir.graph import Module
    from slmopt.pipeline import Pass

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", nargs="?", default="-", help="model directory, IR text, or - (default)")
    add_recipe(parser)
    parser.add_argument("-o", "--output", metavar="FILE", help="write the IR text here; default: standard output")
    parser.add_argument("--print-after-all", action="store_true", help="print the IR after each pass to standard error")
    parser.add_argument("--check", action="store_true", help="draw random weights where there are none, and compare")
    parser.add_argument("--ledger", action="store_true", help="print the ledger to standard error")


def run(arguments: argparse.Namespace) -> int:
    from slmopt.api import TEXT_TOKENS, optimize
    from slmopt.calibrate import read_text
    from slmopt.ir.verify import verify
    from slmopt.stand_in import add_stand_ins

    text = None if arguments.text is None else read_text(arguments.text)
    module = open_module(arguments.source)
    verify(module)
    complete = all(key in module.weights for key in module.weight_types())
    add_stand_ins(module, drawn=arguments.check)
    with open_progress(arguments) as bar:
        result = optimize(
            module, recipe_of(arguments, []), text=text, text_tokens=arguments.text_tokens or TEXT_TOKENS,
            verify=(complete or arguments.check) and not arguments.no_verify, report=bar.share,
            observe=_print_after if arguments.print_after_all else None,
        )  # fmt: skip
    if arguments.ledger and result.ledger is not None:
        print(result.ledger.table(), file=sys.stderr)
    _write(str(result), arguments.output)
    return 0


def _print_after(item: Pass, module: Module) -> None:
    from slmopt.options import describe_pass

    print(f"// after {describe_pass(item)}\n{module}", file=sys.stderr)


def _write(text: str, output: str | None) -> None:
    if output is None:
        print(text, end="")
        return
    try:
        Path(output).write_text(text, encoding="utf-8")
    except OSError as error:
        raise InputError(f"cannot write {output}: {error.strerror}") from error
