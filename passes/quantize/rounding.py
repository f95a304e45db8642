"""Round a weight matrix to integer codes with float16 scales, in slabs of rows, the scale searched per group."""

from __future__ import annotations

import ctypes
import functools
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slmopt.errors import InputError
from slmopt.ir.types import QuantizedType
from slmopt.ir.weights import QuantizedTensor
from slmopt.native import native_library

if TYPE_CHECKING:
    import torch

__all__ = ["pack_codes", "round_to_nearest", "unpack_codes"]

# Elements worked on at a time: a few such float32 slabs fit a core's second-level cache, and torch converts so few of
# them without waking its thread pool.
_SLAB = 1 << 15
_NATIVE_SLAB = 1 << 17  # the C routine walks over its own tiles

# A candidate c puts the element of largest magnitude at code c. Beyond the range it is clipped and the others get a
# finer grid. 4 bits: -8 is the only code of magnitude 8, so both signs are tried. 8 bits: a grid around 127.
_SYMMETRIC_4 = (*(-7.0 - 0.25 * i for i in range(11)), 7.0, 7.25, 7.5, 7.75, 8.0)
_SYMMETRIC_8 = tuple(121.0 + i * 2 / 3 for i in range(16))
# Asymmetric: the share of the range between the smallest and the largest element that the codes span.
_SHARES_4 = (1.0, 0.975, 0.95, 0.925, 0.9, 0.875, 0.85, 0.8)
_SHARES_8 = tuple(1.0 - 0.005 * i for i in range(8))


