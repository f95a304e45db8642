"""q8 rows in numpy: the layout that quantize_rows writes and quantized linears read."""

from __future__ import annotations

import numpy as np

from slmopt.backends.tvm.views import quantized_row_bytes

__all__ = ["pack_rows", "quantize", "unpack_rows"]


def quantize(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(codes int8 [rows, 32 G], scales float32 [rows, G]) of float32 rows."""
    rows, columns = x.shape
    groups = -(-columns // 32)
    padded = np.zeros((rows, groups * 32), np.float32)
    padded[:, :columns] = x
    grouped = padded.reshape(rows, groups, 32)
    scales = (np.abs(grouped).max(-1) / np.float32(127)).astype(np.float32)
    with np.errstate(divide="ignore", invalid="ignore"):
        codes = np.where(scales[..., None] > 0, np.rint(grouped / scales[..., None]), 0)
    return codes.reshape(rows, -1).astype(np.int8), scales


def pack_rows(x: np.ndarray) -> np.ndarray:
    """uint8 [rows, row bytes]."""
    codes, scales = quantize(x)
    sums = codes.reshape(*scales.shape, 32).sum(-1, dtype=np.int32)
    rows = np.zeros((len(x), quantized_row_bytes(x.shape[1])), np.uint8)
    content = np.concatenate([codes.view(np.uint8), scales.view(np.uint8), sums.view(np.uint8)], 1)
    rows[:, : content.shape[1]] = content
    return rows


def unpack_rows(rows: np.ndarray, columns: int) -> np.ndarray:
    """The float32 numbers that packed rows stand for."""
    groups = -(-columns // 32)
    codes = rows[:, : groups * 32].view(np.int8).astype(np.float32)
    scales = np.ascontiguousarray(rows[:, groups * 32 : groups * 36]).view(np.float32)
    return (codes * np.repeat(scales, 32, 1))[:, :columns]
