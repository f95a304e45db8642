"""Calls compiled kernels from Python: the object linked into a shared library, arguments as numpy arrays and ints."""

from __future__ import annotations

import ctypes
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from slmopt.backends.tvm.build import build_object
from slmopt.backends.tvm.isa import Isa, Isas
from slmopt.backends.tvm.kernel import Kernel
from slmopt.plugins import builtin
from slmopt.plugins.discovery import Registry

__all__ = ["BUILTIN", "ISAS", "Kernels", "aligned", "host_isas", "isa_parameters"]

BUILTIN = Registry([("slmopt", builtin)]).offers
ISAS = Isas(BUILTIN.isas)


def host_isas() -> list[Isa]:
    """Every instruction set this processor can run."""
    best = ISAS.detect().rank
    return [isa for isa in map(ISAS.load, ISAS.names()) if isa.rank <= best]


def isa_parameters() -> list[Any]:
    """`host_isas` for parametrize. Of two whose vectors are equally long, which share most of their code,
    only the better one is fast enough for `make test`."""
    seen: set[int] = set()
    parameters = []
    for isa in host_isas():
        parameters.append(pytest.param(isa, id=isa.name, marks=[pytest.mark.slow] if isa.lanes in seen else []))
        seen.add(isa.lanes)
    return parameters


def aligned(array: np.ndarray) -> np.ndarray:
    """A copy that begins at a multiple of 64 bytes."""
    raw = np.zeros(array.nbytes + 64, np.uint8)
    start = -raw.ctypes.data % 64
    copy = raw[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy


class Kernels:
    """Kernels of one instruction set, compiled, linked and loaded."""

    def __init__(self, kernels: Sequence[Kernel], isa: Isa) -> None:
        with tempfile.TemporaryDirectory() as directory:
            paths = []
            for index, data in enumerate(build_object(kernels, isa)):
                paths.append(str(Path(directory) / f"{index}.o"))
                Path(paths[-1]).write_bytes(data)
            library = str(Path(directory) / "kernels.so")
            subprocess.run(["cc", "-shared", "-o", library, *paths, "-lm"], check=True)
            self._library = ctypes.CDLL(library)

    def call(self, kernel: Kernel, *arguments: np.ndarray | int) -> None:
        """Call a kernel; arrays are passed as pointers, numbers as int32."""
        if len(arguments) != len(kernel.parameters):
            raise TypeError(f"{kernel.name} takes {kernel.parameters}, got {len(arguments)} arguments")
        converted = [
            ctypes.c_void_p(a.ctypes.data) if isinstance(a, np.ndarray) else ctypes.c_int32(a) for a in arguments
        ]
        getattr(self._library, kernel.name)(*converted)
