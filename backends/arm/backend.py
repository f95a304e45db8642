"""The ARM backend: 64-bit ARM processors through TVM, cross-compiled where this machine is another."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from slmopt.backends.tvm.processor import Processor

__all__ = ["ArmBackend"]


class ArmBackend(Processor):
    """Compiles for 64-bit ARM processors with Linux."""

    name = "arm"
    summary = "64-bit ARM processors (Linux)"
    machine = "aarch64"
    options = ("chunk", "context", "cpu", "isa")
    # Extensions that LLVM may use where a processor is named, by what Linux calls them (asm/hwcap.h).
    attributes: ClassVar[Mapping[str, str]] = {
        "aes": "aes", "bf16": "bf16", "complxnum": "fcma", "crc": "crc32", "dotprod": "asimddp", "fp16fml": "asimdfhm",
        "fullfp16": "asimdhp", "i8mm": "i8mm", "jsconv": "jscvt", "lse": "atomics", "rcpc": "lrcpc", "rdm": "asimdrdm",
        "sve": "sve", "sve2": "sve2",
    }  # fmt: skip
