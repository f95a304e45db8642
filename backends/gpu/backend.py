"""The backends of devices: one class, and the description of an interface for each."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from slmopt.artifact import ArtifactWriter, link_library
from slmopt.backend import BuildReport
from slmopt.backends.gpu.compiling import kernel_source
from slmopt.backends.gpu.devices import list_cuda_devices, list_opencl_devices
from slmopt.backends.gpu.emit import emit_code, emit_device_program
from slmopt.backends.gpu.interfaces import CUDA, OPENCL, Interface
from slmopt.backends.gpu.lowering import DeviceLowering
from slmopt.backends.gpu.nvcc import NVCC_PACKAGES, compile_cuda, find_nvcc, parse_architectures
from slmopt.backends.gpu.packed import DEVICE
from slmopt.backends.tvm.description import write_descriptions
from slmopt.backends.tvm.emit import ProgramFacts
from slmopt.backends.tvm.lowerings import Lowerings
from slmopt.backends.tvm.plan import plan_program
from slmopt.backends.tvm.sizes import check_options, read_sizes
from slmopt.backends.tvm.wanted_passes import wanted_passes
from slmopt.cross import compiler_packages, find_compiler, host_machine
from slmopt.errors import InputError, SlmError, UnsupportedError
from slmopt.expectation import PROBE, expect
from slmopt.ir.graph import Module
from slmopt.ir.step import step_sizes
from slmopt.offers import Offers
from slmopt.target import Target

__all__ = ["CudaBackend", "DeviceBackend", "DeviceOptions", "OpenClBackend"]

_CHUNK = 128  # most tokens of one step: long prompts run in steps of this many


@dataclass(frozen=True)
class DeviceOptions:
    """The options of a target: positions of context, tokens of one step, which device, and code for which."""

    context: int
    chunk: int
    device: str
    architectures: tuple[str, ...]

    @classmethod
    def of(cls, target: Target, module: Module, interface: Interface) -> DeviceOptions:
        """Parse a target's options for a module; InputError names what is wrong."""
        check_options(target, ("chunk", "context", *interface.options))
        context, chunk = read_sizes(target, module, _CHUNK)
        options = target.options
        return cls(context, chunk, options.get("device", ""), parse_architectures(options.get("arch")))


def _silent(what: str, done: int, total: int) -> None:
    return None


