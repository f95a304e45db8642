"""@forward stage by stage."""

from __future__ import annotations

import pytest
import torch

from slmopt.errors import UnsupportedError
from slmopt.interpreter import run
from slmopt.ir.graph import Module, Op, Value
from slmopt.staged import StagedRun
from tests.passes.toys import toy
from tests.toy_model import toy_model

DOCUMENTS = ((1, 5, 7, 2, 9), (1, 3), (4, 4, 4, 8))


def observed(module: Module, name: str) -> list[torch.Tensor]:
    """A value of each document, as one run gives it."""
    found: list[torch.Tensor] = []

    def observe(value: Value, tensor: torch.Tensor) -> None:
        if value.name == name:
            found.append(tensor)

    for document in DOCUMENTS:
        run(module, "forward", [torch.tensor([document])], observe=observe)
    return found


def reader(module: Module, name: str) -> Op:
    """The first op that reads a value."""
    return module.graph().value(name).users[0]


def test_values_are_those_of_one_run() -> None:
    module = toy_model()
    stages = StagedRun(module, DOCUMENTS)
    for name in ("ids", "n", "o"):
        stages.advance(reader(module, name))
        expected = [torch.tensor([d]) for d in DOCUMENTS] if name == "ids" else observed(module, name)
        found = list(stages.values(module.graph().value(name)))
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=0)


def test_what_has_run_may_be_changed_for_what_follows() -> None:
    module = toy_model()
    before = module.copy()
    stages = StagedRun(module, DOCUMENTS)
    norm = reader(module, "x")
    stages.advance(norm)
    weight = norm.operands[1]
    changed = module.derive(weight, "times 2", lambda w: w * 2)  # type: ignore[arg-type]
    norm.set_operand(1, changed)
    stages.advance(reader(module, "n"))
    for one, other in zip(stages.values(module.graph().value("n")), observed(before, "n"), strict=True):
        torch.testing.assert_close(one, 2 * other)


def test_only_what_is_still_read_is_kept() -> None:
    module = toy_model()
    stages = StagedRun(module, DOCUMENTS)
    stages.advance(reader(module, "o"))
    stages.values(module.graph().value("x"))
    assert {len(values) for values in stages._values} == {2}  # the residual stream, and what comes out of attention


def test_a_model_that_reads_no_ids_is_refused() -> None:
    with pytest.raises(UnsupportedError, match="@toy reads no text"):
        StagedRun(toy("%y = relu(%x) : f32[b, s, 64]\nreturn %y"), DOCUMENTS)
