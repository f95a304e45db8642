"""Writes a device kernel: `Code` for one of many threads, that are numbered within groups.

Threads of a group share memory and meet at `meet`; groups know nothing of each other. Every pointer parameter of a
kernel is followed by an int64 of elements to be added to it, so that a launch names a place in a buffer the same way
for every interface. The last parameter is the number of groups.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from slmopt.backends.tvm.code import Code, Memory
from slmopt.backends.tvm.kernel import Kernel

__all__ = ["DeviceCode", "DeviceKernel", "DeviceMemory", "call"]


@dataclass(frozen=True)
class DeviceKernel(Kernel):
    """A kernel of which a group has `threads`; rows lo..hi take `each` threads a row, in whole groups.

    Where `each` is a multiple of `threads`, groups belong to single rows. Otherwise the last group may have threads
    to spare, and the kernel checks.
    """

    threads: int
    each: int


class DeviceMemory(Memory):
    """Elements behind a pointer parameter and the offset that follows it."""

    def __init__(self, code: Code, name: str, element: str) -> None:
        from tvm import tirx

        super().__init__(code, name, element)
        self.offset = tirx.Var(f"{name}_at", "int64")

    def load(self, index: Any, lanes: int = 1, stride: int = 1) -> Any:
        return super().load(self.offset + _wide(index), lanes, stride)

    def store(self, index: Any, value: Any, lanes: int = 1, stride: int = 1) -> None:
        super().store(self.offset + _wide(index), value, lanes, stride)

    def statement(self, index: Any, value: Any) -> Any:
        """The statement that writes a value, not emitted."""
        from tvm import tirx

        return tirx.BufferStore(self._buffer, value, [self.offset + _wide(index)])

    def __getitem__(self, index: Any) -> Any:
        return self.load(index)


def _wide(index: Any) -> Any:
    from tvm import tirx

    return tirx.const(index, "int64") if isinstance(index, int) else tirx.Cast("int64", index)


def call(element: str, function: str, *arguments: Any) -> Any:
    """A function of the device's language or of its prelude (interfaces.py)."""
    from tvm import tirx

    return tirx.call_pure_extern(element, function, *arguments)


class DeviceCode(Code):
    """A kernel being written for one thread: number `thread` of `threads`, in a group that has a number too."""

    def __init__(self, name: str, threads: int) -> None:
        from tvm import tirx

        super().__init__(name)
        self.threads = threads
        self.group, self.thread = tirx.Var("group", "int32"), tirx.Var("thread", "int32")

    def pointer(self, name: str, element: str) -> DeviceMemory:
        """A pointer parameter, and the offset that follows it."""
        memory = DeviceMemory(self, name, element)
        self._parameters += [memory.pointer, memory.offset]
        return memory

    def shared(self, size: int, element: str = "float32") -> Memory:
        """Memory that the threads of a group share; to be asked for before any loop or condition."""
        self._count += 1
        return Memory(self, f"shared{self._count}", element, "shared", size)

    def meet(self) -> None:
        """Wait for all threads of the group; what they wrote before is visible after. No thread may pass it by."""
        from tvm import tirx

        self.emit(tirx.Evaluate(tirx.call_intrin("void", "tirx.tvm_storage_sync", "shared")))

    def finish(self) -> Any:
        """The PrimFunc. How many groups there are is its last parameter."""
        from tvm import tirx

        body = self._sequence(self._blocks[0])
        groups = tirx.Var("groups", "int32")
        for variable, tag, extent in ((self.thread, "threadIdx.x", self.threads), (self.group, "blockIdx.x", groups)):
            axis = tirx.IterVar(None, variable, tirx.IterVar.ThreadIndex, tag)
            body = tirx.AttrStmt(axis, "thread_extent", extent, body)
        function = tirx.PrimFunc([*self._parameters, groups], body)
        return function.with_attr("global_symbol", self.name).with_attr("calling_conv", 2)
