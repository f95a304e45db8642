"""The target `cpu:via=mlir`: processors, through IREE's LLVM code generator."""

from __future__ import annotations

from typing import Any

from slmopt.backends.mlir.backend import Machine, MlirBackend
from slmopt.backends.mlir.compiling import missing_packages
from slmopt.backends.tvm.isa import Isas
from slmopt.errors import InputError
from slmopt.offers import Offers
from slmopt.runtime.iree_program import LOCAL
from slmopt.target import Target

__all__ = ["ProcessorBackend"]


class ProcessorBackend(MlirBackend):
    """Compiles for the instruction sets on offer."""

    name = "cpu:via=mlir"
    summary = "processors, through MLIR and IREE"
    options = ("isa",)

    def __init__(self, offers: Offers) -> None:
        self._isas = Isas(offers.isas)

    def machine(self, target: Target) -> Machine:
        """The instruction set that is named, else the best of this machine."""
        name = target.options.get("isa")
        isa = self._isas.load(name) if name is not None else self._isas.detect()
        flags = [f"--iree-llvmcpu-target-triple={isa.triple}", f"--iree-llvmcpu-target-cpu={isa.cpu}"]
        if isa.attributes:
            flags.append(f"--iree-llvmcpu-target-cpu-features={','.join(isa.attributes)}")
        return Machine("llvm-cpu", tuple(flags), LOCAL, isa.flags, f"isa={isa.name}")

    def status(self) -> dict[str, Any]:
        """What this machine can do with the target."""
        try:
            isa = self._isas.detect().name
        except InputError:
            isa = None
        compiling, running = missing_packages(run=False), missing_packages(run=True)
        return {"compile": not compiling, "run": not running and isa is not None, "isa": isa,
                "install": [f"{package} (pip)" for package in (*compiling, *running)]}  # fmt: skip
