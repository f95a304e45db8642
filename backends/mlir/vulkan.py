"""The target `vulkan`: Vulkan devices, through IREE's SPIR-V code generator."""

from __future__ import annotations

import re
from typing import Any

from slmopt.backends.mlir.backend import Machine, MlirBackend
from slmopt.backends.mlir.compiling import missing_packages
from slmopt.errors import InputError, SlmError
from slmopt.runtime.iree_program import import_runtime
from slmopt.target import Target

__all__ = ["VulkanBackend"]

_DRIVER = "vulkan"
_DEVICE = re.compile(r"[0-9]{1,3}|GPU-[0-9a-fA-F]+")
# Indices and token ids fit 32 bits, and few devices compute with 64.
_FLAGS = ("--iree-input-demote-i64-to-i32",)
# What is asked of a device that is not named: numbers of 8 and 16 bits in memory and in computations. Desktop devices
# have had them since Vulkan 1.2; no subgroup operation, for their sizes differ.
_CAPABILITIES = ("Shader", "Float16", "Int8", "Int16", "StorageBuffer16BitAccess", "StorageBuffer8BitAccess")
_EXTENSIONS = ("SPV_KHR_16bit_storage", "SPV_KHR_8bit_storage", "SPV_KHR_storage_buffer_storage_class")
_FEATURES = ["spirv:v1.3", *(f"cap:{name}" for name in _CAPABILITIES), *(f"ext:{name}" for name in _EXTENSIONS)]


class VulkanBackend(MlirBackend):
    """Compiles for what most Vulkan devices have, or for one that is named.

    Weights are widened to float32 in every step before they are multiplied: IREE 3.13 computes wrong numbers where it
    does both at once for a matrix of 40 rows of 32 numbers of 8 bits.

    gpu:     a device's name as IREE knows it (rdna3, ampere, valhall4, adreno, ...); default: what all have
    device:  which of the machine's devices runs it, by number or as GPU-UUID; default: the first
    """

    name = "vulkan"
    summary = "Vulkan devices, through MLIR and IREE"
    options = ("device", "gpu")

    def machine(self, target: Target) -> Machine:
        """Every device, or the one that the options name."""
        gpu, device = target.options.get("gpu"), target.options.get("device")
        if device is not None and not _DEVICE.fullmatch(device):
            raise InputError(f"target {target}: device must be a number or GPU-UUID, got {device!r}")
        meant = f"--iree-vulkan-target-features={','.join(_FEATURES)}" if gpu is None else f"--iree-vulkan-target={gpu}"
        return Machine("vulkan-spirv", (*_FLAGS, meant), _DRIVER if device is None else f"{_DRIVER}://{device}", (),
                       f"gpu={gpu or 'any'}", apart=True)  # fmt: skip

    def status(self) -> dict[str, Any]:
        """What this machine can do with the target, and the devices it has."""
        compiling, running = missing_packages(run=False), missing_packages(run=True)
        devices = [] if running else _devices()
        drivers = [] if devices else ["libvulkan1 (Debian)", "mesa-vulkan-drivers (Debian)"]
        return {"compile": not compiling, "run": bool(devices), "devices": devices,
                "install": [*(f"{package} (pip)" for package in (*compiling, *running)), *drivers]}  # fmt: skip


def _devices() -> list[str]:
    try:
        found = import_runtime().get_driver(_DRIVER).query_available_devices()
    except (SlmError, RuntimeError, ValueError, OSError):  # no loader or no driver
        return []
    return [str(device["name"]) for device in found]
