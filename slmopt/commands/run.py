"""Generate text with a compiled model: the continuation of a prompt, as it is made.

The prompt comes from --prompt, or from standard input. Sampling is greedy unless --temperature is above 0.
"""

from __future__ import annotations

import argparse
import sys

from slmopt.commands.console import add_json, print_json

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("artifact", help="directory that `slmopt compile` wrote")
    parser.add_argument("-p", "--prompt", help="text to continue; default: standard input")
    parser.add_argument("-n", "--max-tokens", type=int, default=256, metavar="N", help="default: 256")
    parser.add_argument("--temperature", type=float, default=0.0, metavar="T", help="0: the likeliest token (default)")
    parser.add_argument("--top-k", type=int, metavar="K", help="sample from the K likeliest tokens")
    parser.add_argument("--top-p", type=float, metavar="P", help="sample from the likeliest tokens that make up P")
    parser.add_argument("--min-p", type=float, metavar="P", help="... at least P times as likely as the first")
    parser.add_argument("--repetition-penalty", type=float, metavar="R", help="above 1: avoid tokens already there")
    parser.add_argument("--seed", type=int, help="of the sampling; the same seed gives the same text")
    parser.add_argument("--stop", action="append", default=[], metavar="TEXT", help="end before this text; repeatable")
    parser.add_argument("--echo", action="store_true", help="print the prompt first")
    parser.add_argument("--threads", type=int, default=0, metavar="N", help="default: one for each usable core")
    add_json(parser)


def run(arguments: argparse.Namespace) -> int:
    from slmopt.runtime import SamplingOptions, open

    prompt = arguments.prompt if arguments.prompt is not None else sys.stdin.read()
    names = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty", "seed")
    given = {name: value for name in names if (value := getattr(arguments, name)) is not None}
    options = SamplingOptions(**given)  # type: ignore[typeddict-item]
    with open(arguments.artifact, arguments.threads) as model:
        pieces = model.stream(prompt, arguments.max_tokens, stop=arguments.stop, **options)
        if arguments.json:
            print_json({"prompt": prompt, "text": "".join(pieces), "model": model.name})
            return 0
        if arguments.echo:
            print(prompt, end="", flush=True)
        for piece in pieces:
            print(piece, end="", flush=True)
        print()
    return 0
