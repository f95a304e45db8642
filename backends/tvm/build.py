"""Kernels to machine code: TIR to a relocatable object of plain C functions, with no TVM runtime behind them."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path
from typing import Any

from slmopt.backends.tvm.isa import Isa
from slmopt.backends.tvm.kernel import Kernel
from slmopt.cache import keep
from slmopt.errors import InputError, SlmError, nearest

__all__ = ["build_object", "known_attributes", "llvm_target"]


@cache
def llvm_target(isa: Isa) -> Any:
    """TVM's target for an instruction set; InputError where LLVM does not know what the description names."""
    import tvm

    config: dict[str, Any] = {"kind": "llvm", "mtriple": isa.triple, "mcpu": isa.cpu, "opt-level": 3}
    if isa.attributes:
        config["mattr"] = list(isa.attributes)
    target = tvm.target.Target(config)
    _check_cpu(target, isa.cpu, f"instruction set {isa.name}")
    has = tvm.get_global_func("target.llvm_cpu_has_feature")
    for attribute in isa.attributes:
        if attribute.startswith("+") and not has(attribute[1:], target):
            raise InputError(f"instruction set {isa.name}: LLVM knows no attribute {attribute!r}")
    for field, intrinsic in (("dot_intrinsic", isa.dot_intrinsic), ("bf16_dot", isa.bf16_dot)):
        if intrinsic and not tvm.get_global_func("target.llvm_lookup_intrinsic_id")(intrinsic):
            raise InputError(f"instruction set {isa.name}: LLVM knows no {field} {intrinsic!r}")
    return target


def known_attributes(triple: str, cpu: str, names: Iterable[str]) -> set[str]:
    """Which of LLVM's attributes a named processor has; InputError where LLVM does not know it."""
    import tvm

    _check_cpu(tvm.target.Target({"kind": "llvm", "mtriple": triple}), cpu, triple.partition("-")[0])
    target = tvm.target.Target({"kind": "llvm", "mtriple": triple, "mcpu": cpu})
    has = tvm.get_global_func("target.llvm_cpu_has_feature")
    return {name for name in names if has(name, target)}


def _check_cpu(target: Any, cpu: str, place: str) -> None:
    import tvm

    known = list(tvm.get_global_func("target.llvm_get_cpu_archlist")(target))
    if cpu not in known:
        raise InputError(f"{place}: LLVM knows no cpu {cpu!r}{nearest(cpu, known)}")


def build_object(
    kernels: Iterable[Kernel], isa: Isa, report: Callable[[int, int], None] = lambda done, total: None
) -> list[bytes]:
    """Relocatable ELF objects, one C function each, of the distinct kernel names; equal kernels give equal bytes.

    An object is kept on disk by its TIR text, the target and TVM's version (`slmopt.cache`).
    InputError names a kernel that cannot be built, and two that share a name but not their parameters.
    """
    distinct: dict[str, Kernel] = {}
    for kernel in kernels:
        if distinct.setdefault(kernel.name, kernel) != kernel:
            raise InputError(f"two kernels are called {kernel.name}: one takes ({', '.join(kernel.parameters)}), the "
                             f"other ({', '.join(distinct[kernel.name].parameters)})")  # fmt: skip
    objects: list[bytes] = []
    for name in sorted(distinct):
        objects.append(_build_kernel(distinct[name], isa))
        report(len(objects), len(distinct))
    return objects


def _build_kernel(kernel: Kernel, isa: Isa) -> bytes:
    import tvm

    target = llvm_target(isa)
    module = tvm.IRModule({kernel.name: _write(kernel)})
    passes = _passes(target)
    said = [tvm.__version__, str(target), *(item.info.name for item in passes), module.script()]
    return keep("kernel", "\0".join(said).encode(), lambda: _compile(module, target, passes))


def _passes(target: Any) -> list[Any]:
    """The default pipeline without MakePackedAPI: functions keep their pointers and integers as C arguments."""
    from tvm.s_tir import transform as schedule
    from tvm.tirx import transform as tir

    return [
        tir.BindTarget(target), schedule.UnifyThreadBinding(), tir.StmtSimplify(), tir.FlattenBuffer(),
        tir.BF16ComputeLegalize(), tir.NarrowDataType(32), tir.VectorizeLoop(True), tir.UnrollLoop(),
        tir.StmtSimplify(), tir.CommonSubexprElim(), tir.BF16StorageLegalize(), tir.LowerIntrin(),
    ]  # fmt: skip


def _compile(module: Any, target: Any, passes: list[Any]) -> bytes:
    import tvm

    with tvm.transform.PassContext(opt_level=3), target:
        built = tvm.get_global_func("target.build.llvm")(tvm.transform.Sequential(passes)(module), target)
    with tempfile.TemporaryDirectory(prefix="slmopt-kernels-") as directory:
        path = Path(directory) / "kernel.o"
        built.write_to_file(str(path), "o")
        return path.read_bytes()


def _write(kernel: Kernel) -> Any:
    """The kernel's PrimFunc; its author may be a plugin's."""
    try:
        function = kernel.build()
    except SlmError:
        raise
    except Exception as error:
        raise InputError(f"kernel {kernel.name} cannot be built: {type(error).__name__}: {error}") from error
    if len(function.params) != len(kernel.parameters):
        raise InputError(f"kernel {kernel.name} declares ({', '.join(kernel.parameters)}), but its function has "
                         f"{len(function.params)} parameters")  # fmt: skip
    return function
