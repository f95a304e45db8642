"""The checks there are: outputs, perplexity, metrics, compiling, a shell command."""

from __future__ import annotations

import math
import os
import subprocess
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slmopt.bisection.checks import Check, CheckText, Limit, Measured
from slmopt.errors import InputError, SlmError

if TYPE_CHECKING:
    from slmopt.calibrate import Calibration
    from slmopt.ir.graph import Module
    from slmopt.metrics import Document

__all__ = ["CommandCheck", "CompilesCheck", "OutputsCheck", "TextCheck", "Texts", "make_check"]

_CANNOT_TELL = (125, 126, 127)  # it says so (as to `git bisect run`), is not executable, was not found


@dataclass(frozen=True)
class Texts:
    """The text that metrics are measured on, as tokens; both None where no text was given."""

    calibration: Calibration | None = None
    documents: tuple[Document, ...] | None = None


def make_check(check: CheckText, texts: Texts, target: str | None = None) -> Check:
    """The check that was written; InputError where it needs a text and there is none."""
    if check.kind == "outputs":
        return OutputsCheck(check.text, check.limit)
    if check.kind == "compiles":
        from slmopt.plugins.discovery import registry

        return CompilesCheck(check.text, target or registry().default_target())
    if texts.calibration is None or texts.documents is None:
        raise InputError(f"check {check.text!r} needs a text to measure {check.kind} on: give one with --text")
    return TextCheck(check.text, check.kind, check.limit, _measurement(check.kind, texts.calibration, texts.documents))


def _measurement(
    kind: str, calibration: Calibration, documents: tuple[Document, ...]
) -> Callable[[Module], float]:  # fmt: skip
    """What measures a metric of a module; perplexity as the ledger of a pipeline has it."""
    if kind == "perplexity":
        from slmopt.evaluate import measure_perplexity

        return lambda module: measure_perplexity(module, calibration)
    from slmopt.metrics import ModuleSubject
    from slmopt.plugins.discovery import registry

    known = registry()
    metric = known.find_metric(kind)
    return lambda module: known.measure(metric, ModuleSubject(module), documents)


@dataclass
class OutputsCheck:
    """The largest difference of outputs from the original's, relative to the largest output, in float64.

    Without `inputs`: the logits of @forward on a probe and, where there is a @step, of @step as well. `inputs`: those
    of `graph`, by name, and all outputs of it are compared.
    """

    text: str
    limit: Limit
    inputs: Mapping[str, Any] | None = None
    graph: str = "forward"
    _probe: Any = None
    _expected: list[Any] = field(default_factory=list)

    def prepare(self, original: Module) -> Measured:
        """Run the original."""
        from slmopt.probe import make_probe

        if self.inputs is None:
            self._probe = make_probe(original)
        self._expected = self._run(original)
        if any(not bool(output.isfinite().all()) for output in self._expected):
            return Measured(False, math.inf, "the original's outputs are not finite numbers")
        return Measured(True, 0.0, "outputs differ by 0")

    def measure(self, module: Module) -> Measured:
        """Run a module and compare."""
        from slmopt.probe import relative_error

        try:
            found = self._run(module)
        except SlmError as cause:
            return Measured(False, math.inf, f"it cannot be run: {cause}")
        shapes = [[tuple(output.shape) for output in outputs] for outputs in (self._expected, found)]
        if self.inputs is None and len(found) > len(self._expected):  # @step came in
            shapes[0] = [*shapes[0], shapes[0][0]]
        if shapes[0] != shapes[1]:
            return Measured(False, math.inf, f"outputs have the shapes {shapes[1]}, the original's {shapes[0]}")
        expected = [*self._expected, *self._expected[:1]]
        error = max((relative_error(one, other) for one, other in zip(expected, found, strict=False)), default=0.0)
        words = f"outputs differ by {error:.3g} of the largest, {self.limit.words(0.0)} allowed"
        return Measured(self.limit.holds(error, 0.0), error, words)

    def _run(self, module: Module) -> list[Any]:
        import torch

        from slmopt.interpreter import run

        with torch.no_grad():
            if self.inputs is not None:
                graph = module.graph(self.graph)
                missing = [value.name for value in graph.inputs if value.name not in self.inputs]
                if missing:
                    raise InputError(f"graph @{graph.name}: no numbers are given for the input %{missing[0]}")
                return run(module, graph, [self.inputs[value.name] for value in graph.inputs], wide=True)
            outputs = [self._probe.forward(module, wide=True)]
            step = module.graphs.get("step")
            if step is not None and len(step.inputs) == 2 + step.states:
                outputs.append(self._probe.step(module, wide=True))
            return outputs


