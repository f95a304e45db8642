"""Tests of programs for other machines: they need a cross compiler and an emulator, which `make test` installs."""

from __future__ import annotations

import pytest

from slmopt.cross import find_compiler
from slmopt.emulation import find_runner

__all__ = ["MACHINE", "needs_emulator"]

MACHINE = "aarch64"

needs_emulator = pytest.mark.skipif(
    find_compiler(MACHINE) is None or find_runner(MACHINE) is None,
    reason=f"no compiler or emulator for {MACHINE}: install ziglang (pip), qemu-user-static and libc6-arm64-cross",
)