def round_to_nearest(weight: torch.Tensor, type: QuantizedType, search: bool = True) -> QuantizedTensor:
    """Codes [n, k] of a float matrix [n, k]: code = round(w / scale), or round((w - minimum) / scale).

    Codes are computed against the scale as stored, in float16. `search` tries several scales for each group and keeps
    the one of least squared error (the idea of `make_qx_quants` in llama.cpp); otherwise the range alone sets it.
    InputError where a number is not finite.

    Working memory is the codes and a few slabs of rows, whatever the size of the matrix. A C routine does the search
    where there is a C compiler, numpy the same to the last bit where there is none. Slabs go to threads of our own,
    which do not spin when the machine has other work.
    """
    import torch

    rows, columns = weight.shape
    group, groups = type.group or max(columns, 1), type.groups(columns)
    codes = torch.empty(rows, columns, dtype=torch.int8 if type.symmetric else torch.uint8)
    scales = torch.empty(rows, groups, dtype=torch.float16)
    minimum = None if type.symmetric else torch.empty(rows, groups, dtype=torch.float16)
    step = max(1, (_SLAB if _native() is None else _NATIVE_SLAB) // max(columns, 1))

    def fill(start: int) -> None:
        slab = weight[start : start + step].detach().float().numpy()
        found = _round_slab(slab, group, type, search)
        codes[start : start + step] = torch.from_numpy(found[0])
        scales[start : start + step] = torch.from_numpy(found[1])
        if minimum is not None:
            minimum[start : start + step] = torch.from_numpy(found[2])

    starts = range(0, rows, step)
    with ThreadPoolExecutor(min(len(starts), len(os.sched_getaffinity(0))) or 1) as threads:
        for _ in threads.map(fill, starts):
            pass
    return QuantizedTensor(type, codes, scales, minimum)


def _round_slab(slab: Any, group: int, type: QuantizedType, search: bool) -> tuple[Any, ...]:
    """Codes [n, k], float16 scales [n, groups] (and minimum) of a float32 slab [n, k]."""
    import numpy as np

    if not np.isfinite(slab).all():
        raise InputError(
            "a weight to quantize holds NaN or infinity: the checkpoint is damaged, or diverged in training"
        )
    rows, columns = slab.shape
    groups = type.groups(columns)
    missing = groups * group - columns
    if missing:  # the last group is filled up by what changes neither end of its range
        padding = ((0, 0), (0, missing))
        slab = np.pad(slab, padding) if type.symmetric else np.pad(slab, padding, mode="edge")
    x = np.ascontiguousarray(slab.reshape(-1, group).T)  # [group, count]: a group is a column, reductions are vectors
    candidates, minima, low, high = (_symmetric if type.symmetric else _asymmetric)(x, type.bits, search)
    routine = _native()
    if routine is not None:
        codes, *chosen = _search_native(routine, x, candidates, minima, low, high, group - missing, groups)
        codes = codes.view(np.int8 if type.symmetric else np.uint8)
    else:
        filler = (slice(group - missing, None), slice(groups - 1, None, groups))
        with np.errstate(divide="ignore"):  # a group of zeros has scale 0, its inverse is taken as 0
            codes, *chosen = _search(x, candidates, minima, low, high, filler)
    return (
        codes.reshape(rows, -1)[:, :columns].astype(np.int8 if type.symmetric else np.uint8),
        *(scale.astype(np.float16).reshape(rows, groups) for scale in chosen[: 1 if type.symmetric else 2]),
    )


def _stored(scale: Any) -> Any:
    """float32 numbers as float16 holds them; beyond its range, the largest it has."""
    import numpy as np

    return np.clip(scale, -65504, 65504).astype(np.float16).astype(np.float32)


def _search(
    x: Any, scales: Any, minima: Any | None, low: int, high: int, filler: tuple[slice, slice]
) -> tuple[Any, Any, Any]:
    """Codes [count, group], scale and minimum [count] of the candidate of least squared error.

    x [group, count], candidates [candidates, count]; the error of x[filler] does not count.
    """
    import numpy as np

    best = np.zeros_like(scales[0])
    lowest, smallest, work = np.zeros_like(best), np.full_like(best, np.inf), np.empty_like(x)
    for index, scale in enumerate(scales):
        minimum = 0 if minima is None else minima[index]
        shifted = x if minima is None else x - minimum
        _round(shifted, scale, low, high, work)
        work *= scale
        work -= shifted
        work[filler] = 0
        error = np.square(work, out=work).sum(0)
        better = error < smallest
        best, lowest = np.where(better, scale, best), np.where(better, minimum, lowest)
        smallest = np.where(better, error, smallest)
    return _round(x - lowest, best, low, high, work).T, best, lowest


def _round(x: Any, scale: Any, low: int, high: int, out: Any) -> Any:
    """round(x / scale) within low .. high, written to `out`."""
    import numpy as np

    np.multiply(x, np.where(scale == 0, np.float32(0), 1 / scale), out=out)
    np.rint(out, out=out)
    return np.minimum(np.maximum(out, np.float32(low), out=out), np.float32(high), out=out)


@functools.cache
def _native() -> ctypes._NamedFuncPointer | None:
    """`round_groups` of rounding.c; None where it cannot be compiled."""
    library = native_library(Path(__file__).with_suffix(".c"))
    return None if library is None else library.round_groups


def _search_native(
    routine: ctypes._NamedFuncPointer, x: Any, scales: Any, minima: Any | None, low: int, high: int, last: int,
    period: int,
) -> tuple[Any, Any, Any]:  # fmt: skip
    """What `_search` gives, codes as bytes; of every `period`-th group `last` elements count."""
    import numpy as np

    group, count = x.shape
    codes = np.empty((count, group), np.uint8)
    best, lowest = np.empty(count, np.float32), np.zeros(count, np.float32)

    def pointer(array: Any) -> ctypes.c_void_p:
        return ctypes.c_void_p(None if array is None else array.ctypes.data)

    routine(
        pointer(x), ctypes.c_int64(count), group, pointer(scales), pointer(minima), len(scales), ctypes.c_float(low),
        ctypes.c_float(high), last, period, pointer(best), pointer(lowest if minima is not None else None),
        pointer(codes),
    )  # fmt: skip
    return codes, best, lowest


def _symmetric(x: Any, bits: int, search: bool) -> tuple[Any, None, int, int]:
    """Candidates for the scales of groups x [group, count], and the codes' range; a scale's sign is free."""
    import numpy as np

    high = 2 ** (bits - 1) - 1
    low = -high if bits == 8 else -high - 1  # 8-bit codes stay within -127 .. 127, so that kernels may negate them
    most, least = x.max(0), x.min(0)
    largest = np.where(most >= -least, most, least)
    places: tuple[float, ...] = (float(low),)
    if search:
        places = _SYMMETRIC_8 if bits == 8 else _SYMMETRIC_4
    return _stored(largest / np.array(places, np.float32)[:, None]), None, low, high


def _asymmetric(x: Any, bits: int, search: bool) -> tuple[Any, Any, int, int]:
    """Candidates for the scales and minima of groups x [group, count], and the codes' range."""
    import numpy as np

    top = 2**bits - 1
    low, high = x.min(0), x.max(0)
    shares = np.array((_SHARES_8 if bits == 8 else _SHARES_4) if search else (1.0,), np.float64)
    cut = (high - low) * ((1 - shares) / 2).astype(np.float32)[:, None]
    minima = _stored(low + cut)
    return _stored((high - cut - minima) / np.float32(top)), minima, 0, top


def pack_codes(tensor: QuantizedTensor) -> QuantizedTensor:
    """4-bit codes [n, k] two a byte [n, ceil(k / 2)], the even column in the low half; others as they are."""
    import torch

    if tensor.type.bits > 4:
        return tensor
    codes = tensor.codes.view(torch.uint8)
    packed = codes[:, ::2] & 15
    packed[:, : codes.shape[1] // 2] |= codes[:, 1::2] << 4
    return replace(tensor, codes=packed)


def unpack_codes(packed: QuantizedTensor, columns: int) -> QuantizedTensor:
    """What `pack_codes` packed, `columns` codes a row."""
    import torch

    if packed.type.bits > 4:
        return packed
    codes = torch.empty(packed.codes.shape[0], columns, dtype=torch.int8 if packed.type.symmetric else torch.uint8)
    for start, half in enumerate((packed.codes << 4, packed.codes)):
        shifted = half.view(torch.int8) >> 4 if packed.type.symmetric else half >> 4
        codes[:, start::2] = shifted[:, : (columns + 1 - start) // 2]
    return replace(packed, codes=codes)
