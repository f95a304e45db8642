"""Proves an op's `couple` rule: cutting a unit is leaving out what it adds, and changes nothing else."""

from __future__ import annotations

from collections.abc import Sequence

from slmopt.errors import IRError
from slmopt.ir.coupling import Coupling, Group
from slmopt.ir.cutting import cut_units
from slmopt.ir.graph import Module, Weight

__all__ = ["check_coupling"]

_POSITIONS = 7
_TOLERANCE = 1e-9  # relative to the largest number, in float64: the same sums in another order
_TEXT = """
module @op {{
  graph @forward(%ids: i64[b, s]) {{
    %embedded = embedding(%ids, weight @embedded : f32[{width}, {width}]) : f32[b, s, {width}]
    %x = linear(%embedded, weight @before : f32[{width}, {width}]) : f32[b, s, {width}]
    {lines}
    %after = linear(%{last}, weight @after : f32[{width}, {width}]) : f32[b, s, {width}]
    return %after
  }}
}}
"""


def check_coupling(lines: Sequence[str], last: str, width: int) -> None:
    """AssertionError where cutting a position of the last axis of `%last` changes more than what is read of it.

    `lines` of IR text use ops on `%x: f32[b, s, width]`, which a linear makes, and make `%last` of the same type, which
    a linear reads. Nothing is checked where that axis cannot be cut.
    """
    from slmopt.ir.text import parse_module
    from slmopt.stand_in import add_stand_ins

    module = parse_module(_TEXT.format(width=width, lines="\n    ".join(lines), last=last))
    add_stand_ins(module, drawn=True)
    found = _group(module, last)
    if found.reason is not None or found.units < 2:
        return
    for unit in sorted({0, found.units // 2, found.units - 1}):
        _check_unit(module, last, found, unit, width)


def _group(module: Module, last: str) -> Group:
    return Coupling(module).group(module.graph().value(last), -1)


def _check_unit(module: Module, last: str, found: Group, unit: int, width: int) -> None:
    import torch

    from slmopt.interpreter import run
    from slmopt.ir.verify import verify

    ids = torch.arange(_POSITIONS)[None] * 5 % width
    read = torch.tensor(found.of(module.graph().value(last), -1))
    left_out, cut = module.copy(), module.copy()
    reader = left_out.graph().value("after").op
    if reader is None or not isinstance(reader.operands[1], Weight):
        raise TypeError("%after is read from a weight")
    weight = left_out.derive(reader.operands[1], "without a unit", lambda numbers: numbers * (read != unit))
    reader.set_operand(1, weight)
    words = f"cutting unit {unit} of {found.units} of axis -1 of %{last}"
    try:
        cut_units(cut, _group(cut, last), frozenset({unit}))
        verify(cut, weights=True)
        result = run(cut, "forward", [ids], wide=True)[0]
    except (IRError, RuntimeError) as error:
        raise AssertionError(f"{words}: `couple` does not link all that must be cut together: {error}") from error
    expected = run(left_out, "forward", [ids], wide=True)[0]
    wrong = float((result - expected).abs().max() / expected.abs().max().clamp_min(1e-30))
    if not wrong <= _TOLERANCE:
        raise AssertionError(f"{words} changes what other units give, by {wrong:.1e} of the largest number: `couple` "
                             "links positions that do not belong together, or should block the axis")  # fmt: skip
