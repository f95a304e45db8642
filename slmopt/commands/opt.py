"""Run passes on a model or on IR text, and print IR text.

SOURCE is a model directory, a file of IR text, or - for standard input. IR text has no weights: passes then run without
a comparison of numbers, or with --check on random ones. What --print-... , --ledger and --time-passes show goes to
standard error. A pass that breaks the IR or its contract is a failed check (exit code 1).
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from slmopt.commands.compile import add_recipe, recipe_of
from slmopt.commands.console import add_json, open_progress, print_json
from slmopt.commands.sources import open_module
from slmopt.errors import InputError, SlmError, nearest

if TYPE_CHECKING:
    from slmopt.ir.graph import Module
    from slmopt.pipeline import Pass

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", nargs="?", default="-", help="model directory, IR text, or - (default)")
    add_recipe(parser)
    parser.add_argument("-o", "--output", metavar="FILE", help="write the IR text here; default: standard output")
    parser.add_argument("--print-changed", action="store_true", help="print what each pass changed, as a diff")
    parser.add_argument("--print-after-all", action="store_true", help="print the IR after each pass")
    for when in ("before", "after"):
        parser.add_argument(
            f"--print-{when}", action="append", default=[], metavar="PASS", help=f"print the IR {when} it; repeatable"
        )
    parser.add_argument("--check", action="store_true", help="draw random weights where there are none, and compare")
    parser.add_argument("--ledger", action="store_true", help="print the ledger: sizes and drift after each pass")
    parser.add_argument("--time-passes", action="store_true", help="print the time of each pass and kind of rewrite")
    add_json(parser)


def run(arguments: argparse.Namespace) -> int:
    from slmopt.api import TEXT_TOKENS, optimize
    from slmopt.calibrate import read_text
    from slmopt.stand_in import add_stand_ins

    text = None if arguments.text is None else read_text(arguments.text)
    module = open_module(arguments.source, verified=True)
    complete = all(key in module.weights for key in module.weight_types())
    add_stand_ins(module, drawn=arguments.check)
    printer = _Printer(arguments, module)
    with open_progress(arguments) as bar:
        try:
            result = optimize(
                module, recipe_of(arguments, []), text=text, text_tokens=arguments.text_tokens or TEXT_TOKENS,
                verify=(complete or arguments.check) and not arguments.no_verify, report=bar.share,
                observe=printer if printer.wanted else None,
            )  # fmt: skip
        except SlmError as error:
            printer.show_notes(error)
            raise
    printer.check_names()
    if arguments.ledger:
        print(result.ledger.table(), file=sys.stderr)
    if arguments.time_passes:
        print(result.ledger.timings(), file=sys.stderr)
    if arguments.json:
        if arguments.output is not None:
            _write(str(result), arguments.output)
        print_json({"module": str(result), "ledger": result.ledger.to_json()})
    else:
        _write(str(result), arguments.output)
    return 0


class _Printer:
    """Prints the IR, or what changed of it, as passes run."""

    def __init__(self, arguments: argparse.Namespace, module: Module) -> None:
        self.changed, self.all = arguments.print_changed, arguments.print_after_all
        self.before, self.after = set(arguments.print_before), set(arguments.print_after)
        self.wanted = bool(self.changed or self.all or self.before or self.after)
        self._ran: list[str] = []
        self._keep(module)

    def __call__(self, item: Pass, module: Module) -> None:
        from slmopt.ir.diff import diff_text
        from slmopt.options import describe_pass

        name, text, graphs = describe_pass(item), self._text, self._graphs
        self._ran.append(item.name)
        self._keep(module)
        if item.name in self.before:
            print(f"// before {name}\n{text}", file=sys.stderr)
        if self.changed:
            found = diff_text(graphs, self._graphs)
            print(f"// {name} changed\n{found}" if found else f"// {name} changed nothing", file=sys.stderr)
        if self.all or item.name in self.after:
            print(f"// after {name}\n{self._text}", file=sys.stderr)

    def show_notes(self, error: SlmError) -> None:
        """What a pass that failed had done."""
        for note in getattr(error, "__notes__", ()) if self.changed else ():
            print(f"// {note}", file=sys.stderr)

    def _keep(self, module: Module) -> None:
        if self.wanted:
            self._text, self._graphs = str(module), {name: str(graph) for name, graph in module.graphs.items()}

    def check_names(self) -> None:
        """InputError where a pass was to be printed that did not run."""
        for name in sorted((self.before | self.after) - set(self._ran)):
            ran = ", ".join(dict.fromkeys(self._ran)) or "none"
            raise InputError(f"no pass {name!r} ran{nearest(name, self._ran)}; those that ran: {ran}")


def _write(text: str, output: str | None) -> None:
    if output is None:
        print(text, end="")
        return
    try:
        Path(output).write_text(text, encoding="utf-8")
    except OSError as error:
        raise InputError(f"cannot write {output}: {error.strerror}") from error
