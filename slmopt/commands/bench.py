"""Measure the speed of a compiled model: tokens per second of reading a prompt (prefill) and of writing (decode).

Each figure is the median of --repeat runs after one that is not counted, at batch size 1.
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import TYPE_CHECKING, Any

from slmopt.commands.console import add_json, open_progress, positive, print_json
from slmopt.errors import InputError

if TYPE_CHECKING:
    from slmopt.runtime import Session

__all__ = ["add_arguments", "measure_speed", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("artifact", help="directory that `slmopt compile` wrote")
    parser.add_argument("--prompt-tokens", type=positive, default=128, metavar="N", help="tokens read; default: 128")
    parser.add_argument("--tokens", type=positive, default=64, metavar="N", help="tokens written; default: 64")
    parser.add_argument("--repeat", type=positive, default=5, metavar="N", help="runs; default: 5")
    parser.add_argument("--threads", type=int, default=0, metavar="N", help="default: one for each usable core")
    add_json(parser)


def run(arguments: argparse.Namespace) -> int:
    from slmopt.runtime import open

    with (
        open(arguments.artifact, arguments.threads) as model,
        model.session() as session,
        open_progress(arguments) as bar,
    ):
        needed = arguments.prompt_tokens + arguments.tokens
        if needed > model.context:
            raise InputError(f"{needed} tokens do not fit the model's context of {model.context}: ask for fewer")
        ids = [(7919 * index + 1) % model.vocab for index in range(arguments.prompt_tokens)]
        rows = []
        for index in range(arguments.repeat + 1):
            rows.append(measure_speed(session, ids, arguments.tokens))
            bar.step("bench", index + 1, arguments.repeat + 1)
        found: dict[str, Any] = {
            "name": model.name, "target": model.manifest.get("target"), "threads": session.threads,
            "prefill_tokens_per_second": statistics.median(prefill for prefill, _ in rows[1:]),
            "decode_tokens_per_second": statistics.median(decode for _, decode in rows[1:]),
            "prompt_tokens": arguments.prompt_tokens, "tokens": arguments.tokens, "repeat": arguments.repeat,
        }  # fmt: skip
    if arguments.json:
        print_json(found)
    else:
        print(f"{found['name']} on {found['target']}, {found['threads']} threads, median of {arguments.repeat} runs")
        print(f"prefill {found['prefill_tokens_per_second']:10.1f} tokens/s ({arguments.prompt_tokens} tokens)")
        print(f"decode  {found['decode_tokens_per_second']:10.1f} tokens/s ({arguments.tokens} tokens)")
    return 0


def measure_speed(session: Session, ids: list[int], tokens: int) -> tuple[float, float]:
    """Tokens per second of prefilling `ids`, and of decoding `tokens` more by greedy choice."""
    session.reset()
    start = time.perf_counter()
    session.prefill(ids)
    middle = time.perf_counter()
    for _ in range(tokens):
        session.decode(session.sample())
    return len(ids) / (middle - start), tokens / (time.perf_counter() - middle)
