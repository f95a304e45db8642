"""The backends of devices: one class, and the description of an interface for each."""

from __future__ import annotations

import tempfile
from abc import abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from slmopt.artifact import ArtifactWriter, link_library
from slmopt.backends.gpu.compiling import kernel_source
from slmopt.backends.gpu.device_code import DeviceKernel
from slmopt.backends.gpu.devices import list_cuda_devices, list_opencl_devices
from slmopt.backends.gpu.emit import emit_code, emit_device_program
from slmopt.backends.gpu.interfaces import CUDA, OPENCL, Interface
from slmopt.backends.gpu.lowering import DeviceLowering
from slmopt.backends.gpu.nvcc import NVCC_PACKAGES, compile_cuda, find_nvcc, parse_architectures
from slmopt.backends.gpu.packed import DEVICE
from slmopt.backends.tvm.backend import CHUNK, GeneratedBackend, Stage
from slmopt.backends.tvm.emit import ProgramFacts
from slmopt.backends.tvm.lower import Lowering
from slmopt.backends.tvm.lowerings import Lowerings
from slmopt.backends.tvm.plan import Plan
from slmopt.backends.tvm.sizes import check_options, read_sizes
from slmopt.cross import compiler_packages, find_compiler, host_machine
from slmopt.errors import InputError
from slmopt.ir.graph import Module
from slmopt.ir.step import step_sizes
from slmopt.target import Target

__all__ = ["CompiledKernels", "CudaBackend", "DeviceBackend", "DeviceOptions", "OpenClBackend"]


@dataclass(frozen=True)
class DeviceOptions:
    """The options of a target: positions of context, tokens of one step, which device, and code for which."""

    context: int
    chunk: int
    device: str
    architectures: tuple[str, ...]


@dataclass(frozen=True)
class CompiledKernels:
    """The kernels of a program by name, their source, and what the library keeps of it."""

    kernels: list[DeviceKernel]
    source: str
    code: bytes


class DeviceBackend(GeneratedBackend[DeviceOptions, CompiledKernels]):
    """Compiles a module with a @step graph for the devices of an interface, with the lowerings on offer for them."""

    interface: ClassVar[Interface]

    @abstractmethod
    def devices(self) -> list[str]:
        """The devices of this machine, by name."""

    def missing_compiler(self) -> list[str]:
        """What to install before anything can be compiled."""
        machine = host_machine()
        return [] if find_compiler(machine) else list(compiler_packages(machine))

    def compile_source(self, source: str, options: DeviceOptions) -> bytes:
        """What a library keeps of the kernels' source."""
        return source.encode()

    def status(self) -> dict[str, Any]:
        """What this machine can do with the target, and which packages would add to it."""
        devices, missing = self.devices(), self.missing_compiler()
        install = [*missing, *([] if devices else self.interface.install)]
        return {"compile": not missing, "run": bool(devices), "devices": devices, "install": install}

    def read_options(self, target: Target, module: Module) -> DeviceOptions:
        """Parse a target's options for a module; InputError names what is wrong."""
        check_options(target, ("chunk", "context", *self.interface.options))
        context, chunk = read_sizes(target, module, CHUNK)
        options = target.options
        return DeviceOptions(context, chunk, options.get("device", ""), parse_architectures(options.get("arch")))

    def require_tools(self, target: Target) -> None:
        """InputError where a compiler is missing."""
        if missing := self.missing_compiler():
            raise InputError(f"target {target} cannot be compiled for here: install {', '.join(missing)}")

    def start(self, module: Module, options: DeviceOptions) -> Lowering:
        """A lowering of the module's @step, not yet run."""
        step = module.graph("step")
        step = step.copy(dims=step_sizes(step, 1, options.context, options.chunk))
        lowerings = Lowerings(self._lowerings, DEVICE.name)
        return DeviceLowering(module, step, DEVICE, options.chunk, options.context, lowerings)

    def generate(self, lowering: Lowering, options: DeviceOptions, stage: Stage) -> CompiledKernels:
        """The code of all kernels that the lowering calls."""
        called = {call.kernel.name: call.kernel for call in lowering.calls}
        kernels = [kernel for _, kernel in sorted(called.items()) if isinstance(kernel, DeviceKernel)]
        source = kernel_source(kernels, self.interface, stage)
        return CompiledKernels(kernels, source, self.compile_source(source, options))

    def describe(self, target: Target, options: DeviceOptions) -> str:
        """The target as the artifact names it."""
        said = self.described(options)
        return f"{self.name}:{','.join(said)}" if said else self.name

    def described(self, options: DeviceOptions) -> list[str]:
        """The options that are part of the target's name."""
        return [f"device={options.device}"] if options.device else []

    def link(
        self, artifact: ArtifactWriter, lowering: Lowering, plan: Plan, facts: ProgramFacts, code: CompiledKernels,
        options: DeviceOptions,
    ) -> None:  # fmt: skip
        """Write the kernels' source, program.c and the library."""
        artifact.write(f"kernels{self.interface.suffix}", code.source)
        program, library = artifact.file("program.c"), artifact.file(f"lib{facts.name}.so")
        size = len(code.code)
        program.write_text(emit_device_program(lowering.calls, code.kernels, plan, facts, options.device, size))
        runtime = Path(__file__).parent / "runtime"
        machine = [runtime / file for file in ("device.h", "device.c", self.interface.source)]
        with tempfile.TemporaryDirectory(prefix="slmopt-build-") as directory:
            path = Path(directory) / "code.c"
            path.write_text(emit_code(code.code))
            flags = ["-Wl,--strip-all", "-ldl"]
            link_library([], program, library, facts.name, sources=[path], machine=machine, flags=flags)


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

    def compile_source(self, source: str, options: DeviceOptions) -> bytes:
        """What a library keeps of the kernels' source."""
        return compile_cuda(source, options.architectures)

    def described(self, options: DeviceOptions) -> list[str]:
        """The options that are part of the target's name."""
        return [f"arch={'+'.join(options.architectures)}", *super().described(options)]
