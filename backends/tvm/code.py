"""Writes TIR as a program of statements: Python loops unroll, `loop` and `when` make control flow, `let` names a value.

Kernels are built from this rather than from TVMScript, since how many rows, tokens and accumulators are in flight is
data (the ISA, the shape), and every accumulator must be a register of its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from slmopt.errors import InputError

__all__ = ["Code", "Memory", "Register"]

# float16 is read as its bits: see vector_math.from_half
_ELEMENTS = {"float": "float32", "uint8_t": "uint8", "int8_t": "int8", "uint16_t": "uint16", "int32_t": "int32"}


class Register:
    """A vector accumulator that lives in a register."""

    def __init__(self, code: Code, lanes: int, element: str) -> None:
        from tvm import tirx

        self._code, self._lanes = code, lanes
        self._buffer = tirx.decl_buffer((lanes,), element, "r", scope="local")
        code.emit(tirx.AllocBuffer(self._buffer))

    def _index(self) -> list[Any]:
        from tvm import tirx

        return [tirx.Ramp(0, 1, self._lanes) if self._lanes > 1 else 0]

    @property
    def value(self) -> Any:
        """What it holds."""
        from tvm import tirx

        return tirx.BufferLoad(self._buffer, self._index())

    def set(self, value: Any) -> None:
        """Replace what it holds."""
        from tvm import tirx

        self._code.emit(tirx.BufferStore(self._buffer, value, self._index()))


class Memory:
    """Elements behind a pointer."""

    def __init__(self, code: Code, name: str, element: str, scope: str = "global", size: int = 1 << 40) -> None:
        from tvm import ir, tirx

        self._code, self.element, self.name = code, element, name
        if scope == "global":
            self.pointer = tirx.Var(name, ir.PointerType(ir.PrimType(element), scope))
            self._buffer = tirx.decl_buffer((tirx.const(size, "int64"),), element, name, data=self.pointer)
            code.emit(tirx.DeclBuffer(self._buffer, data=self.pointer))
        else:
            self._buffer = tirx.decl_buffer((size,), element, name, scope=scope)
            code.emit(tirx.AllocBuffer(self._buffer))

    def load(self, index: Any, lanes: int = 1, stride: int = 1) -> Any:
        """`lanes` elements from `index` on."""
        from tvm import tirx

        return tirx.BufferLoad(self._buffer, [tirx.Ramp(index, stride, lanes) if lanes > 1 else index])

    def load_as(self, element: str, index: Any, size: int, lanes: int = 1) -> Any:
        """`lanes` elements of another type (of `size` of this memory's elements each) from `index` on."""
        from tvm import tirx

        kind = element if lanes == 1 else f"{element}x{lanes}"
        return tirx.reinterpret(kind, self.load(index, size * lanes))

    def store(self, index: Any, value: Any, lanes: int = 1, stride: int = 1) -> None:
        """Write `lanes` elements from `index` on."""
        from tvm import tirx

        self._code.emit(
            tirx.BufferStore(self._buffer, value, [tirx.Ramp(index, stride, lanes) if lanes > 1 else index])
        )

    def address(self, index: Any) -> Any:
        """A pointer to an element."""
        from tvm import tirx

        return tirx.address_of(tirx.BufferLoad(self._buffer, [index]))

    def prefetch(self, index: Any) -> None:
        """Ask for the cache line of an element, which may lie past the end: nothing is read then."""
        from tvm import tirx

        numbers = [tirx.const(value, "int32") for value in (0, 3, 1)]  # read, keep in all caches, data
        self._code.emit(tirx.Evaluate(tirx.call_llvm_intrin("void", "llvm.prefetch.p0", self.address(index), *numbers)))


class Code:
    """A kernel being written. `pointer` and `number` declare its parameters, in the order of the C signature."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._parameters: list[Any] = []
        self._blocks: list[list[Any]] = [[]]
        self._count = 0

    # --- parameters --------------------------------------------------------------------------------------------------
    def pointer(self, name: str, element: str) -> Memory:
        """A pointer parameter."""
        memory = Memory(self, name, element)
        self._parameters.append(memory.pointer)
        return memory

    def number(self, name: str) -> Any:
        """An int32 parameter."""
        from tvm import tirx

        variable = tirx.Var(name, "int32")
        self._parameters.append(variable)
        return variable

    def numbers(self, names: str) -> list[Any]:
        """Several int32 parameters, named in one string."""
        return [self.number(name) for name in names.split()]

    def declare(self, declaration: str) -> Any:
        """The parameter of a C declaration: "const float *x" is a pointer, "int32_t lo" a number."""
        words = declaration.replace("*", " * ").split()
        words = words[1:] if words[:1] == ["const"] else words
        if len(words) == 3 and words[1] == "*" and words[0] in _ELEMENTS:
            return self.pointer(words[2], _ELEMENTS[words[0]])
        if len(words) == 2 and words[0] == "int32_t":
            return self.number(words[1])
        kinds = ", ".join(_ELEMENTS)
        raise InputError(f"kernel {self.name}: {declaration!r} is no parameter of a kernel; expected `int32_t NAME`, "
                         f"or `[const] TYPE *NAME` of {kinds}")  # fmt: skip

    # --- statements --------------------------------------------------------------------------------------------------
    def emit(self, statement: Any) -> None:
        """Append a statement."""
        self._blocks[-1].append(statement)

    def register(self, lanes: int, element: str = "float32", start: Any = None) -> Register:
        """A new accumulator, set to `start` where given."""
        register = Register(self, lanes, element)
        if start is not None:
            register.set(start)
        return register

    def local(self, size: int, element: str = "float32") -> Memory:
        """A small array on the stack."""
        self._count += 1
        return Memory(self, f"local{self._count}", element, "local", size)

    def let(self, value: Any) -> Any:
        """A name for a value, so that it is computed once.

        Floats and vectors go through a register: TVM's simplifier puts named values back into every place that uses
        them, and an expression as large as an exponential then takes seconds to compile. Integers stay visible to it.
        """
        from tvm import tirx

        element, _, lanes = str(value.ty).partition("x")
        if lanes or element.startswith("float"):
            return self.register(int(lanes or 1), element, value).value
        self._count += 1
        variable = tirx.Var(f"v{self._count}", value.ty)
        self.emit(tirx.Bind(variable, value))
        return variable

    @contextmanager
    def loop(self, extent: Any, start: Any = 0, *, wide: bool = False) -> Iterator[Any]:
        """A serial loop over start .. start + extent; `wide` counts in int64."""
        from tvm import tirx

        self._count += 1
        kind = "int64" if wide else "int32"
        variable = tirx.Var(f"i{self._count}", kind)
        self._blocks.append([])
        yield variable
        body = self._sequence(self._blocks.pop())
        low, high = (
            tirx.const(edge, kind) if isinstance(edge, int) else tirx.Cast(kind, edge) if wide else edge
            for edge in (start, extent)
        )
        self.emit(tirx.For(variable, low, high, tirx.ForKind.SERIAL, body))

    @contextmanager
    def when(self, condition: Any) -> Iterator[None]:
        """Statements that run where the condition holds."""
        from tvm import tirx

        self._blocks.append([])
        yield
        self.emit(tirx.IfThenElse(condition, self._sequence(self._blocks.pop()), None))

    @staticmethod
    def _sequence(statements: list[Any]) -> Any:
        from tvm import tirx

        return statements[0] if len(statements) == 1 else tirx.SeqStmt(statements)

    def finish(self) -> Any:
        """The PrimFunc."""
        from tvm import tirx

        function = tirx.PrimFunc(self._parameters, self._sequence(self._blocks[0]))
        return function.with_attr("global_symbol", self.name).with_attr("tirx.noalias", True)
