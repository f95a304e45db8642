"""Weights as kernels read them: blocks of B outputs (B = the ISA's lanes), inputs in order within a block.

    f32, f16    [n/B] blocks of [k][B] numbers
    bf16        [n/B] blocks of [k/2][B][2] numbers: number (j, o, i) belongs to output o, input 2j+i
    quantized   [n/B] blocks of [k/32] groups of
                    B float16 scales, [B float16 minima,]
                    4 bits: [4][B][4] bytes; byte (j, o, i) holds output o, inputs 4j+i (low nibble) and 16+4j+i (high)
                    8 bits: [8][B][4] bytes; byte (j, o, i) holds output o, input 4j+i

Outputs past n are zero weights, inputs past k are padding that meets zero activations. A scale shared by more than 32
inputs is repeated for each group of 32.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from slmopt.backends.tvm.isa import Isa
from slmopt.errors import UnsupportedError
from slmopt.ir.types import DType, Element, QuantizedType
from slmopt.ir.weights import QuantizedTensor

__all__ = [
    "GROUP",
    "block_rows",
    "check_element",
    "code_bits",
    "group_bytes",
    "inputs_together",
    "pack_chunks",
    "packed_bytes",
    "stored_zero",
]

GROUP = 32  # inputs that one scale of the packed form serves
_SLAB = 1 << 22  # elements packed at a time


def block_rows(isa: Isa, element: Element) -> int:
    """Outputs per block."""
    return isa.lanes


def code_bits(element: QuantizedType) -> int:
    """Bits a code takes when packed: 4 or 8."""
    return 4 if element.bits <= 4 else 8


def inputs_together(element: DType) -> int:
    """Inputs whose weights of one output lie side by side: two numbers of 16 bits make a word, cheap to take apart."""
    return 2 if element == DType.bf16 else 1


def stored_zero(isa: Isa, element: QuantizedType) -> int:
    """What is subtracted from a stored code: 8-bit codes are shifted to the sign that the dot product wants."""
    if code_bits(element) == 4:
        return 8 if element.symmetric else 0
    return (128 if isa.unsigned else 0) if element.symmetric else (0 if isa.unsigned else -128)


def group_bytes(isa: Isa, element: QuantizedType) -> int:
    """Bytes of one group of 32 inputs x B outputs."""
    return isa.lanes * (GROUP * code_bits(element) // 8 + (2 if element.symmetric else 4))


def packed_bytes(isa: Isa, element: Element, rows: int, columns: int) -> int:
    """Bytes of a packed [rows, columns] matrix."""
    blocks = -(-rows // isa.lanes)
    if isinstance(element, DType):
        padded = -(-columns // inputs_together(element)) * inputs_together(element)
        return blocks * isa.lanes * padded * (element.bits // 8)
    return blocks * -(-columns // GROUP) * group_bytes(isa, element)


def check_element(element: Element) -> None:
    """UnsupportedError where no kernel reads weights of this type."""
    if isinstance(element, DType):
        if element not in (DType.f32, DType.f16, DType.bf16):
            raise UnsupportedError(f"no kernel for weights of type {element}; expected f32, f16, bf16 or quantized")
    elif element.group is not None and element.group % GROUP:
        raise UnsupportedError(
            f"no kernel for weights of type {element}: groups must be a multiple of {GROUP}, or whole rows"
        )


def pack_chunks(isa: Isa, element: Element, weight: Any) -> Iterator[memoryview]:
    """The packed bytes of a torch tensor or QuantizedTensor [n, k], a slab of blocks at a time."""
    check_element(element)
    rows, columns = (weight.codes if isinstance(weight, QuantizedTensor) else weight).shape
    step = max(1, _SLAB // max(columns, 1) // isa.lanes) * isa.lanes
    for start in range(0, rows, step):
        stop = min(rows, start + step)
        packed = _pack_quantized(isa, element, weight, start, stop) if isinstance(element, QuantizedType) else (
            _pack_float(isa, element, weight, start, stop)
        )  # fmt: skip
        yield memoryview(packed.reshape(-1)).cast("B")


def _pack_float(isa: Isa, element: DType, weight: Any, start: int, stop: int) -> Any:
    import numpy as np
    import torch

    from slmopt.ir.torch_types import torch_dtype

    part = weight[start:stop].to(torch_dtype(element))
    if element == DType.bf16:
        part = part.view(torch.int16)
    blocks = -(-(stop - start) // isa.lanes)
    together, columns = inputs_together(element), part.shape[1]
    padded = np.zeros((blocks * isa.lanes, columns + columns % together), part.numpy().dtype)
    padded[: stop - start, :columns] = part.numpy()
    return np.ascontiguousarray(padded.reshape(blocks, isa.lanes, -1, together).transpose(0, 2, 1, 3))


def _pack_quantized(isa: Isa, element: QuantizedType, weight: QuantizedTensor, start: int, stop: int) -> Any:
    import numpy as np

    lanes, columns = isa.lanes, weight.codes.shape[1]
    blocks, groups = -(-(stop - start) // lanes), -(-columns // GROUP)
    zero = np.uint8(stored_zero(isa, element) % 256)  # two's complement: adding modulo 256 serves signed codes too
    padded = np.full((blocks * lanes, groups * GROUP), zero, np.uint8)
    padded[: stop - start, :columns] = weight.codes[start:stop].numpy().view(np.uint8) + zero
    codes: Any = padded.reshape(blocks, lanes, groups, GROUP)
    if code_bits(element) == 4:
        codes = codes[..., :16] | (codes[..., 16:] << 4)
    quads = codes.reshape(blocks, lanes, groups, -1, 4).transpose(0, 2, 3, 1, 4).reshape(blocks, groups, -1)
    scales = _scales(weight, weight.scales, start, stop, blocks * lanes, groups, element)
    parts = [scales]
    if weight.minimum is not None:
        minima = _scales(weight, weight.minimum, start, stop, blocks * lanes, groups, element)
        parts.append(minima)
    heads = [
        np.ascontiguousarray(part.reshape(blocks, lanes, groups).transpose(0, 2, 1)).view(np.uint8) for part in parts
    ]
    return np.concatenate([*heads, quads], axis=2)


def _scales(weight: Any, values: Any, start: int, stop: int, rows: int, groups: int, element: QuantizedType) -> Any:
    """float16 [rows, groups]: one value per group of 32 inputs."""
    import numpy as np

    found = np.zeros((rows, groups), np.float16)
    part = values[start:stop].numpy().astype(np.float16)
    index = np.arange(groups) * GROUP // (element.group or groups * GROUP)
    found[: stop - start] = part[:, index]
    return found
