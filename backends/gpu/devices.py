"""The devices of this machine, asked of the same libraries as a compiled model asks."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from ctypes import byref, c_int, c_size_t, c_uint32, c_uint64, c_void_p

__all__ = ["list_cuda_devices", "list_opencl_devices"]

_MOST = 64
_NAME_BYTES = 128
_ALL_DEVICES, _DEVICE_NAME = 0xFFFFFFFF, 0x102B


def _load(names: Sequence[str]) -> ctypes.CDLL | None:
    for name in names:
        try:
            return ctypes.CDLL(name)
        except OSError:
            continue
    return None


def list_opencl_devices(libraries: Sequence[str]) -> list[str]:
    """The names of all devices of all platforms, in the order in which `device=NUMBER` counts them."""
    library = _load(libraries)
    if library is None:
        return []
    platforms, count = (c_void_p * _MOST)(), c_uint32()
    if library.clGetPlatformIDs(_MOST, platforms, byref(count)) != 0:
        return []
    found: list[str] = []
    for platform in platforms[: min(count.value, _MOST)]:
        devices, more = (c_void_p * _MOST)(), c_uint32()
        where = (c_void_p(platform), c_uint64(_ALL_DEVICES), c_uint32(_MOST), devices, byref(more))
        if library.clGetDeviceIDs(*where) != 0:
            continue
        for device in devices[: min(more.value, _MOST)]:
            name = ctypes.create_string_buffer(_NAME_BYTES)
            library.clGetDeviceInfo(c_void_p(device), c_uint32(_DEVICE_NAME), c_size_t(_NAME_BYTES - 1), name, None)
            found.append(name.value.decode(errors="replace"))
    return found


def list_cuda_devices(libraries: Sequence[str]) -> list[str]:
    """The names of all NVIDIA devices, in the order in which `device=NUMBER` counts them."""
    library, count = _load(libraries), c_int()
    if library is None or library.cuInit(0) != 0 or library.cuDeviceGetCount(byref(count)) != 0:
        return []
    found: list[str] = []
    for index in range(count.value):
        device, name = c_int(), ctypes.create_string_buffer(_NAME_BYTES)
        if library.cuDeviceGet(byref(device), index) == 0 and library.cuDeviceGetName(name, _NAME_BYTES, device) == 0:
            found.append(name.value.decode(errors="replace"))
    return found
