"""Targets whose code is generated through MLIR by IREE: this kind of processor, and Vulkan devices."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slmopt.artifact import ArtifactWriter, WeightsWriter
from slmopt.artifact_description import write_module_files
from slmopt.backend import BuildReport
from slmopt.backends.mlir.compiling import PACKAGES, compile_program, require_compiler
from slmopt.backends.mlir.program import Program, function_name, program_of
from slmopt.backends.tvm.sizes import check_options, read_sizes
from slmopt.errors import UnsupportedError
from slmopt.expectation import PROBE, expect
from slmopt.ir.graph import Module
from slmopt.target import Target

__all__ = ["Machine", "MlirBackend"]

_CHUNK = 16  # tokens of a large step: what is left of a prompt runs token by token, for padding would enter the state
_PROGRAM = "program.vmfb"
_COMMON = ("chunk", "context")


@dataclass(frozen=True)
class Machine:
    """What to compile for, and what is to run it."""

    compiled_for: str  # the name IREE's compiler has for it
    compile_flags: tuple[str, ...]
    device: str  # as slmopt.runtime.iree_program opens it
    processor_flags: tuple[str, ...]  # what /proc/cpuinfo must have
    described: str  # in the artifact's target
    apart: bool = False  # whether weights are widened by themselves: the compiler makes no good code of it elsewhere


class MlirBackend(ABC):
    """Compiles a module with a @step graph: the ops' torch references, traced, through torch-mlir and IREE."""

    name: str
    summary: str
    options: tuple[str, ...]  # of a target, besides those that all have

    @abstractmethod
    def machine(self, target: Target) -> Machine:
        """What the target's options ask for; InputError names what is wrong."""

    @abstractmethod
    def status(self) -> dict[str, Any]:
        """What this machine can do with the target."""

    def supports(self, module: Module, target: Target) -> list[str]:
        """What cannot be compiled, each by op and place; empty where everything can."""
        return self._program(module, target).problems()

    def pipeline(self, module: Module, target: Target) -> list[str]:
        """The passes this backend still wants for `module`, in the notation of recipes."""
        require_compiler()
        self._sizes(module, target)
        self.machine(target)
        return [] if "step" in module.graphs else ["incrementalize"]

    def build(
        self, module: Module, target: Target, output: str | Path, *, name: str | None = None,
        ledger: Mapping[str, Any] | None = None, recipe: str | None = None, report: BuildReport | None = None,
    ) -> Path:  # fmt: skip
        """Write the artifact directory `output`. Nothing is left there where it fails."""
        require_compiler()
        machine, program = self.machine(target), self._program(module, target)
        say: BuildReport = report or (lambda what, done, total: None)
        with ArtifactWriter(output) as artifact:
            say("program", 0, 1)
            try:
                code = compile_program(program.text(apart=machine.apart), machine.compiled_for, machine.compile_flags)
            except UnsupportedError as error:
                raise UnsupportedError(f"target {target} cannot compile @{module.name}:\n  {error}") from error
            say("program", 1, 1)
            artifact.write(_PROGRAM, code)
            parameters, weights = _write_weights(artifact, module, program, say)
            facts = {
                "name": name or str(module.metadata.get("name") or module.name), "recipe": recipe,
                "runtime": "iree", "program": _PROGRAM, "bytes": {"weights": weights.size},
                "target": f"{self.name}{',' if ':' in self.name else ':'}{machine.described}",
                "context": program.capacity, "chunk": max(program.sizes), "device": machine.device,
                "flags": list(machine.processor_flags), "parameters": parameters,
                "steps": {str(size): function_name(size) for size in program.sizes},
                "states": [{"shape": list(state.shape), "element": state.element} for state in program.states],
            }  # fmt: skip
            artifact.write(PROBE, expect(module, context=program.capacity).to_json())
            write_module_files(artifact, module, ledger, facts, weights_hash=weights.hash, packages=tuple(PACKAGES))
        return Path(output)

    def _program(self, module: Module, target: Target) -> Program:
        return program_of(module, *self._sizes(module, target))

    def _sizes(self, module: Module, target: Target) -> tuple[int, tuple[int, ...]]:
        """Positions of context, and the tokens of each step function."""
        check_options(target, (*_COMMON, *self.options))
        context, chunk = read_sizes(target, module, _CHUNK)
        return context, tuple(sorted({1, chunk}))


def _write_weights(
    artifact: ArtifactWriter, module: Module, program: Program, report: BuildReport
) -> tuple[dict[str, list[int]], WeightsWriter]:
    """weights.bin, every key once: where each part lies and how long it is, and what has written them."""
    places: dict[str, list[int]] = {}
    with artifact.weights() as weights:
        for done, weight in enumerate(program.weights):
            value = module.weights.stored(weight.key)
            for part, data in zip(weight.parts, weight.arrays(value), strict=True):
                places[part.key] = [weights.append(data), data.nbytes]
            report("weights", done + 1, len(program.weights))
    return places, weights
