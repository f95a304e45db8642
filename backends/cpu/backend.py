"""The CPU backend: x86-64 processors through TVM."""

from __future__ import annotations

from slmopt.backends.tvm.processor import Processor

__all__ = ["CpuBackend"]


class CpuBackend(Processor):
    """Compiles for x86-64 processors."""

    name = "cpu"
    summary = "x86-64 processors"
    machine = "x86_64"
