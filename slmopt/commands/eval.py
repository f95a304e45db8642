"""Measure the perplexity of a compiled model on a text.

Documents are separated by <|endoftext|>; each begins with an empty context and is cut at the context's end.
With --at-most, a perplexity above the limit is a failed check (exit code 1).
"""

from __future__ import annotations

import argparse
import math
import sys
import time

from slmopt.commands.console import add_json, print_json

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("artifact", help="directory that `slmopt compile` wrote")
    parser.add_argument("--text", required=True, metavar="FILE", help="UTF-8 text")
    parser.add_argument("--separator", default="<|endoftext|>", metavar="TEXT", help="between documents")
    parser.add_argument("--at-most", type=float, metavar="PERPLEXITY", help="fail where the perplexity is above")
    parser.add_argument("--threads", type=int, default=0, metavar="N", help="default: one for each usable core")
    add_json(parser)


def run(arguments: argparse.Namespace) -> int:
    from slmopt.calibrate import read_text
    from slmopt.runtime import open

    text = read_text(arguments.text)
    with open(arguments.artifact, arguments.threads) as model:
        start = time.perf_counter()
        found = model.perplexity(text, arguments.separator)
        seconds = time.perf_counter() - start
    bits = found.nats / math.log(2) / len(text.encode())
    if arguments.json:
        print_json({
            "perplexity": found.perplexity, "nats": found.nats, "tokens": found.tokens, "bits_per_byte": bits,
            "seconds": seconds,
        })  # fmt: skip
    else:
        print(f"perplexity {found.perplexity:.4f}, {bits:.3f} bits per byte; {found.tokens} tokens in {seconds:.1f} s")
    if arguments.at_most is not None and not found.perplexity <= arguments.at_most:
        print(f"error: perplexity {found.perplexity:.4f} is above {arguments.at_most:g}", file=sys.stderr)
        return 1
    return 0
