"""The verbs: load, parse, optimize, compile, open, measure. Each imports what it needs when it is called."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slmopt.errors import InputError, UnsupportedError

if TYPE_CHECKING:
    from slmopt.backend import Backend
    from slmopt.ir.graph import Module
    from slmopt.pipeline import Budget, Pass
    from slmopt.recipe import Recipe
    from slmopt.runtime import LanguageModel
    from slmopt.target import Target

__all__ = ["compile", "load", "measure", "open", "optimize", "parse", "prepare", "resolve_recipe"]

TEXT_TOKENS = 4096  # of a calibration text, so many tokens are looked at after each lossy pass

Report = Callable[[str, float], None]


def _silent(what: str, share: float) -> None:
    return None


def load(source: Any, **options: Any) -> Module:
    """Trace a Hugging Face directory or a torch.nn.Module into the IR, or read IR text (.slm).

    Raises InputError where the source cannot be read, UnsupportedError where it asks for what has no form in the IR.
    """
    from slmopt.plugins.discovery import registry

    known = registry()
    known.add_ops()
    return known.find_frontend(source).load(source, **options)


def parse(text: str) -> Module:
    """The module that IR text describes, ops of plugins included; it has no weights. IRError says what is wrong."""
    from slmopt.ir.text import parse_module
    from slmopt.plugins.discovery import registry

    registry().add_ops()
    return parse_module(text)


def optimize(
    module: Module, recipe: str | os.PathLike[str] | Recipe | Sequence[str | Pass] = "f32", *, text: str | None = None,
    text_tokens: int = TEXT_TOKENS, verify: bool = True, target: str | None = None, report: Report = _silent,
    observe: Callable[[Pass, Module], None] | None = None,
) -> Module:  # fmt: skip
    """A copy of `module` after the passes of a recipe: a preset, a TOML file, or a list of passes.

    After each pass the IR is verified and a probe compares the numbers; what was measured is in the result's `ledger`.
    `text` (contents, not a path) calibrates, gives perplexity and enforces the recipe's budget. `verify=False` checks
    structure alone. Raises ContractError where a pass drifts or leaves the budget, InputError for a wrong recipe.
    """
    passes, budget = resolve_recipe(recipe)
    return _run(
        module, passes, budget, text=text, text_tokens=text_tokens, verify=verify, target=target, report=report,
        observe=observe,
    )  # fmt: skip


def _run(
    module: Module, passes: Sequence[Pass], budget: Budget, *, text: str | None = None, text_tokens: int = TEXT_TOKENS,
    verify: bool = True, target: str | None = None, report: Report = _silent,
    observe: Callable[[Pass, Module], None] | None = None,
) -> Module:  # fmt: skip
    from slmopt.calibrate import tokenize_documents
    from slmopt.pipeline import Context, Pipeline
    from slmopt.plugins.discovery import registry
    from slmopt.target import parse_target

    known = registry()
    known.add_ops()
    known.check_rules()
    calibration = None if text is None else tokenize_documents(module.metadata, text).head(text_tokens)
    parsed = None if target is None else parse_target(target)
    context = Context(parsed, calibration, report, known.rules_for, load=load)
    result = module.copy()
    pipeline = Pipeline(passes, budget, verify=verify, known=known.working_passes, observers=known.observers())
    pipeline.run(result, context, observe)
    return result


def resolve_recipe(recipe: str | os.PathLike[str] | Recipe | Sequence[str | Pass]) -> tuple[list[Pass], Budget]:
    """The passes of a recipe, and its budget; InputError where it is wrong."""
    from slmopt.options import build_pass
    from slmopt.pipeline import Budget
    from slmopt.plugins.discovery import registry
    from slmopt.recipe import Recipe

    known = registry()
    if isinstance(recipe, str | os.PathLike):
        recipe = known.find_recipe(recipe if isinstance(recipe, str) else Path(recipe))
    if isinstance(recipe, Recipe):
        return recipe.build(known.find_pass), recipe.budget
    return [build_pass(item, known.find_pass) if isinstance(item, str) else item for item in recipe], Budget()


def compile(
    source: Module | str | os.PathLike[str], target: str | None = None, output: str | os.PathLike[str] | None = None, *,
    recipe: str | os.PathLike[str] | Recipe | Sequence[str | Pass] | None = None, name: str | None = None,
    text: str | None = None, text_tokens: int = TEXT_TOKENS, verify: bool = True, report: Report = _silent,
    observe: Callable[[Module], None] | None = None,
) -> Path:  # fmt: skip
    """Compile a module, or the model at a path, into the artifact directory `output`; returns its path.

    `recipe` is applied first, then the passes that the backend still wants. Without `target`, it is the first that this
    machine runs; without `output`, `build/NAME`.
    `observe` sees the module that the backend gets; its `ledger` has the times that an artifact's ledger leaves out.
    Raises UnsupportedError with everything the backend cannot do, by op and place.
    """
    from slmopt.artifact import check_output
    from slmopt.plugins.discovery import registry
    from slmopt.target import parse_target

    parsed = parse_target(target or registry().default_target())
    backend = registry().find_backend(parsed.backend)
    passes = None if recipe is None else resolve_recipe(recipe)  # a wrong recipe shows before anything slow
    if output is not None:
        check_output(output)
    report("load", 0.0)
    module = prepare(source, parsed, backend, passes, text=text, text_tokens=text_tokens, verify=verify, report=report)
    if problems := backend.supports(module, parsed):
        raise UnsupportedError(f"target {parsed} cannot compile @{module.name}:\n  " + "\n  ".join(problems))
    if observe is not None:
        observe(module)
    rows = module.ledger.rows if module.ledger is not None else []
    path = Path(output) if output is not None else Path("build") / (name or module.name)
    return backend.build(
        module, parsed, path, name=name, recipe=", ".join(row.name for row in rows[1:]) or None,
        ledger=None if module.ledger is None else module.ledger.to_json(timings=False),
        report=lambda what, done, total: report(what, done / max(total, 1)),
    )  # fmt: skip


def prepare(
    source: Module | str | os.PathLike[str], target: Target, backend: Backend,
    passes: tuple[Sequence[Pass], Budget] | None, *, text: str | None = None, text_tokens: int = TEXT_TOKENS,
    verify: bool = True, report: Report = _silent,
) -> Module:  # fmt: skip
    """The module that `backend` gets of a source: after a recipe's passes, and those that the backend still wants."""
    from slmopt.ir.graph import Module

    module = source if isinstance(source, Module) else load(source)
    _check_weights(module)
    backend.pipeline(module, target)  # refuses wrong options of the target before the passes take their time
    options: dict[str, Any] = {"verify": verify, "target": str(target), "report": report}
    if passes is not None:
        module = _run(module, *passes, text=text, text_tokens=text_tokens, **options)
    wanted = backend.pipeline(module, target)
    return _run(module, *resolve_recipe(wanted), **options) if wanted else module


