"""The strategies draw what they promise, within few examples."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import HealthCheck, Phase, find, given, settings

from slmopt.interpreter import forward
from slmopt.ir.graph import Graph, Module, Op, Weight
from slmopt.ir.text import parse_module
from slmopt.ir.verify import verify
from slmopt.testing import language_models, modules, weights
from slmopt.testing.weights import kinds_of

SOON = settings(max_examples=150, deadline=None, database=None, phases=(Phase.generate,),
                suppress_health_check=list(HealthCheck))  # fmt: skip


def _ops(module: Module, name: str) -> list[Op]:
    return [op for op in module.graph().walk() if op.name == name]


def _keys(graph: Graph) -> list[str]:
    return [o.key for op in graph.walk() for o in op.operands if isinstance(o, Weight)]


def _widths(module: Module) -> set[object]:
    return {op.result.shape[-1] for op in _ops(module, "glu")}


LANGUAGE_MODELS: dict[str, Callable[[Module], bool]] = {
    "a window": lambda m: any(op.attributes["window"] for op in _ops(m, "attention")),
    "a soft cap": lambda m: any(op.attributes["softcap"] for op in _ops(m, "attention")),
    "grouped heads": lambda m: any(1 < int(op.value(1).shape[1]) < int(op.value(0).shape[1])  # type: ignore[arg-type]
                                   for op in _ops(m, "attention")),
    "slopes": lambda m: any(len(op.operands) == 6 for op in _ops(m, "attention")),
    "sinks": lambda m: any(len(op.operands) == 7 for op in _ops(m, "attention")),
    "attention written out": lambda m: bool(_ops(m, "softmax")),
    "rotary pairs": lambda m: any(op.attributes["style"] == "interleaved" for op in _ops(m, "rope")),
    "rotary embedding of part of a head": lambda m: any(op.value(0).shape[-1] != op.value(1).shape[-1]
                                                        for op in _ops(m, "rope")),
    "a norm written out": lambda m: bool(_ops(m, "rsqrt")),
    "unequal widths": lambda m: len(_widths(m)) > 1,
    "shared weights": lambda m: len(set(_keys(m.graph()))) < len(_keys(m.graph())),
    "a matrix stored by columns": lambda m: any(key.endswith("columns") for key in _keys(m.graph())),
    "quantized weights": lambda m: any(str(type.element) == "q4g32" for type in m.weight_types().values()),
    "unusual numbers": lambda m: bool(kinds_of(m)),
}  # fmt: skip
MODULES: dict[str, Callable[[Module], bool]] = {
    "several outputs": lambda m: len(m.graph().outputs) > 1,
    "one output twice": lambda m: len(set(m.graph().outputs)) < len(m.graph().outputs),
    "states": lambda m: m.graph().states == 2,
    "two graphs": lambda m: len(m.graphs) == 2,
    "an unused input": lambda m: any(not v.uses and v not in m.graph().outputs for v in m.graph().inputs),
    "an unused result": lambda m: any(not v.uses and v not in m.graph().outputs for v in m.graph().values() if v.op),
    "an absent operand": lambda m: any(None in op.operands for op in m.graph().walk()),
    "width 1": lambda m: m.graph().inputs[0].shape[-1] == 1,
    "width 7": lambda m: m.graph().inputs[0].shape[-1] == 7,
    "odd characters in a key": lambda m: not "".join(_keys(m.graph())).isascii(),
}


@pytest.mark.parametrize("what", LANGUAGE_MODELS)
def test_language_models_have(what: str) -> None:
    assert LANGUAGE_MODELS[what](find(language_models(), LANGUAGE_MODELS[what], settings=SOON))


@pytest.mark.parametrize("what", MODULES)
def test_modules_have(what: str) -> None:
    assert MODULES[what](find(modules(), MODULES[what], settings=SOON))


@settings(max_examples=30, deadline=None)
@given(language_models())
def test_language_models_run_and_print(module: Module) -> None:
    verify(module, weights=True)
    assert parse_module(str(module)) == module
    with torch.no_grad():
        logits = forward(module, torch.zeros(2, 4, dtype=torch.int64))
    assert logits.shape == (2, 4, module.metadata["vocab"])
    assert bool(logits.isfinite().all())


@settings(max_examples=60, deadline=None)
@given(modules() | modules(executable=False))
def test_modules_keep_every_rule(module: Module) -> None:
    verify(module, weights=True)
    assert parse_module(str(module)) == module


@settings(max_examples=60, deadline=None)
@given(weights(3, 8))
def test_weights_are_finite(found: torch.Tensor) -> None:
    assert found.shape == (3, 8)
    assert found.dtype == torch.float32
    assert bool(found.isfinite().all())


def test_weights_have_outliers_and_denormals() -> None:
    assert float(find(weights(8, 8), lambda w: float(w.abs().max()) > 50, settings=SOON).abs().max()) > 50
    tiny = find(weights(8, 8), lambda w: 0 < float(w.abs().max()) < 1e-38, settings=SOON)
    assert 0 < float(tiny.abs().max()) < 1e-38
