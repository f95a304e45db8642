"""Passes that look at text, on small modules whose input is token ids."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from slmopt.calibrate import Calibration
from slmopt.interpreter import run
from slmopt.ir.graph import Module
from slmopt.ir.text import parse_module
from slmopt.ir.verify import verify
from slmopt.pipeline import Context, Pass
from tests.passes.toys import IDS, relative_error, toy

__all__ = ["IDS", "apply_on_text", "error_on_text", "small_text", "toy_model"]

_VOCABULARY = 29


def small_text(documents: int = 6, tokens: int = 20) -> Calibration:
    """Random documents."""
    ids = torch.randint(0, _VOCABULARY, (documents, tokens), generator=torch.Generator().manual_seed(5))
    return Calibration(tuple(map(tuple, ids.tolist())))


def toy_model(body: str, width: int, result: str = "y", weights: Mapping[str, torch.Tensor] | None = None) -> Module:
    """Layers %x -> %y between a table and a head, with drawn weights but for those given."""
    lines = (
        f"%x = embedding(%ids, weight @table : f32[{_VOCABULARY}, {width}]) : f32[b, s, {width}]", body,
        f"%logits = linear(%{result}, weight @head : f32[{_VOCABULARY}, {width}]) : f32[b, s, {_VOCABULARY}]",
        "return %logits",
    )  # fmt: skip
    return toy("\n".join(lines), 3, IDS, **(weights or {}))


def apply_on_text(module: Module, *passes: Pass, text: Calibration | None = None) -> tuple[Module, dict[str, int]]:
    """A copy of the module after the passes, and what the last one changed; it is in order, and its text parses."""
    copied, changes = module.copy(), {}
    for item in passes:
        changes = item.run(copied, Context(calibration=text or small_text()))
        verify(copied, weights=True)
    assert parse_module(str(copied)) == copied
    return copied, changes


def error_on_text(found: Module, expected: Module) -> float:
    """The largest difference of logits on the text, of the largest logit."""
    ids = torch.tensor(small_text().documents)
    with torch.no_grad():
        return relative_error(run(found, "forward", [ids])[0], run(expected, "forward", [ids])[0])
