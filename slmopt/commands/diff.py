"""Compare two models, IR texts or artifacts, op by op; names of values do not count.

Exit code 0: no difference; 1: they differ.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict

from slmopt.commands.console import add_json, print_json
from slmopt.commands.sources import open_module

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("before", help="model directory, IR text (- for standard input) or artifact")
    parser.add_argument("after", help="the same")
    add_json(parser)


def run(arguments: argparse.Namespace) -> int:
    from slmopt.ir.diff import diff

    found = diff(open_module(arguments.before), open_module(arguments.after))
    if arguments.json:
        print_json({"same": found.same, **asdict(found)})
    else:
        print(found, end="")
    return 0 if found.same else 1
