"""Check a compiled artifact: its program's logits and tokens against the interpreter's.

What the interpreter expects lies in the artifact (probe.json); with --model it is computed again, for as many greedy
tokens as --tokens says. A program for another machine runs under an emulator: --runner 'qemu-aarch64-static -L
/usr/aarch64-linux-gnu'. Exit code 1 where it does not agree.
"""

from __future__ import annotations

import argparse
import math
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from slmopt.commands.compile import add_recipe, recipe_of
from slmopt.commands.console import add_json, positive, print_json
from slmopt.errors import ArtifactError, InputError

if TYPE_CHECKING:
    from slmopt.expectation import Expectation

__all__ = ["add_arguments", "run"]

_TOKENS = 64


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("artifact", help="directory that `slmopt compile` wrote")
    parser.add_argument("--runner", metavar="COMMAND", help="emulator that runs the program, with its options")
    parser.add_argument("--tokens", type=positive, metavar="N", help="greedy tokens to compare; default: "
                        f"all that the artifact has, {_TOKENS} with --model")  # fmt: skip
    parser.add_argument("--tolerance", type=_tolerance, metavar="X", help="error allowed, of the largest logit")
    parser.add_argument("--threads", type=positive, default=1, metavar="N", help="default: 1")
    parser.add_argument("--model", metavar="DIR", help="model to compute the expected numbers of again, with:")
    add_recipe(parser, verify=False)
    add_json(parser)


def _tolerance(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"expected a number from 0, got {text!r}")
    return value


def run(arguments: argparse.Namespace) -> int:
    from slmopt.artifact import read_manifest
    from slmopt.artifact_check import check_artifact

    path = Path(arguments.artifact)
    manifest = read_manifest(path)
    if missing := sorted({"name", "target"} - manifest.keys()):
        raise ArtifactError(f"the manifest of {path} has no {missing[0]}; compile the model again")
    expectation = _expectation(arguments, path, str(manifest["target"]))
    found = check_artifact(
        path, runner=arguments.runner, expectation=expectation, tokens=arguments.tokens,
        tolerance=arguments.tolerance, threads=arguments.threads,
    )  # fmt: skip
    holds = all(each.holds for each in found)
    if arguments.json:
        print_json({
            "artifact": str(path), "target": manifest["target"], "holds": holds,
            "sequences": [{**asdict(each), "holds": each.holds} for each in found],
        })  # fmt: skip
        return 0 if holds else 1
    print(f"{manifest['name']} for {manifest['target']}" + (f", under {arguments.runner}" if arguments.runner else ""))
    for each in found:
        print(f"  {each.name:7} {each.positions:4} positions   error {each.error:.1e} of {each.tolerance:.1e}   "
              f"likeliest token {each.same}/{each.positions}   {'ok' if each.holds else 'WRONG'}")  # fmt: skip
    print("the program agrees with the interpreter" if holds else "the program does not agree with the interpreter")
    return 0 if holds else 1


def _expectation(arguments: argparse.Namespace, path: Path, target: str) -> Expectation | None:
    """Computed from the model with the recipe, as a compile would rewrite it; None where no model is named."""
    if arguments.model is None:
        given = {"--recipe": arguments.recipe, "--pass": arguments.passes, "--text": arguments.text,
                 "--text-tokens": arguments.text_tokens}  # fmt: skip
        if unused := [option for option, value in given.items() if value is not None]:
            raise InputError(f"{unused[0]} belongs to --model, which is not given: the artifact's own numbers are used")
        return None
    from slmopt.api import TEXT_TOKENS, prepare, resolve_recipe
    from slmopt.artifact_check import expectation_of
    from slmopt.calibrate import read_text
    from slmopt.plugins.discovery import registry
    from slmopt.target import parse_target

    parsed = parse_target(target)
    module = prepare(
        arguments.model, parsed, registry().find_backend(parsed.backend), resolve_recipe(recipe_of(arguments, "w8")),
        text=None if arguments.text is None else read_text(arguments.text),
        text_tokens=arguments.text_tokens or TEXT_TOKENS, verify=False,
    )  # fmt: skip
    return expectation_of(path, module, arguments.tokens or _TOKENS)
