"""`check_op` passes what is right, and says what is wrong with a reference, a step rule or a kernel."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from slmopt.backends.tvm.authoring import Lowering, Vectors, elementwise
from slmopt.errors import InputError, UnsupportedError
from slmopt.ir.graph import Op
from slmopt.ir.linking import AxisLinker, couple_elementwise
from slmopt.ir.ops import registry
from slmopt.ir.step import StepBuilder
from slmopt.testing.op_check import check_op
from tests.backends import acme
from tests.backends.native import ISAS

SQUASH, DECAYED_SUM, DECAYED_SUM_STEP, SHIFT = acme.SPECS
SQUASHED = "%y = squash(%x) {offset = 0.5} : f32[b, s, 32]"
SUMMED = "%y = decayed_sum(%x) {decay = 0.5} : f32[b, s, 32]"


def test_right_ops_pass_on_every_instruction_set() -> None:
    targets = ["cpu", "cpu:isa=scalar,chunk=4"]
    check_op(SQUASH, SQUASHED, lowerings={"tvm:squash": acme.lower_squash}, targets=targets)
    specs = [DECAYED_SUM, DECAYED_SUM_STEP]
    check_op(specs, SUMMED, lowerings={"tvm:decayed_sum_step": acme.lower_sum_step}, targets=targets)
    check_op(SHIFT, "%z = shift_tokens(%x) : f32[b, s, 33]\n%y = neg(%z) : f32[b, s, 33]", width=33)


def test_a_kernel_for_one_instruction_set() -> None:
    name = ISAS.names()[-1]
    check_op(SQUASH, SQUASHED, lowerings={f"tvm:squash@{name}": acme.lower_squash}, targets=[f"cpu:isa={name}"])


def test_the_op_is_known_while_it_is_checked_alone() -> None:
    check_op(SQUASH, SQUASHED, lowerings={"tvm:squash": acme.lower_squash})
    assert "squash" not in registry


def test_a_wrong_kernel_is_shown_where_it_is_wrong() -> None:
    @elementwise
    def lower_wrongly(vectors: Vectors, op: Op, x: Any) -> Any:
        return vectors.maximum(x, 0.0) * 2.0 + 0.5

    with pytest.raises(AssertionError, match=r"cpu, in parts of \(9,\) with 1 threads: \d+ of 288 numbers differ"):
        check_op(SQUASH, SQUASHED, lowerings={"tvm:squash": lower_wrongly})


def test_a_wrong_step_rule_is_told_from_a_wrong_kernel() -> None:
    def step(builder: StepBuilder, op: Op, operands: tuple[Any, ...]) -> tuple[Any, ...]:
        return operands  # what was before is forgotten

    with pytest.raises(AssertionError, match=r"@step of the interpreter, in parts of \(9,\)"):
        check_op(replace(SHIFT, step=step), "%y = shift_tokens(%x) : f32[b, s, 32]")


def test_nan_is_wrong() -> None:
    @elementwise
    def lower_to_nan(vectors: Vectors, op: Op, x: Any) -> Any:
        return vectors.sqrt(vectors.minimum(x, -1.0))

    with pytest.raises(AssertionError, match="288 of 288 numbers differ"):
        check_op(SQUASH, SQUASHED, lowerings={"tvm:squash": lower_to_nan})


def test_no_kernel_is_an_error_of_its_own() -> None:
    with pytest.raises(UnsupportedError, match="has no kernel for 'squash'"):
        check_op(SQUASH, SQUASHED)


def test_the_last_line_has_a_result() -> None:
    with pytest.raises(InputError, match="the last line must name its result"):
        check_op(SQUASH, "squash(%x)")


def test_a_lowering_that_raises_is_named() -> None:
    def lower_it(lowering: Lowering, op: Op) -> None:
        raise ZeroDivisionError("oh")

    with pytest.raises(InputError, match="offered by the lowering that is checked, raised ZeroDivisionError: oh"):
        check_op(SQUASH, SQUASHED, lowerings={"tvm:squash": lower_it})


def test_an_op_that_hides_that_it_mixes_is_found_out() -> None:
    with pytest.raises(AssertionError, match=r"@step of the interpreter, in parts of \(5, 1, 3\)"):
        check_op(replace(SHIFT, mixes=None), "%y = shift_tokens(%x) : f32[b, s, 32]")


def couple_wrongly(axes: AxisLinker, op: Op) -> None:
    """As if the last axis were reversed."""
    size = 32
    axes.link(op.operands[0], -1, axes.result, -1, (range(size), range(size)[::-1]))


def couple_too_little(axes: AxisLinker, op: Op) -> None:
    """Nothing is linked."""


@pytest.mark.parametrize(
    ("couple", "words"),
    [(couple_wrongly, "changes what other units give"), (couple_too_little, "does not link all that must be cut")],
)
def test_a_wrong_couple_rule_is_found_out(couple: Any, words: str) -> None:
    with pytest.raises(AssertionError, match=f"cutting unit 0 of 32 of axis -1 of %y.*{words}"):
        check_op(replace(SQUASH, couple=couple), SQUASHED, lowerings={"tvm:squash": acme.lower_squash})


def test_a_right_couple_rule_passes() -> None:
    check_op(replace(SQUASH, couple=couple_elementwise), SQUASHED, lowerings={"tvm:squash": acme.lower_squash})
