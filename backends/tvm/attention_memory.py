"""Numbers and arrays of an attention kernel that TVM would otherwise handle slowly."""

from __future__ import annotations

from typing import Any

from slmopt.backends.tvm.code import Code, Memory

__all__ = ["Vectors", "hold", "wide"]


class Vectors(Memory):
    """An array of float32 on the stack that begins where a vector may: other arrays begin at multiples of 16 bytes."""

    def __init__(self, code: Code, size: int, lanes: int) -> None:
        from tvm import tirx

        self._code, self.element, self.name = code, "float32", "vectors"
        whole = tirx.decl_buffer((-(-size // lanes),), f"float32x{lanes}", "vectors", scope="local")
        code.emit(tirx.AllocBuffer(whole))
        self._buffer = tirx.decl_buffer((size,), "float32", "vectors", scope="local", data=whole.data)
        code.emit(tirx.DeclBuffer(self._buffer, data=whole.data))


def hold(code: Code, value: Any) -> Any:
    """An integer by a name that TVM's simplifier does not look behind.

    Where it does, it proves things of ever longer expressions, and the kernel takes half a minute to compile."""
    return value if isinstance(value, int) else code.register(1, str(value.ty), value).value


def wide(index: Any) -> Any:
    """An index in 64 bits: caches may be larger than 2 GB."""
    from tvm import tirx

    return index if isinstance(index, int) else tirx.Cast("int64", index)
