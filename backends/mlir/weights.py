"""Weights as a program reads them: what is stored of each, and the MLIR that makes float32 numbers of it.

A plain weight is stored in its own type, float64 as float32. A quantized one [..., k] is stored as tensors over whole
groups:

    codes    i8[..., groups, group], or i4 where they have up to 4 bits: two codes a byte, the first in the low half
    scales   f16[..., groups]
    minimum  f16[..., groups], where the type is asymmetric

and `code * scale (+ minimum)` is computed inside the program, beside the product that reads it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from slmopt.errors import IRError
from slmopt.ir.types import DType, QuantizedType, TensorType
from slmopt.ir.weights import QuantizedTensor

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["SCOPE", "Part", "StoredWeight", "builtin_type"]

SCOPE = "model"  # of the parameters, as the runtime provides them
_ELEMENTS = {
    DType.f64: "f32", DType.f32: "f32", DType.f16: "f16", DType.bf16: "bf16", DType.i64: "i64", DType.i32: "i32",
    DType.i8: "i8", DType.u8: "i8", DType.bool: "i8",
}  # fmt: skip
_WIDENED = (DType.f16, DType.bf16)


def builtin_type(shape: Sequence[int], element: str) -> str:
    """A tensor type of MLIR: tensor<512x64xf32>."""
    return f"tensor<{''.join(f'{size}x' for size in shape)}{element}>"


@dataclass(frozen=True)
class Part:
    """One tensor that is stored of a weight."""

    key: str
    shape: tuple[int, ...]
    element: str  # as MLIR spells it

    @property
    def type(self) -> str:
        """Its tensor type in MLIR."""
        return builtin_type(self.shape, self.element)


@dataclass(frozen=True)
class StoredWeight:
    """A weight of a module, by its key and type."""

    key: str
    type: TensorType

    @property
    def shape(self) -> tuple[int, ...]:
        """The sizes of the tensor it stands for."""
        return tuple(int(size) for size in self.type.shape)  # type: ignore[arg-type]

    @property
    def read_element(self) -> DType:
        """What the program reads: float32 where it stands for real numbers, else what is stored."""
        element = self.type.element
        return DType.f32 if isinstance(element, QuantizedType) or element.is_float else element

    @property
    def is_narrow(self) -> bool:
        """Whether it is stored in fewer bits than it is read in."""
        return isinstance(self.type.element, QuantizedType) or self.type.element in _WIDENED

    @property
    def parts(self) -> tuple[Part, ...]:
        """What is stored of it."""
        element = self.type.element
        if isinstance(element, DType):
            return (Part(self.key, self.shape, _ELEMENTS[element]),)
        rows, groups, group = _grouped(self.shape, element)
        names = ("scales",) if element.symmetric else ("scales", "minimum")
        codes = Part(f"{self.key}.codes", (*rows, groups, group), f"i{_code_bits(element, group)}")
        return (codes, *(Part(f"{self.key}.{name}", (*rows, groups), "f16") for name in names))

    def arrays(self, value: Any) -> Iterator[NDArray[np.uint8]]:
        """The bytes of every part, of the weight as its store gives it."""
        import torch

        element = self.type.element
        if isinstance(element, DType):
            from slmopt.ir.torch_types import torch_dtype

            yield _bytes(value.to(torch_dtype(DType.f32 if element is DType.f64 else element)))
            return
        if not isinstance(value, QuantizedTensor):
            raise IRError(f"weight @{self.key} is declared {self.type}, and its store gives a plain tensor")
        _, groups, group = _grouped(self.shape, element)
        padding = groups * group - self.shape[-1]
        codes = torch.nn.functional.pad(value.codes, (0, padding)).contiguous().view(torch.uint8)
        if _code_bits(element, group) == 4:
            codes = (codes[..., ::2] & 15) | (codes[..., 1::2] << 4)
        yield _bytes(codes)
        for part in (value.scales, value.minimum):
            if part is not None:
                yield _bytes(part.half())

    def read(self, name: str, symbols: Sequence[str]) -> str:
        """Ops that make %`name`, a tensor of `shape` and `read_element`, of the parts, globals called `symbols`."""
        parts, element = self.parts, self.type.element
        loaded = [f"%{name}_{index}" for index in range(len(parts))]
        text = "".join(f"    {value} = util.global.load @{symbol} : {part.type}\n"
                       for value, symbol, part in zip(loaded, symbols, parts, strict=True))  # fmt: skip
        if isinstance(element, QuantizedType):
            return text + self._dequantize(name, loaded, element)
        if element in _WIDENED:
            body = f"      %0 = arith.extf %a0 : {_ELEMENTS[element]} to f32\n"
            return text + _map_elements(name, loaded, parts, "f32", body)
        if element is DType.bool:
            return text + _map_elements(name, loaded, parts, "i1", "      %0 = arith.trunci %a0 : i8 to i1\n")
        return text.replace(f"{loaded[0]} =", f"%{name} =")

    def _dequantize(self, name: str, loaded: Sequence[str], element: QuantizedType) -> str:
        parts = self.parts
        signed = "si" if element.symmetric else "ui"
        body = (f"      %i = arith.ext{signed} %a0 : {parts[0].element} to i32\n"
                f"      %c = arith.{signed}tofp %i : i32 to f32\n"
                "      %s = arith.extf %a1 : f16 to f32\n"
                f"      %{'0' if element.symmetric else 'p'} = arith.mulf %c, %s : f32\n")  # fmt: skip
        if not element.symmetric:
            body += "      %m = arith.extf %a2 : f16 to f32\n      %0 = arith.addf %p, %m : f32\n"
        rows, groups, group = _grouped(self.shape, element)
        whole, columns = (*rows, groups * group), self.shape[-1]
        result = f"{name}_flat" if groups * group != columns else name
        axes = ", ".join(f"[{axis}]" for axis in range(len(rows)))
        text = _map_elements(f"{name}_grouped", loaded, parts, "f32", body)
        text += (f"    %{result} = tensor.collapse_shape %{name}_grouped [{axes + ', ' if axes else ''}"
                 f"[{len(rows)}, {len(rows) + 1}]] : {builtin_type(parts[0].shape, 'f32')} "
                 f"into {builtin_type(whole, 'f32')}\n")  # fmt: skip
        if result != name:
            zeros, ones = ", ".join("0" for _ in whole), ", ".join("1" for _ in whole)
            sizes = ", ".join(map(str, self.shape))
            text += (f"    %{name} = tensor.extract_slice %{result}[{zeros}] [{sizes}] [{ones}] : "
                     f"{builtin_type(whole, 'f32')} to {builtin_type(self.shape, 'f32')}\n")  # fmt: skip
        return text


def _grouped(shape: tuple[int, ...], element: QuantizedType) -> tuple[tuple[int, ...], int, int]:
    """Rows, groups of a row, and elements of a group; the last group is filled up."""
    group = element.group or shape[-1]
    return shape[:-1], element.groups(shape[-1]), group


def _code_bits(element: QuantizedType, group: int) -> int:
    return 4 if element.bits <= 4 and group % 2 == 0 else 8


def _bytes(tensor: Any) -> NDArray[np.uint8]:
    import torch

    flat = tensor.detach().contiguous().reshape(-1)
    found: NDArray[np.uint8] = (flat.view(torch.uint8) if flat.numel() else flat.to(torch.uint8)).numpy()
    return found


def _map_elements(name: str, loaded: Sequence[str], parts: Sequence[Part], element: str, body: str) -> str:
    """%`name` of the first part's shape, each element computed by `body` as %0 of %a0, %a1, ...: one of each part.

    A part of fewer axes has one element for all along the last ones.
    """
    shape = parts[0].shape
    dims = [f"d{axis}" for axis in range(len(shape))]
    maps = [f"affine_map<({', '.join(dims)}) -> ({', '.join(dims[: len(part.shape)])})>" for part in (*parts, parts[0])]
    kinds = ", ".join('"parallel"' for _ in shape)
    result = builtin_type(shape, element)
    arguments = ", ".join(f"%a{index}: {part.element}" for index, part in enumerate(parts))
    return (f"    %{name}_empty = tensor.empty() : {result}\n"
            f"    %{name} = linalg.generic {{indexing_maps = [{', '.join(maps)}], iterator_types = [{kinds}]}} "
            f"ins({', '.join(loaded)} : {', '.join(part.type for part in parts)}) outs(%{name}_empty : {result}) {{\n"
            f"    ^bb0({arguments}, %out: {element}):\n{body}"
            f"      linalg.yield %0 : {element}\n    }} -> {result}\n")  # fmt: skip
