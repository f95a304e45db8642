"""The last check, on few modules as it takes seconds: what a pass leaves compiles for the CPU and gives its logits."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from slmopt.errors import SlmError
from slmopt.ir.graph import Module
from slmopt.ir.text import parse_module
from slmopt.pipeline import Context, Pass, Pipeline
from slmopt.plugins.discovery import registry
from slmopt.stand_in import add_stand_ins
from slmopt.testing.failures import Failure
from slmopt.testing.numbers import rounds
from slmopt.testing.trial import BrokenError, RefusalError, run_pass

if TYPE_CHECKING:
    import numpy as np

__all__ = ["Candidates", "check_compiled"]

_TARGET = "cpu:context=32,chunk=8"
_LENGTH = 9
_PARTS = (_LENGTH - 3, 1, 2)
_TOLERANCE = 1e-3  # of the largest logit
_ROUNDED = 0.1  # where activations are rounded to 8 bits, a number on the edge between two codes may fall either way
_KEPT = 8


class Candidates:
    """The language models of most kinds of ops among those a pass was tried on."""

    def __init__(self) -> None:
        self._kept: list[tuple[int, str, Pass]] = []

    def offer(self, item: Pass, module: Module) -> None:
        """Keep a module that may be compiled, if it has more kinds of ops than others."""
        if "vocab" not in module.metadata or len(module.graph().inputs) != 1:
            return
        kinds = len({op.name for op in module.graph().walk()})
        self._kept.append((kinds, str(module), item))
        self._kept.sort(key=lambda kept: -kept[0])
        del self._kept[_KEPT:]

    def __iter__(self) -> Iterator[tuple[Pass, Module]]:
        for _, text, item in self._kept:
            module = parse_module(text)
            add_stand_ins(module, drawn=True)
            yield item, module


def check_compiled(candidates: Candidates, count: int) -> Failure | None:
    """Compile and run the results on up to `count` candidates, with plain weights; the first that is wrong."""
    done = 0
    for item, module in candidates:
        if done >= count:
            break
        after = module.copy()
        try:
            run_pass(item, after)
            detail = _problem(module, after)
        except RefusalError:
            continue
        except BrokenError as broken:
            return Failure(broken.check, str(broken), item, module)
        if detail == _NOWHERE:
            continue
        if detail:
            return Failure("compiled", detail, item, module)
        done += 1
    return None


_NOWHERE = "the module does not compile before the pass either"


def _problem(before: Module, after: Module) -> str:
    """What is wrong with the compiled result; "" where nothing is."""
    problems = _unsupported(after)
    if problems:
        return _NOWHERE if _unsupported(before) else f"the result does not compile any more: {'; '.join(problems)}"
    with tempfile.TemporaryDirectory(prefix="slmopt-check-") as directory:
        from slmopt.api import compile

        try:
            path = compile(after, _TARGET, Path(directory) / "model", verify=False)
        except SlmError as error:
            return f"compiling the result fails: {error}"
        return _compare(after, path)


def _unsupported(module: Module) -> list[str]:
    """What the CPU cannot do of a module, after the passes that its backend wants."""
    from slmopt.options import build_pass
    from slmopt.target import parse_target

    known, target, copied = registry(), parse_target(_TARGET), module.copy()
    backend = known.find_backend(target.backend)
    try:
        wanted = [build_pass(text, known.find_pass) for text in backend.pipeline(copied, target)]
        Pipeline(wanted, verify=False).run(copied, Context(rules=known.rules_for))
        return backend.supports(copied, target)
    except SlmError as error:
        return [str(error)]


def _compare(module: Module, path: Path) -> str:
    import numpy as np
    import torch

    from slmopt.interpreter import forward
    from slmopt.runtime import open as open_artifact

    vocabulary = int(module.metadata["vocab"])
    ids = [(5 * i * i + i) % vocabulary for i in range(_LENGTH)]
    with torch.no_grad():
        expected = forward(module, torch.tensor([ids]))[0].numpy()
    with open_artifact(path) as model, model.session(threads=1) as session:
        found, start = [], 0
        for length in _PARTS:
            found.append(session.logits(ids[start : start + length]))
            start += length
    error = _relative(np.concatenate(found), expected)
    allowed = _ROUNDED if rounds(module.graph()) else _TOLERANCE
    if np.median(error) <= _TOLERANCE and error.max() <= allowed:
        return ""
    return (f"compiled and run, its logits differ from the interpreter's by {error.max():.3g} of the largest; "
            f"{allowed:g} is allowed")  # fmt: skip


def _relative(found: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """The largest difference at each position, relative to the largest number."""
    import numpy as np

    scale = max(float(np.abs(expected).max()), 1e-30)
    difference: np.ndarray = np.nan_to_num(np.abs(found - expected), nan=np.inf).max(-1) / scale
    return difference

