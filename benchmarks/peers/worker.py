"""A program that is asked for its speed in JSON lines: one process for each model and number of threads."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

__all__ = ["Worker"]


class Worker:
    """A running program. `facts` is what it said when it was ready; OSError, naming it, where it ends before that."""

    def __init__(self, command: Sequence[str | Path]) -> None:
        self._command = " ".join(map(str, command))
        self._process = subprocess.Popen(
            [str(part) for part in command], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            text=True,
        )  # fmt: skip
        self.facts = self._answer()

    def _answer(self) -> Any:
        for line in self._process.stdout or ():
            if line.startswith("{"):
                return json.loads(line)
        raise OSError(f"{self._command} ended with status {self._process.wait()}")

    def measure(self, prompts: list[int], depths: list[int], decoded: int) -> dict[str, float]:
        """Tokens per second: `prefill N` of prompts, `decode at N` of `decoded` tokens at depths; and `peak bytes`."""
        if self._process.stdin is not None:
            print(json.dumps({"prompts": prompts, "depths": depths, "decoded": decoded}), file=self._process.stdin)
            self._process.stdin.flush()
        found: dict[str, float] = self._answer()
        return {**found, "peak bytes": self.peak_bytes}

    @property
    def peak_bytes(self) -> int:
        """The most memory the program has had resident."""
        for line in Path(f"/proc/{self._process.pid}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
        return 0

    def close(self) -> None:
        """End the program."""
        self._process.kill()
        self._process.wait()