@dataclass
class TextCheck:
    """A number that is measured on a text, against a limit."""

    text: str
    name: str
    limit: Limit
    value_of: Callable[[Module], float]
    _original: float = math.nan

    def prepare(self, original: Module) -> Measured:
        """Measure the original."""
        self._original = self.value_of(original)
        return self._say(self._original)

    def measure(self, module: Module) -> Measured:
        """Measure a module."""
        try:
            return self._say(self.value_of(module))
        except SlmError as error:
            return Measured(False, math.inf if self.limit.below else -math.inf, f"it cannot be measured: {error}")

    def _say(self, value: float) -> Measured:
        words = f"{self.name} {value:.6g}, {self.limit.words(self._original)} allowed"
        return Measured(self.limit.holds(value, self._original), value, words)


@dataclass
class CompilesCheck:
    """The target's backend supports the module, after the passes it still wants, and builds it."""

    text: str
    target: str

    def prepare(self, original: Module) -> Measured:
        """Compile the original; InputError where the target is wrong."""
        from slmopt.plugins.discovery import registry
        from slmopt.target import parse_target

        target = parse_target(self.target)
        registry().find_backend(target.backend).pipeline(original, target)
        return self.measure(original)

    def measure(self, module: Module) -> Measured:
        """Compile a module into a directory that is removed again."""
        from slmopt.api import compile

        with tempfile.TemporaryDirectory(prefix="slmopt-bisect-") as directory:
            try:
                compile(module, self.target, Path(directory) / "artifact", verify=False)
            except SlmError as error:
                return Measured(False, None, f"it does not compile for {self.target}: {error}")
        return Measured(True, None, f"it compiles for {self.target}")


@dataclass
class CommandCheck:
    """A shell command that exits with 0 where the property holds.

    `{}` in the command, or the variable SLMOPT_MODULE, is the path of the module's IR text; its weights lie beside it.
    """

    command: str

    @property
    def text(self) -> str:
        """The command."""
        return self.command

    def prepare(self, original: Module) -> Measured:
        """Run it on the original."""
        return self.measure(original)

    def measure(self, module: Module) -> Measured:
        """Run it on a module; InputError where it cannot be run, or exits with 125: it cannot tell."""
        from slmopt.module_files import write_module

        with tempfile.TemporaryDirectory(prefix="slmopt-bisect-") as directory:
            path = Path(directory) / "module.slm"
            write_module(module, path)
            environment = {**os.environ, "SLMOPT_MODULE": str(path)}
            found = subprocess.run(self.command.replace("{}", str(path)), shell=True, env=environment,
                                   capture_output=True, text=True, errors="replace", check=False)  # fmt: skip
        said = (found.stderr.strip() or found.stdout.strip()).splitlines()[-1:]
        words = f"the command exits with {found.returncode}{f': {said[0][:200]}' if said else ''}"
        if found.returncode in _CANNOT_TELL:
            raise InputError(f"{words}; it must exit with 0 where the property holds, and with another code, but not "
                             f"with 125 to 127, where it does not: {self.command}")  # fmt: skip
        return Measured(found.returncode == 0, None, words)
