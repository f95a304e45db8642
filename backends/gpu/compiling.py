"""Kernels to a device's code: TIR to OpenCL C or CUDA through TVM, CUDA to machine code through nvcc."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from slmopt.backends.gpu.device_code import DeviceKernel
from slmopt.backends.gpu.interfaces import Interface
from slmopt.cache import keep
from slmopt.errors import InputError, SlmError

__all__ = ["kernel_source"]

_ARCHITECTURE = "sm_80"  # TVM wants one; what it writes for these kernels is the same for all


def kernel_source(
    kernels: Sequence[DeviceKernel], interface: Interface, report: Callable[[int, int], None] = lambda done, total: None
) -> str:
    """The source of all kernels in the interface's language; equal kernels give equal text.

    InputError names a kernel that cannot be built.
    """
    heads: dict[str, None] = {}
    bodies = []
    for kernel in sorted(kernels, key=lambda kernel: kernel.name):
        text = _generate_kernel(kernel, interface)
        start = text.index(interface.opening)
        heads.setdefault("\n".join(line for line in text[:start].splitlines() if not line.startswith("// Function:")))
        bodies.append(text[start:].strip() + "\n")
        report(len(bodies), len(kernels))
    return "\n".join([*(head.strip() for head in heads if head.strip()), interface.prelude, *bodies])


def _generate_kernel(kernel: DeviceKernel, interface: Interface) -> str:
    """What TVM writes for one kernel: what all of them need, then the function. Kept on disk by the kernel's TIR."""
    import tvm

    target = tvm.target.Target({"kind": interface.language, **_options(interface)})
    module = tvm.IRModule({kernel.name: _write(kernel)})
    said = "\0".join([tvm.__version__, str(target), module.script()])
    return keep("device-source", said.encode(), lambda: _generate(module, target).encode()).decode()


def _options(interface: Interface) -> dict[str, str]:
    return {"arch": _ARCHITECTURE} if interface.language == "cuda" else {}


def _generate(module: Any, target: Any) -> str:
    import tvm
    from tvm.tirx import transform as tir

    passes = [
        tir.BindTarget(target), tir.StmtSimplify(), tir.FlattenBuffer(), tir.UnrollLoop(), tir.StmtSimplify(),
        tir.CommonSubexprElim(), tir.LowerIntrin(),
    ]  # fmt: skip
    with tvm.transform.PassContext(opt_level=3), target:
        lowered = tvm.transform.Sequential(passes)(module)
        built = tvm.get_global_func(f"target.build.{target.kind.name}")(lowered, target)
    return str(built.inspect_source())


def _write(kernel: DeviceKernel) -> Any:
    """The kernel's PrimFunc; its author may be a plugin's."""
    try:
        return kernel.build()
    except SlmError:
        raise
    except Exception as error:
        raise InputError(f"kernel {kernel.name} cannot be built: {type(error).__name__}: {error}") from error
