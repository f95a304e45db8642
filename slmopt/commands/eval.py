"""Measure a model on a text: perplexity, or the metrics that --metric names.

MODEL is an artifact that `slmopt compile` wrote, or a model directory, which the interpreter runs. Documents are
separated by <|endoftext|>; each begins with an empty context and is cut at the context's end. With --at-most, a
perplexity above the limit is a failed check (exit code 1).
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from typing import Any

from slmopt.commands.console import add_json, print_json

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("artifact", metavar="MODEL", help="directory of an artifact or of a model")
    parser.add_argument("--text", required=True, metavar="FILE", help="UTF-8 text")
    parser.add_argument("--metric", action="append", metavar="NAME",
                        help="measure this (may be repeated): perplexity, bits-per-byte, accuracy, or a plugin's; "
                        "`slmopt plugins` lists them")  # fmt: skip
    parser.add_argument("--separator", default="<|endoftext|>", metavar="TEXT", help="between documents")
    parser.add_argument("--at-most", type=float, metavar="PERPLEXITY", help="fail where the perplexity is above")
    parser.add_argument("--threads", type=int, default=0, metavar="N", help="default: one for each usable core")
    add_json(parser)


def run(arguments: argparse.Namespace) -> int:
    from slmopt.calibrate import read_text
    from slmopt.errors import InputError

    if arguments.at_most is not None and arguments.metric and "perplexity" not in arguments.metric:
        raise InputError("--at-most limits the perplexity, which is not measured: add --metric perplexity")
    text = read_text(arguments.text)
    perplexity = _measure(arguments, text) if arguments.metric else _perplexity(arguments, text)
    if arguments.at_most is not None and not perplexity <= arguments.at_most:
        print(f"error: perplexity {perplexity:.4f} is above {arguments.at_most:g}", file=sys.stderr)
        return 1
    return 0


def _perplexity(arguments: argparse.Namespace, text: str) -> float:
    from slmopt.evaluate import open_subject
    from slmopt.metrics import read_documents
    from slmopt.metrics.likelihood import bits_per_byte_of, perplexity_of, total_nats

    with open_subject(arguments.artifact, arguments.threads) as subject:
        start = time.perf_counter()
        documents = read_documents(subject, text, arguments.separator)
        nats = total_nats(subject, documents)
        seconds = time.perf_counter() - start
    tokens = sum(len(document.ids) - 1 for document in documents)
    found, bits = perplexity_of(nats, tokens), bits_per_byte_of(nats, documents)
    if arguments.json:
        print_json({"perplexity": found, "nats": nats, "tokens": tokens, "bits_per_byte": bits, "seconds": seconds})
    else:
        print(f"perplexity {found:.4f}, {bits:.3f} bits per byte; {tokens} tokens in {seconds:.1f} s")
    return found


def _measure(arguments: argparse.Namespace, text: str) -> float:
    """Measure what --metric names, print it, and return the perplexity if that is among it."""
    from slmopt.evaluate import open_subject
    from slmopt.metrics import read_documents
    from slmopt.plugins.discovery import registry

    known = registry()
    metrics = [known.find_metric(name) for name in dict.fromkeys(arguments.metric)]
    rows: list[dict[str, Any]] = []
    with open_subject(arguments.artifact, arguments.threads) as subject:
        documents = read_documents(subject, text, arguments.separator)
        for metric in metrics:
            start = time.perf_counter()
            value = known.measure(metric, subject, documents)
            rows.append({
                "name": metric.name, "value": value, "unit": metric.unit, "lower_is_better": metric.lower_is_better,
                "owner": known.metrics[metric.name].owner, "seconds": time.perf_counter() - start,
            })  # fmt: skip
    if arguments.json:
        print_json({"metrics": rows, "tokens": sum(len(document.ids) - 1 for document in documents)})
    else:
        for row in rows:
            print(f"{row['name']} {row['value']:.4f} {row['unit']}".rstrip())
    return next((float(row["value"]) for row in rows if row["name"] == "perplexity"), math.nan)
