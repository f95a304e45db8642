"""Rounding a weight column by column: what GPTQ does to one matrix."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from slmopt.errors import InputError
from slmopt.ir.types import QuantizedType
from slmopt.passes.quantize import feedback
from slmopt.passes.quantize.feedback import round_with_feedback
from slmopt.passes.quantize.rounding import round_to_nearest


def problem(rows: int, columns: int, seed: int, correlation: float = 0.9) -> tuple[torch.Tensor, torch.Tensor]:
    """A weight [rows, columns] and the second moments of inputs, neighbours among which are correlated."""
    random = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, columns, generator=random)
    x = torch.randn(4 * columns + 8, columns, generator=random, dtype=torch.float64)
    for column in range(1, columns):
        x[:, column] = correlation * x[:, column - 1] + (1 - correlation**2) ** 0.5 * x[:, column]
    x *= torch.rand(columns, generator=random, dtype=torch.float64) + 0.2
    return weight, x.T @ x


def loss(weight: torch.Tensor, found: torch.Tensor, moments: torch.Tensor) -> float:
    """The squared error of the products, over all inputs."""
    error = (weight - found).double()
    return float(((error @ moments) * error).sum())


def plain(weight: torch.Tensor, moments: torch.Tensor, type: QuantizedType, damping: float) -> torch.Tensor:
    """What the paper says, in the words of its first sections: after each column the best change of those left.

    Equation 2 and the update of the inverse by Gaussian elimination, equation 3, with no factorization and no blocks.
    """
    columns = weight.shape[1]
    damped = moments + damping * moments.diagonal().mean() * torch.eye(columns, dtype=torch.float64)
    inverse, left, found = torch.linalg.inv(damped), weight.double().clone(), torch.empty_like(weight)
    group = type.group or columns
    for column in range(columns):
        if column % group == 0:
            slab = left if type.group is None else left[:, column : column + group]
            grid = round_to_nearest(slab.float(), QuantizedType(type.bits, None, type.symmetric))
            scale = grid.scales[:, 0].double()
            least = torch.zeros_like(scale) if grid.minimum is None else grid.minimum[:, 0].double()
        low, high = (-(2 ** (type.bits - 1)), 2 ** (type.bits - 1) - 1) if type.symmetric else (0, 2**type.bits - 1)
        code = ((left[:, column] - least) / scale).round().clamp(low, high)
        found[:, column] = code * scale + least
        error = (left[:, column] - (code * scale + least)) / inverse[column, column]
        left = left - torch.outer(error, inverse[column])
        inverse = inverse - torch.outer(inverse[:, column], inverse[column]) / inverse[column, column]
    return found


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize(("rows", "columns", "group"), [(5, 64, 32), (3, 45, 32), (2, 300, 96), (4, 40, None)])
def test_it_is_what_the_paper_says(rows: int, columns: int, group: int | None, symmetric: bool) -> None:
    weight, moments = problem(rows, columns, seed=columns)
    type = QuantizedType(4, group, symmetric)
    found = round_with_feedback(weight, moments, type)
    torch.testing.assert_close(found.dequantize(), plain(weight, moments, type, 0.01), rtol=1e-5, atol=1e-5)


@settings(max_examples=25, deadline=None)
@given(
    rows=st.integers(1, 9), columns=st.integers(1, 140), bits=st.sampled_from([2, 3, 4, 8]), symmetric=st.booleans(),
    group=st.sampled_from([None, 32, 64]), ordered=st.booleans(), search=st.booleans(), seed=st.integers(0, 99),
)  # fmt: skip
def test_codes_are_in_range_and_lose_less_than_the_nearest(
    rows: int, columns: int, bits: int, symmetric: bool, group: int | None, ordered: bool, search: bool, seed: int
) -> None:
    weight, moments = problem(rows, columns, seed)
    type = QuantizedType(bits, group, symmetric)
    found = round_with_feedback(weight, moments, type, by_activity=ordered, search=search)
    low, high = (-(2 ** (bits - 1)) + (bits == 8), 2 ** (bits - 1) - 1) if symmetric else (0, 2**bits - 1)
    assert low <= int(found.codes.min()) <= int(found.codes.max()) <= high
    assert found.codes.shape == weight.shape
    assert found.scales.shape == (rows, type.groups(columns))
    assert (found.minimum is None) == symmetric
    again = round_with_feedback(weight, moments, type, by_activity=ordered, search=search)
    assert torch.equal(found.codes, again.codes)
    if rows * columns > 300:  # of few numbers chance decides
        nearest = round_to_nearest(weight, type, search).dequantize()
        assert loss(weight, found.dequantize(), moments) < loss(weight, nearest, moments)


@pytest.mark.parametrize("ordered", [False, True])
def test_correlated_inputs_lose_half_or_less(ordered: bool) -> None:
    weight, moments = problem(24, 128, seed=1)
    type = QuantizedType(4, 32, symmetric=False)
    found = round_with_feedback(weight, moments, type, by_activity=ordered)
    nearest = round_to_nearest(weight, type)
    assert loss(weight, found.dequantize(), moments) < 0.5 * loss(weight, nearest.dequantize(), moments)


def test_without_correlation_it_is_the_nearest() -> None:
    weight, _ = problem(6, 96, seed=2)
    type = QuantizedType(4, 32)
    for moments in (torch.eye(96, dtype=torch.float64), torch.zeros(96, 96, dtype=torch.float64)):
        found, nearest = round_with_feedback(weight, moments, type), round_to_nearest(weight, type)
        assert torch.equal(found.codes, nearest.codes)
        assert torch.equal(found.scales, nearest.scales)


def test_inputs_without_a_say() -> None:
    """Inputs that are always zero, or always the same as others, leave a matrix that has no inverse."""
    weight, moments = problem(6, 64, seed=3)
    moments[10] = moments[:, 10] = 0
    moments[20], moments[:, 20] = moments[21], moments[:, 21]
    moments[20, 20] = moments[21, 21]
    found = round_with_feedback(weight, moments, QuantizedType(4, 32), damping=0.0)
    assert torch.isfinite(found.dequantize()).all()
    step = found.scales.float().abs()[:, 0]
    assert ((weight - found.dequantize())[:, 10].abs() <= 1.01 * step).all()


def test_slabs_of_rows_make_no_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    weight, moments = problem(7, 64, seed=4)
    type = QuantizedType(4, 32, symmetric=False)
    whole = round_with_feedback(weight, moments, type)
    monkeypatch.setattr(feedback, "_SLAB", 2 * 64)
    parts = round_with_feedback(weight, moments, type)
    assert torch.equal(whole.codes, parts.codes)
    torch.testing.assert_close(whole.dequantize(), parts.dequantize(), rtol=0, atol=0)


def test_what_is_not_finite_is_refused() -> None:
    weight, moments = problem(3, 32, seed=5)
    with pytest.raises(InputError, match="not finite on the calibration text"):
        round_with_feedback(weight, moments * float("inf"), QuantizedType(4, 32))
    weight[1, 1] = float("nan")
    with pytest.raises(InputError, match="NaN"):
        round_with_feedback(weight, moments, QuantizedType(4, 32))
