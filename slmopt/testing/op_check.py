"""Proves an op right on its own: its step rule, its kernels and what it couples against its reference."""

from __future__ import annotations

import itertools
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from slmopt.errors import InputError, UnsupportedError
from slmopt.ir.graph import Module
from slmopt.ir.spec import OpSpec
from slmopt.offers import Offer
from slmopt.testing.coupling_check import check_coupling

__all__ = ["check_op"]

_POSITIONS = 9
_PARTS = ((9,), (5, 1, 3), (1,) * 9)  # how the positions are given, all at once or a few at a time
_TEXT = """
module @op {{
  metadata {{"batch": "b", "context": 64, "sequence": "s", "vocab": {width}}}
  graph @forward(%ids: i64[b, s]) {{
    %x = embedding(%ids, weight @x : f32[{width}, {width}]) : f32[b, s, {width}]
    {lines}
    return %{last}
  }}
}}
"""


def check_op(
    spec: OpSpec | Sequence[OpSpec], text: str, *, width: int = 32, tolerance: float = 1e-5,
    lowerings: Mapping[str, Any] | None = None, targets: Sequence[str] = (),
) -> None:  # fmt: skip
    """AssertionError where an op computes something else step by step, compiled, or pruned, than its reference says.

    `text` has lines of IR text that use the op on `%x: f32[b, s, width]`, random numbers; the last line's result, of
    the same type, is what is compared: relative to its largest number, as a whole and in parts, with one thread and
    two, for each of `targets`, or the first target that this machine runs. Where the last axis of the result can be cut
    (`couple`), it is, too. Neither the op nor its lowerings need be offered by a plugin: `spec` is one OpSpec or
    several, `lowerings` maps names such as "tvm:OP" to lowerings. UnsupportedError where a target has no kernel.
    """
    from slmopt.ir.ops import registry as ops
    from slmopt.ir.text import parse_module
    from slmopt.plugins.discovery import registry
    from slmopt.stand_in import add_stand_ins

    lines = [line.strip() for line in text.strip().splitlines()]
    last = re.match(r"%([\w.]+) =", lines[-1])
    if last is None:
        raise InputError(f"the last line must name its result, as `%y = op(%x) : f32[b, s, {width}]`: {lines[-1]!r}")
    with ops.having([spec] if isinstance(spec, OpSpec) else spec, "the op that is checked"):
        module = parse_module(_TEXT.format(width=width, lines="\n    ".join(lines), last=last[1]))
        add_stand_ins(module, drawn=True)
        check_coupling(lines, last[1], width)
        for target in targets or (registry().default_target(),):
            _check_target(module, target, lowerings or {}, width, tolerance)


def _check_target(
    module: Module, name: str, lowerings: Mapping[str, Any], width: int, tolerance: float
) -> None:
    import torch

    from slmopt.interpreter import forward, step_through
    from slmopt.options import build_pass
    from slmopt.pipeline import Context
    from slmopt.plugins.discovery import registry
    from slmopt.target import parse_target

    known, target = copy(registry()), parse_target(name)
    given = {offered: _Given(offered, "", "the lowering that is checked", function=function, kind="lowering")
             for offered, function in lowerings.items()}  # fmt: skip
    known.offers = replace(known.offers, lowerings={**known.offers.lowerings, **given})
    backend = known.find_backend(target.backend)
    ids = [position * 7 % width for position in range(_POSITIONS)]
    expected = forward(module, torch.tensor([ids]))[0].numpy()
    for wanted in backend.pipeline(module, target):
        build_pass(wanted, known.find_pass).run(module, Context(target))
    for parts in _PARTS if "step" in module.graphs else ():
        found = step_through(module, torch.tensor([ids]), parts)[0].numpy()
        _agree(found, expected, tolerance, f"@step of the interpreter, in parts of {parts}")
    if problems := backend.supports(module, target):
        raise UnsupportedError(f"target {target}:\n  " + "\n  ".join(problems))
    with tempfile.TemporaryDirectory(prefix="slmopt-op-") as directory:
        path = backend.build(module, target, Path(directory) / "op", report=lambda what, done, total: None)
        for found, what in _run(path, ids):
            _agree(found, expected, tolerance, f"target {target}, {what}")


def _run(path: Path, ids: list[int]) -> Iterator[tuple[Any, str]]:
    """What the compiled op gives, in every way of asking."""
    import numpy as np

    import slmopt.runtime

    with slmopt.runtime.open(path) as model:
        for threads, parts in itertools.product((1, 2), _PARTS):
            with model.session(threads) as session:
                stops = list(itertools.accumulate(parts))
                found = [session.logits(ids[stop - length : stop]) for length, stop in zip(parts, stops, strict=True)]
            yield np.concatenate(found), f"in parts of {parts} with {threads} threads"
        with model.session(1) as session:
            session.prefill(ids)
            yield session.last_logits(), "where only the last position is asked for"


def _agree(found: Any, expected: Any, tolerance: float, what: str) -> None:
    import numpy as np

    expected = expected[-1] if found.ndim == 1 else expected
    scale = max(float(np.abs(expected).max()), 1e-30)
    wrong = ~(np.abs(found - expected) <= tolerance * scale)  # NaN is wrong
    if wrong.any():
        place = tuple(int(index) for index in np.argwhere(wrong)[0])
        raise AssertionError(f"{what}: {int(wrong.sum())} of {wrong.size} numbers differ; the first, at {list(place)}, "
                             f"is {found[place]}, and the reference says {expected[place]}")  # fmt: skip


@dataclass(frozen=True)
class _Given(Offer):
    """An offer of a function that is there already."""

    function: Any = None

    def load(self) -> Any:
        return self.function
