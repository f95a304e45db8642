"""What every backend has in common whose kernels TVM generates and whose step is a C program in a shared library."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, Generic, Protocol, TypeVar

from slmopt.artifact import ArtifactWriter
from slmopt.backend import BuildReport
from slmopt.backends.tvm.description import write_descriptions
from slmopt.backends.tvm.emit import ProgramFacts
from slmopt.backends.tvm.lower import Lowering
from slmopt.backends.tvm.plan import Plan, plan_program
from slmopt.errors import SlmError, UnsupportedError
from slmopt.expectation import PROBE, expect
from slmopt.ir.graph import Module
from slmopt.offers import Offers
from slmopt.target import Target

__all__ = ["CHUNK", "GeneratedBackend", "Stage", "StepSizes"]

CHUNK = 128  # most tokens of one step: long prompts run in steps of this many
Stage = Callable[[int, int], None]  # told how much of a stage is done, and of how much


class StepSizes(Protocol):
    """What the options of every target say: positions of context, tokens of one step."""

    @property
    def context(self) -> int: ...

    @property
    def chunk(self) -> int: ...


Options = TypeVar("Options", bound=StepSizes)
Code = TypeVar("Code")


def _silent(what: str, done: int, total: int) -> None:
    return None


class GeneratedBackend(ABC, Generic[Options, Code]):
    """Compiles a module with a @step graph: lowered to kernel calls, planned, its kernels generated, and linked.

    A subclass says what its options are, which kernels an op becomes, what `Code` they are compiled to, and how that
    and the C program become a library.
    """

    name: ClassVar[str]
    summary: ClassVar[str]

    def __init__(self, offers: Offers) -> None:
        self._lowerings = offers.lowerings

    @abstractmethod
    def status(self) -> dict[str, Any]:
        """What this machine can do with the target, and which packages would add to it."""

    @abstractmethod
    def read_options(self, target: Target, module: Module) -> Options:
        """Parse a target's options for a module; InputError names what is wrong."""

    @abstractmethod
    def require_tools(self, target: Target) -> None:
        """InputError where something that a build needs is not installed."""

    @abstractmethod
    def start(self, module: Module, options: Options) -> Lowering:
        """A lowering of the module's @step, not yet run."""

    @abstractmethod
    def generate(self, lowering: Lowering, options: Options, stage: Stage) -> Code:
        """The code of all kernels that the lowering calls."""

    @abstractmethod
    def describe(self, target: Target, options: Options) -> str:
        """The target as the artifact names it."""

    def features(self, options: Options) -> tuple[str, ...]:
        """What the processor must have that runs the library, as the runtime names it."""
        return ()

    @abstractmethod
    def link(
        self, artifact: ArtifactWriter, lowering: Lowering, plan: Plan, facts: ProgramFacts, code: Code,
        options: Options,
    ) -> None:  # fmt: skip
        """Write program.c and the library."""

    def supports(self, module: Module, target: Target) -> list[str]:
        """What cannot be compiled, each by op and place; empty where everything can."""
        return self._lower(module, self.read_options(target, module)).problems

    def pipeline(self, module: Module, target: Target) -> list[str]:
        """The passes this backend still wants for `module`, in the notation of recipes."""
        self.read_options(target, module)
        self.require_tools(target)  # said before passes take their time
        return _wanted_passes(module)

    def build(
        self, module: Module, target: Target, output: str | Path, *, name: str | None = None,
        ledger: Any = None, recipe: str | None = None, report: BuildReport = _silent,
    ) -> Path:  # fmt: skip
        """Write the artifact directory `output`. Nothing is left there where it fails."""
        options = self.read_options(target, module)
        name = name or str(module.metadata.get("name") or module.name)
        with ArtifactWriter(output) as artifact:
            lowering = self._lower(module, options)
            if lowering.problems:
                raise UnsupportedError(f"target {target} cannot compile @{module.name}:\n  "
                                       + "\n  ".join(lowering.problems))  # fmt: skip
            plan = plan_program(lowering.calls, lowering.states)
            code = self.generate(lowering, options, _stage("kernels", report))
            with artifact.weights() as weights:
                lowering.weights.write(weights, _stage("weights", report))
            facts = ProgramFacts(
                name, int(module.metadata["vocab"]), options.context, options.chunk, weights.size, weights.hash,
                self.features(options), self.describe(target, options),
            )  # fmt: skip
            self.link(artifact, lowering, plan, facts, code, options)
            report("link", 1, 1)
            artifact.write(PROBE, expect(module, context=options.context).to_json())
            write_descriptions(artifact, module, facts, plan, ledger, recipe)
        return Path(output)

    def _lower(self, module: Module, options: Options) -> Lowering:
        lowering = self.start(module, options)
        try:
            lowering.run()
        except SlmError as error:
            raise type(error)(f"target {self.name}: {error}") from error
        return lowering


def _stage(what: str, report: BuildReport) -> Stage:
    return lambda done, total: report(what, done, total)


def _wanted_passes(module: Module) -> list[str]:
    """`fuse` where linears quantize their own inputs; `incrementalize` where there is no @step."""
    stepped = "step" in module.graphs
    graph = module.graph("step" if stepped else "forward")
    rounds = any(op.attributes.get("act") == "q8" for op in graph.walk() if op.name == "linear")
    return [*(["fuse"] if rounds else []), *([] if stepped else ["incrementalize"])]
