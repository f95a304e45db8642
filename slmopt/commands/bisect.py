"""Find the first pass of a recipe that breaks a property, the fewest of its rewrites that do, and a reproducer.

MODEL is a model directory, or IR text: with the weights of a .safetensors file of its name, else with random ones.
--check takes a property and a bound: outputs<=1e-3 (of the logits, against the original's), perplexity<=+3% (with
--text; +3% is relative to the original, a bare number is absolute), another metric, or compiles (for --target).
--command takes a shell command instead, which exits with 0 where the property holds; {} in it is the path of the
module's IR text, its weights beside it.

The recipe is run once, and the module after each pass is kept; of several passes that break the property one is found.
The reproducer is a directory with the module before the pass, cut down, and one command, reproduce.sh, that fails on
its own.

exit codes: 0 found; 1 nothing breaks, or the reproducer does not fail; 2 wrong use, such as an original that breaks the
property itself. With --replay: 1 the fault is still there, 0 it is not.
"""

from __future__ import annotations

import argparse

from slmopt.commands.compile import add_recipe, recipe_of
from slmopt.commands.console import add_json, open_progress, print_json
from slmopt.errors import InputError

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", nargs="?", metavar="MODEL", help="model directory or IR text")
    add_recipe(parser, verify=False)
    chosen = parser.add_mutually_exclusive_group()
    chosen.add_argument("--check", metavar="CHECK", help="such as 'perplexity<=+3%%', outputs, compiles")
    chosen.add_argument("--command", dest="shell", metavar="COMMAND", help="a shell command, 0 where all is well")
    chosen.add_argument("--replay", metavar="DIR", help="run a reproducer instead; it may run commands: read it first")
    parser.add_argument("-t", "--target", help="what `compiles` compiles for; default: the first this machine runs")
    parser.add_argument("-o", "--output", metavar="DIR", default="reproducer", help="default: reproducer")
    parser.add_argument("--no-reproducer", action="store_true", help="write none")
    add_json(parser)


def run(arguments: argparse.Namespace) -> int:
    if arguments.replay is not None:
        return _replay(arguments)
    if arguments.source is None:
        raise InputError("bisect needs a model, or --replay and a reproducer")
    if arguments.check is None and arguments.shell is None:
        raise InputError("bisect needs a property: --check such as 'outputs<=1e-3', or --command")
    if arguments.passes is None and arguments.recipe is None:
        raise InputError("bisect needs the passes that are searched: --recipe, or --pass for each")
    return _bisect(arguments)


def _bisect(arguments: argparse.Namespace) -> int:
    from slmopt.api import load
    from slmopt.bisection import bisect
    from slmopt.bisection.reproducer import check_directory
    from slmopt.calibrate import read_text
    from slmopt.stand_in import add_stand_ins

    text = None if arguments.text is None else read_text(arguments.text)
    if not arguments.no_reproducer:
        check_directory(arguments.output)
    module = load(arguments.source)
    add_stand_ins(module, drawn=True)
    with open_progress(arguments) as bar:
        found = bisect(
            module, recipe_of(arguments, []), arguments.check, command=arguments.shell, text=text,
            text_tokens=arguments.text_tokens, target=arguments.target, report=bar.share,
            reproducer=None if arguments.no_reproducer else arguments.output,
        )  # fmt: skip
    if arguments.json:
        print_json({"found": None if found is None else found.to_json()})
    elif found is None:
        print(f"nothing breaks: {arguments.check or arguments.shell} holds after the last pass")
    else:
        print(found)
    return 0 if found is not None and (found.reproducer is None or found.reproducer.fails) else 1


def _replay(arguments: argparse.Namespace) -> int:
    from slmopt.bisection import replay

    found = replay(arguments.replay)
    if arguments.json:
        print_json({"fails": found.fails, "words": found.words, "raised": found.raised})
    else:
        print(f"{'it fails' if found.fails else 'it does not fail'}: {found.words}")
    return 1 if found.fails else 0
