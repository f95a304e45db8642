"""Rounding weights to codes."""

from __future__ import annotations

import tracemalloc
from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from slmopt.ir.types import QuantizedType
from slmopt.passes.quantize import rounding
from slmopt.passes.quantize.rounding import pack_codes, round_to_nearest, unpack_codes

TYPES = st.builds(QuantizedType, st.sampled_from([4, 8]), st.sampled_from([None, 32, 64]), st.booleans())


@st.composite
def matrices(draw: st.DrawFn) -> torch.Tensor:
    rows, columns = draw(st.integers(1, 9)), draw(st.integers(1, 100))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**20)))
    weight = torch.randn(rows, columns, generator=generator)
    weight *= 10.0 ** draw(st.integers(-3, 3))
    weight += draw(st.sampled_from([0.0, 0.5, -3.0])) * weight.abs().max()
    return weight.where(
        torch.rand(rows, columns, generator=generator) > draw(st.sampled_from([0.0, 0.9])), torch.tensor(0.0)
    )


def scale_of_each(tensor: torch.Tensor, columns: int, group: int | None) -> torch.Tensor:
    return tensor.float().repeat_interleave(group or columns, -1)[:, :columns]


@given(matrices(), TYPES)
def test_codes_are_in_range_and_by_range_every_weight_is_within_half_a_step(
    weight: torch.Tensor, type: QuantizedType
) -> None:
    found = round_to_nearest(weight, type, search=False)
    low, high = (-(2 ** (type.bits - 1)), 2 ** (type.bits - 1) - 1) if type.symmetric else (0, 2**type.bits - 1)
    if type.symmetric and type.bits == 8:
        low = -127
    assert found.codes.shape == weight.shape
    assert low <= found.codes.min()
    assert found.codes.max() <= high
    step = scale_of_each(found.scales, weight.shape[1], type.group).abs()
    # Symmetric 4 bits put the largest element at -8: one of the other sign and like magnitude is clipped from 8 to 7.
    # Float16 scales and minima are off by one part in 2048, subnormal ones by 2^-25 a step.
    bound = step * (1.0 if type.symmetric and type.bits == 4 else 0.5)
    slack = weight.abs().max() * 2**-10 + 2.0**-25 * 256
    assert ((found.dequantize() - weight).abs() <= bound * 1.01 + slack).all()


@given(matrices(), TYPES)
def test_search_is_never_worse_than_the_range_by_more_than_the_grid(weight: torch.Tensor, type: QuantizedType) -> None:
    by_range = (round_to_nearest(weight, type, search=False).dequantize() - weight).square().sum()
    searched = (round_to_nearest(weight, type).dequantize() - weight).square().sum()
    # For 8 bits the grid of candidates need not contain 127 itself; a neighbour is within 0.5 %.
    assert searched <= by_range * (1.02 if type.bits == 8 else 1.0001) + 1e-12


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("symmetric", [True, False])
def test_search_lowers_the_error_of_gaussian_weights(bits: int, symmetric: bool) -> None:
    weight = torch.randn(64, 256, generator=torch.Generator().manual_seed(0))
    type = QuantizedType(bits, 32, symmetric)
    by_range = (round_to_nearest(weight, type, search=False).dequantize() - weight).square().mean()
    searched = (round_to_nearest(weight, type).dequantize() - weight).square().mean()
    assert searched < by_range


@given(matrices(), TYPES, st.integers(1, 300))
def test_slabs_do_not_change_the_codes(weight: torch.Tensor, type: QuantizedType, slab: int) -> None:
    whole = round_to_nearest(weight, type)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rounding, "_SLAB", slab)
        parts = round_to_nearest(weight, type)
    assert torch.equal(whole.codes, parts.codes)
    assert torch.equal(whole.scales, parts.scales)
    assert (whole.minimum is None and parts.minimum is None) or (
        whole.minimum is not None and parts.minimum is not None and torch.equal(whole.minimum, parts.minimum)
    )


@given(matrices(), TYPES)
@settings(max_examples=50)
def test_packed_codes_unpack(weight: torch.Tensor, type: QuantizedType) -> None:
    found = round_to_nearest(weight, type)
    packed = pack_codes(found)
    assert packed.codes.nbytes == (-(-weight.shape[1] * type.bits // 8)) * weight.shape[0]
    assert torch.equal(unpack_codes(packed, weight.shape[1]).codes, found.codes)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_weights_round_as_their_float32_values(dtype: torch.dtype) -> None:
    weight = torch.randn(5, 70, generator=torch.Generator().manual_seed(1)).to(dtype)
    found, expected = (round_to_nearest(w, QuantizedType(4, 32)) for w in (weight, weight.float()))
    assert torch.equal(found.codes, expected.codes)
    assert torch.equal(found.scales, expected.scales)


def test_zeros_and_numbers_beyond_float16_stay_finite() -> None:
    weight = torch.zeros(3, 64)
    weight[1] = 1e9
    weight[2, 0] = 1e-12
    for type in (QuantizedType(4, 32), QuantizedType(8, 32), QuantizedType(4, None, False)):
        values = round_to_nearest(weight, type).dequantize()
        assert values.isfinite().all()
        assert (values[0] == 0).all()


def test_working_memory_is_a_few_slabs() -> None:
    weight = torch.randn(4096, 1024)
    round_to_nearest(weight[:64], QuantizedType(4, 32))  # imports are not counted
    tracemalloc.start()
    try:
        round_to_nearest(weight, QuantizedType(4, 32))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < weight.nbytes / 4


@given(matrices(), TYPES, st.booleans())
def test_the_c_routine_gives_what_numpy_gives_to_the_last_bit(
    weight: torch.Tensor, type: QuantizedType, search: bool
) -> None:
    found = round_to_nearest(weight, type, search)
    with mock.patch.object(rounding, "_native", return_value=None):
        expected = round_to_nearest(weight, type, search)
    assert rounding._native() is not None
    assert torch.equal(found.codes, expected.codes) and torch.equal(found.scales, expected.scales)
    if expected.minimum is not None:
        assert found.minimum is not None and torch.equal(found.minimum, expected.minimum)
