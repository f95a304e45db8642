"""Backends for processors: kernels and step program through TVM, linked with the C runtime into one shared library.

What differs from one kind of processor to another is data: the instruction sets of its machine, the compiler that links
for it. `cpu` and `arm` are two names of one class.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

from slmopt.artifact import ArtifactWriter, link_library
from slmopt.backend import BuildReport
from slmopt.backends.tvm.build import build_object, known_attributes
from slmopt.backends.tvm.cache import KEY_BLOCK
from slmopt.backends.tvm.description import write_descriptions
from slmopt.backends.tvm.emit import ProgramFacts, emit_program
from slmopt.backends.tvm.isa import Isa, Isas
from slmopt.backends.tvm.lower import Lowering
from slmopt.backends.tvm.lowerings import Lowerings
from slmopt.backends.tvm.plan import Plan, plan_program
from slmopt.backends.tvm.sizes import check_options, read_sizes
from slmopt.backends.tvm.wanted_passes import wanted_passes
from slmopt.cross import compiler_packages, find_compiler, host_machine, require_compiler
from slmopt.emulation import emulator_packages, find_runner
from slmopt.errors import InputError, SlmError, UnsupportedError
from slmopt.expectation import PROBE, expect
from slmopt.ir.graph import Module
from slmopt.ir.step import step_sizes
from slmopt.offers import Offers
from slmopt.target import Target

__all__ = ["Processor", "ProcessorOptions"]

_CHUNK = 128  # most tokens of one step: long prompts run in steps of this many


@dataclass(frozen=True)
class ProcessorOptions:
    """The options of a target: `isa` by name or by its file, positions of context, tokens of one step."""

    isa: Isa
    context: int
    chunk: int = _CHUNK

    @classmethod
    def of(cls, target: Target, module: Module, backend: Processor) -> ProcessorOptions:
        """Parse a target's options for a module; InputError names what is wrong."""
        check_options(target, backend.options)
        return cls(backend.choose_isa(target), *read_sizes(target, module, _CHUNK))


def _silent(what: str, done: int, total: int) -> None:
    return None


class Processor:
    """Compiles a module with a @step graph for one kind of processor, with the instruction sets and lowerings on offer.

    A backend is a subclass that says which kind; `attributes` maps what LLVM calls the extensions of a named processor
    to what the runtime checks for.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    machine: ClassVar[str]  # as LLVM and Linux call it
    options: ClassVar[tuple[str, ...]] = ("chunk", "context", "isa")
    attributes: ClassVar[Mapping[str, str]] = {}

    def __init__(self, offers: Offers) -> None:
        self.isas = Isas(offers.isas, self.machine)
        self._lowerings = offers.lowerings

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

    def supports(self, module: Module, target: Target) -> list[str]:
        """What cannot be compiled, each by op and place; empty where everything can."""
        return self._lower(module, ProcessorOptions.of(target, module, self)).problems

    def pipeline(self, module: Module, target: Target) -> list[str]:
        """The passes this backend still wants for `module`, in the notation of recipes."""
        ProcessorOptions.of(target, module, self)
        require_compiler(self.machine)  # said before passes take their time
        return wanted_passes(module)

    def build(
        self, module: Module, target: Target, output: str | Path, *, name: str | None = None,
        ledger: Any = None, recipe: str | None = None, report: BuildReport = _silent,
    ) -> Path:  # fmt: skip
        """Write the artifact directory `output`. Nothing is left there where it fails."""
        options = ProcessorOptions.of(target, module, self)
        name = name or str(module.metadata.get("name") or module.name)
        with ArtifactWriter(output) as artifact:
            lowering = self._lower(module, options)
            if lowering.problems:
                raise UnsupportedError(f"target {target} cannot compile @{module.name}:\n  "
                                       + "\n  ".join(lowering.problems))  # fmt: skip
            plan = plan_program(lowering.calls, lowering.states)
            kernels = [call.kernel for call in lowering.calls]
            objects = build_object(kernels, options.isa, lambda done, total: report("kernels", done, total))
            with artifact.weights() as weights:
                lowering.weights.write(weights, lambda done, total: report("weights", done, total))
            cpu = f",cpu={options.isa.cpu}" if "cpu" in target.options else ""
            facts = ProgramFacts(
                name, int(module.metadata["vocab"]), options.context, options.chunk, weights.size, weights.hash,
                options.isa.cpu_features, f"{self.name}:isa={options.isa.name}{cpu}",
            )  # fmt: skip
            self._link(artifact, lowering, plan, facts, objects)
            report("link", 1, 1)
            artifact.write(PROBE, expect(module, context=options.context).to_json())
            write_descriptions(artifact, module, facts, plan, ledger, recipe)
        return Path(output)

    def tune(self, module: Module, target: Target, *, rounds: int, report: BuildReport = _silent) -> str:
        """The target's instruction set as TOML, its matrix products as they run best here for the module's shapes."""
        from slmopt.backends.tvm.tuning import tune

        return tune(module, ProcessorOptions.of(target, module, self).isa, rounds, report)

    def _lower(self, module: Module, options: ProcessorOptions) -> Lowering:
        capacity = -(-options.context // KEY_BLOCK) * KEY_BLOCK
        step = module.graph("step").copy(dims=step_sizes(1, capacity, options.chunk))
        lowerings = Lowerings(self._lowerings, options.isa.name)
        lowering = Lowering(module, step, options.isa, options.chunk, capacity, lowerings)
        try:
            lowering.run()
        except SlmError as error:
            raise type(error)(f"target {self.name}: {error}") from error
        return lowering

    def _link(
        self, artifact: ArtifactWriter, lowering: Lowering, plan: Plan, facts: ProgramFacts, objects: list[bytes]
    ) -> None:
        import tempfile

        with tempfile.TemporaryDirectory(prefix="slmopt-build-") as directory:
            program = artifact.file("program.c")
            program.write_text(emit_program(lowering.calls, plan, facts))
            paths = []
            for index, data in enumerate(objects):
                paths.append(Path(directory) / f"kernels{index}.o")
                paths[-1].write_bytes(data)
            library = artifact.file(f"lib{facts.name}.so")
            compiler = require_compiler(self.machine)
            link_library(paths, program, library, facts.name, compiler=compiler, flags=["-Wl,--strip-all"])
