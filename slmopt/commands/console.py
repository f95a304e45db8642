"""What commands share: progress bars on a terminal, JSON for machines."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

__all__ = ["Progress", "add_json", "open_progress", "positive", "print_json"]


class Progress:
    """One progress bar at a time on standard error; `step` fits backends, `share` fits passes. Silent when piped."""

    def __init__(self, visible: bool) -> None:
        self._visible = visible
        self._bar: Any = None
        self._what = ""

    def step(self, what: str, done: int, total: int) -> None:
        """`done` of `total` units of `what` are done."""
        if not self._visible:
            return
        if what != self._what:
            self.close()
            from tqdm import tqdm

            look = "{desc} {percentage:3.0f}% {bar}"
            self._bar = tqdm(total=total, desc=what, file=sys.stderr, leave=False, bar_format=look)
            self._what = what
        self._bar.total = total
        self._bar.update(done - self._bar.n)

    def share(self, what: str, share: float) -> None:
        """The given share of the work named `what` is done."""
        self.step(what, round(100 * share), 100)

    def close(self) -> None:
        """Remove the bar."""
        if self._bar is not None:
            self._bar.close()
        self._bar, self._what = None, ""


@contextmanager
def open_progress(arguments: argparse.Namespace) -> Iterator[Progress]:
    """A progress display that is removed at the end; visible on a terminal only, and never with --json."""
    progress = Progress(sys.stderr.isatty() and not getattr(arguments, "json", False))
    try:
        yield progress
    finally:
        progress.close()


def print_json(value: Mapping[str, Any] | list[Any]) -> None:
    """One JSON document on standard output."""
    print(json.dumps(value, indent=2, ensure_ascii=False))


def add_json(parser: argparse.ArgumentParser) -> None:
    """The option --json."""
    parser.add_argument("--json", action="store_true", help="print JSON")


def positive(text: str) -> int:
    """A whole number above zero, for argparse."""
    number = int(text) if text.isdecimal() else 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number above 0, got {text!r}")
    return number
