"""Backends for processors: kernels and step program through TVM, linked with the C runtime into one shared library.

What differs from one kind of processor to another is data: the instruction sets of its machine, the compiler that links
for it. `cpu` and `arm` are two names of one class.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

from slmopt.artifact import ArtifactWriter, link_library
from slmopt.backend import BuildReport
from slmopt.backends.tvm.backend import CHUNK, GeneratedBackend, Stage
from slmopt.backends.tvm.build import build_object, known_attributes
from slmopt.backends.tvm.cache import KEY_BLOCK
from slmopt.backends.tvm.emit import ProgramFacts, emit_program
from slmopt.backends.tvm.isa import Isa, Isas
from slmopt.backends.tvm.lower import Lowering
from slmopt.backends.tvm.lowerings import Lowerings
from slmopt.backends.tvm.plan import Plan
from slmopt.backends.tvm.sizes import check_options, read_sizes
from slmopt.cross import compiler_packages, find_compiler, host_machine, require_compiler
from slmopt.emulation import emulator_packages, find_runner
from slmopt.errors import InputError
from slmopt.ir.graph import Module
from slmopt.ir.step import step_sizes
from slmopt.offers import Offers
from slmopt.target import Target

__all__ = ["Processor", "ProcessorOptions"]


@dataclass(frozen=True)
class ProcessorOptions:
    """The options of a target: `isa` by name or by its file, positions of context, tokens of one step."""

    isa: Isa
    context: int
    chunk: int = CHUNK


class Processor(GeneratedBackend[ProcessorOptions, list[bytes]]):
    """Compiles a module with a @step graph for one kind of processor, with the instruction sets and lowerings on offer.

    A backend is a subclass that says which kind; `attributes` maps what LLVM calls the extensions of a named processor
    to what the runtime checks for. Its code is object files.
    """

    machine: ClassVar[str]  # as LLVM and Linux call it
    options: ClassVar[tuple[str, ...]] = ("chunk", "context", "isa")
    attributes: ClassVar[Mapping[str, str]] = {}

    def __init__(self, offers: Offers) -> None:
        super().__init__(offers)
        self.isas = Isas(offers.isas, self.machine)

    def status(self) -> dict[str, Any]:
        """What this machine can do with the target, and which packages would add to it."""
        compiler, native = find_compiler(self.machine), self.machine == host_machine()
        runner = None if native else find_runner(self.machine)
        install = [*([] if compiler else compiler_packages(self.machine)),
                   *([] if native else emulator_packages(self.machine))]  # fmt: skip
        return {
            "compile": compiler is not None, "compiler": None if compiler is None else " ".join(compiler),
            "run": native, "emulate": None if runner is None else " ".join(runner), "isa": self._detected(),
            "isas": self.isas.names(), "install": install,
        }  # fmt: skip

    def _detected(self) -> str | None:
        try:
            return self.isas.detect().name
        except InputError:
            return None

    def choose_isa(self, target: Target) -> Isa:
        """The instruction set that a target names; else the best that its named processor has, or this machine."""
        name, cpu = target.options.get("isa"), target.options.get("cpu")
        if cpu is None:
            return self.isas.detect() if name is None else self.isas.load(name)
        sets = [self.isas.load(each) for each in (self.isas.names() if name is None else [name])]
        for isa in sets:
            has = known_attributes(isa.triple, cpu, [*(a[1:] for a in isa.attributes), *self.attributes])
            if all(attribute[1:] in has for attribute in isa.attributes):
                extra = [check for attribute, check in self.attributes.items() if attribute in has]
                checked = dict.fromkeys([*isa.cpu_features, *extra])
                return replace(isa, cpu=cpu, cpu_features=tuple(checked))
        raise InputError(f"target {target}: {cpu} has no {' or '.join(isa.name for isa in sets)}")

    def read_options(self, target: Target, module: Module) -> ProcessorOptions:
        """Parse a target's options for a module; InputError names what is wrong."""
        check_options(target, self.options)
        return ProcessorOptions(self.choose_isa(target), *read_sizes(target, module, CHUNK))

    def require_tools(self, target: Target) -> None:
        """InputError where no compiler links for the machine."""
        require_compiler(self.machine)

    def start(self, module: Module, options: ProcessorOptions) -> Lowering:
        """A lowering of the module's @step, not yet run."""
        capacity = -(-options.context // KEY_BLOCK) * KEY_BLOCK
        step = module.graph("step")
        step = step.copy(dims=step_sizes(step, 1, capacity, options.chunk))
        lowerings = Lowerings(self._lowerings, options.isa.name)
        return Lowering(module, step, options.isa, options.chunk, capacity, lowerings)

    def generate(self, lowering: Lowering, options: ProcessorOptions, stage: Stage) -> list[bytes]:
        """The code of all kernels that the lowering calls."""
        return build_object([call.kernel for call in lowering.calls], options.isa, stage)

    def describe(self, target: Target, options: ProcessorOptions) -> str:
        """The target as the artifact names it."""
        cpu = f",cpu={options.isa.cpu}" if "cpu" in target.options else ""
        return f"{self.name}:isa={options.isa.name}{cpu}"

    def features(self, options: ProcessorOptions) -> tuple[str, ...]:
        """What the processor must have that runs the library, as the runtime names it."""
        return options.isa.cpu_features

    def tune(self, module: Module, target: Target, *, rounds: int, report: BuildReport) -> str:
        """The target's instruction set as TOML, its matrix products as they run best here for the module's shapes."""
        from slmopt.backends.tvm.tuning import tune

        return tune(module, self.read_options(target, module).isa, rounds, report)

    def link(
        self, artifact: ArtifactWriter, lowering: Lowering, plan: Plan, facts: ProgramFacts, code: list[bytes],
        options: ProcessorOptions,
    ) -> None:  # fmt: skip
        """Write program.c and the library."""
        with tempfile.TemporaryDirectory(prefix="slmopt-build-") as directory:
            program = artifact.file("program.c")
            program.write_text(emit_program(lowering.calls, plan, facts))
            paths = []
            for index, data in enumerate(code):
                paths.append(Path(directory) / f"kernels{index}.o")
                paths[-1].write_bytes(data)
            library = artifact.file(f"lib{facts.name}.so")
            compiler = require_compiler(self.machine)
            link_library(paths, program, library, facts.name, compiler=compiler, flags=["-Wl,--strip-all"])
