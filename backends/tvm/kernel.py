"""A kernel: a serial C function over a range of work, built by TVM when it is needed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from slmopt.backends.tvm.code import Code
from slmopt.errors import InputError

__all__ = ["Kernel", "write_kernel"]


@dataclass(frozen=True)
class Kernel:
    """`name` is the C symbol and says all that distinguishes the kernel; `parameters` are its C declarations, in order.

    `build` returns the TIR PrimFunc. Two kernels of one name are one kernel.
    """

    name: str
    parameters: tuple[str, ...]
    build: Callable[[], Any] = field(compare=False)

    def __post_init__(self) -> None:
        if not (self.name.isascii() and self.name.isidentifier()):
            raise InputError(f"a kernel's name becomes a C function: expected letters, digits and _, got {self.name!r}")


def write_kernel(name: str, parameters: str, body: Callable[..., None]) -> Kernel:
    """The kernel `name` with C parameters such as "float *out, const float *x, int32_t lo, int32_t hi".

    `body(code, *parameters)` writes it when it is built: a `Memory` for each pointer, an int32 expression for each
    number.
    """
    declarations = tuple(part.strip() for part in parameters.split(","))

    def build() -> Any:
        code = Code(name)
        body(code, *(code.declare(declaration) for declaration in declarations))
        return code.finish()

    return Kernel(name, declarations, build)