class DeviceBackend:
    """Compiles a module with a @step graph for the devices of an interface, with the lowerings on offer for them."""

    name: ClassVar[str]
    summary: ClassVar[str]
    interface: ClassVar[Interface]

    def __init__(self, offers: Offers) -> None:
        self._lowerings = offers.lowerings

    def devices(self) -> list[str]:
        """The devices of this machine, by name."""
        raise NotImplementedError

    def missing_compiler(self) -> list[str]:
        """What to install before anything can be compiled."""
        machine = host_machine()
        return [] if find_compiler(machine) else list(compiler_packages(machine))

    def code(self, source: str, options: DeviceOptions) -> bytes:
        """What a library keeps of the kernels' source."""
        return source.encode()

    def status(self) -> dict[str, Any]:
        """What this machine can do with the target, and which packages would add to it."""
        devices, missing = self.devices(), self.missing_compiler()
        install = [*missing, *([] if devices else self.interface.install)]
        return {"compile": not missing, "run": bool(devices), "devices": devices, "install": install}

    def supports(self, module: Module, target: Target) -> list[str]:
        """What cannot be compiled, each by op and place; empty where everything can."""
        return self._lower(module, DeviceOptions.of(target, module, self.interface)).problems

    def pipeline(self, module: Module, target: Target) -> list[str]:
        """The passes this backend still wants for `module`, in the notation of recipes."""
        DeviceOptions.of(target, module, self.interface)
        if missing := self.missing_compiler():  # said before passes take their time
            raise InputError(f"target {target} cannot be compiled for here: install {', '.join(missing)}")
        return wanted_passes(module)

    def build(
        self, module: Module, target: Target, output: str | Path, *, name: str | None = None,
        ledger: Any = None, recipe: str | None = None, report: BuildReport = _silent,
    ) -> Path:  # fmt: skip
        """Write the artifact directory `output`. Nothing is left there where it fails."""
        options = DeviceOptions.of(target, module, self.interface)
        name = name or str(module.metadata.get("name") or module.name)
        with ArtifactWriter(output) as artifact:
            lowering = self._lower(module, options)
            if lowering.problems:
                raise UnsupportedError(f"target {target} cannot compile @{module.name}:\n  "
                                       + "\n  ".join(lowering.problems))  # fmt: skip
            plan = plan_program(lowering.calls, lowering.states)
            kernels = [lowering.kernels[key] for key in sorted(lowering.kernels)]
            source = kernel_source(kernels, self.interface, _stage("kernels", report))
            code = self.code(source, options)
            with artifact.weights() as weights:
                lowering.weights.write(weights, _stage("weights", report))
            facts = ProgramFacts(name, int(module.metadata["vocab"]), options.context, options.chunk, weights.size,
                                 weights.hash, (), self._described(options))  # fmt: skip
            program = emit_device_program(lowering.calls, kernels, plan, facts, options.device, len(code))
            artifact.write(f"kernels{self.interface.suffix}", source)
            artifact.write("program.c", program)
            self._link(artifact, name, code)
            report("link", 1, 1)
            artifact.write(PROBE, expect(module, context=options.context).to_json())
            write_descriptions(artifact, module, facts, plan, ledger, recipe)
        return Path(output)

    def _described(self, options: DeviceOptions) -> str:
        """The target as the artifact names it."""
        return self.name

    def _lower(self, module: Module, options: DeviceOptions) -> DeviceLowering:
        step = module.graph("step").copy(dims=step_sizes(1, options.context, options.chunk))
        lowerings = Lowerings(self._lowerings, DEVICE.name)
        lowering = DeviceLowering(module, step, DEVICE, options.chunk, options.context, lowerings)
        try:
            lowering.run()
        except SlmError as error:
            raise type(error)(f"target {self.name}: {error}") from error
        return lowering

    def _link(self, artifact: ArtifactWriter, name: str, code: bytes) -> None:
        runtime = Path(__file__).parent / "runtime"
        machine = [runtime / file for file in ("device.h", "device.c", self.interface.source)]
        program, library = artifact.file("program.c"), artifact.file(f"lib{name}.so")
        with tempfile.TemporaryDirectory(prefix="slmopt-build-") as directory:
            path = Path(directory) / "code.c"
            path.write_text(emit_code(code))
            flags = ["-Wl,--strip-all", "-ldl"]
            link_library([], program, library, name, sources=[path], machine=machine, flags=flags)


def _stage(what: str, report: BuildReport) -> Callable[[int, int], None]:
    return lambda done, total: report(what, done, total)


class OpenClBackend(DeviceBackend):
    """Devices of OpenCL: the library holds source, which the device's driver compiles when a model is opened."""

    name = OPENCL.name
    summary = OPENCL.summary
    interface = OPENCL

    def devices(self) -> list[str]:
        """The devices of this machine, by name."""
        return list_opencl_devices(self.interface.libraries)


class CudaBackend(DeviceBackend):
    """NVIDIA's devices: the library holds machine code for the target's `arch`, and PTX for newer ones."""

    name = CUDA.name
    summary = CUDA.summary
    interface = CUDA

    def devices(self) -> list[str]:
        """The devices of this machine, by name."""
        return list_cuda_devices(self.interface.libraries)

    def missing_compiler(self) -> list[str]:
        """What to install before anything can be compiled."""
        return [*super().missing_compiler(), *([] if find_nvcc() else NVCC_PACKAGES)]

    def code(self, source: str, options: DeviceOptions) -> bytes:
        """What a library keeps of the kernels' source."""
        return compile_cuda(source, options.architectures)

    def _described(self, options: DeviceOptions) -> str:
        return f"{self.name}:arch={'+'.join(options.architectures)}"
