"""Kernels to machine code: TIR to a relocatable object of plain C functions, with no TVM runtime behind them."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from slmopt.backends.tvm.isa import Isa
from slmopt.backends.tvm.kernel import Kernel

__all__ = ["build_object", "llvm_target"]

_MODULE_SIZE = 16  # kernels per LLVM module: few enough to report progress, enough to share the set-up


def llvm_target(isa: Isa) -> Any:
    """TVM's target for an instruction set."""
    import tvm

    config: dict[str, Any] = {"kind": "llvm", "mtriple": "x86_64-unknown-linux-gnu", "mcpu": isa.cpu, "opt-level": 3}
    if isa.attributes:
        config["mattr"] = list(isa.attributes)
    return tvm.target.Target(config)


def build_object(
    kernels: Iterable[Kernel], isa: Isa, report: Callable[[int, int], None] = lambda done, total: None
) -> list[bytes]:
    """Relocatable ELF objects with one C function per distinct kernel name; equal kernels give equal bytes."""
    distinct = {kernel.name: kernel for kernel in kernels}
    ordered = [distinct[name] for name in sorted(distinct)]
    objects: list[bytes] = []
    for start in range(0, len(ordered), _MODULE_SIZE):
        objects.append(_build_module(ordered[start : start + _MODULE_SIZE], isa))
        report(min(start + _MODULE_SIZE, len(ordered)), len(ordered))
    return objects


def _build_module(kernels: list[Kernel], isa: Isa) -> bytes:
    import tvm
    from tvm.s_tir import transform as schedule
    from tvm.tirx import transform as tir

    target = llvm_target(isa)
    module = tvm.IRModule({kernel.name: kernel.build() for kernel in kernels})
    # The default pipeline without MakePackedAPI: functions keep their pointers and integers as C arguments.
    passes = [
        tir.BindTarget(target), schedule.UnifyThreadBinding(), tir.StmtSimplify(), tir.FlattenBuffer(),
        tir.BF16ComputeLegalize(), tir.NarrowDataType(32), tir.VectorizeLoop(True), tir.UnrollLoop(),
        tir.StmtSimplify(), tir.CommonSubexprElim(), tir.BF16StorageLegalize(), tir.LowerIntrin(),
    ]  # fmt: skip
    with tvm.transform.PassContext(opt_level=3), target:
        module = tvm.ir.transform.Sequential(passes)(module)
        built = tvm.get_global_func("target.build.llvm")(module, target)
    with tempfile.TemporaryDirectory(prefix="slmopt-kernels-") as directory:
        path = Path(directory) / "kernels.o"
        built.write_to_file(str(path), "o")
        return path.read_bytes()