def _check_weights(module: Module) -> None:
    for key in module.weight_types():
        if key not in module.weights:
            raise InputError(f"@{module.name} has no weights (@{key} is missing): IR text alone cannot be compiled; "
                             "give the model's directory")  # fmt: skip


def open(path: str | os.PathLike[str], threads: int = 0) -> LanguageModel:
    """Open a compiled artifact; see `slmopt.runtime.open`."""
    from slmopt.runtime import open as open_artifact

    return open_artifact(path, threads)


def measure(
    source: Module | LanguageModel | str | os.PathLike[str], text: str, metrics: Sequence[str] = ("perplexity",), *,
    separator: str = "<|endoftext|>", threads: int = 0,
) -> dict[str, float]:  # fmt: skip
    """Metrics of a module, an opened model, or the model or artifact at a path, on a text (contents, not a path).

    Documents are split at `separator`; each begins with an empty context and is cut at the context's end. `threads` is
    for an artifact that is opened here. Raises InputError for an unknown metric, or where there is nothing to predict.
    """
    from slmopt.evaluate import open_subject
    from slmopt.metrics import read_documents
    from slmopt.plugins.discovery import registry

    known = registry()
    found = [known.find_metric(name) for name in dict.fromkeys(metrics)]
    with open_subject(source, threads) as subject:
        documents = read_documents(subject, text, separator)
        return {metric.name: known.measure(metric, subject, documents) for metric in found}
