"""Statistics of activations equal a direct computation, and are bounded in what they run and keep."""

from __future__ import annotations

import pytest
import torch

from slmopt.calibrate import Calibration
from slmopt.errors import ContractError, IRError
from slmopt.interpreter import run
from slmopt.ir.graph import Module, Value
from slmopt.ir.weights import watch_loads
from slmopt.pipeline import Context
from slmopt.statistics import collect_statistics
from tests.passes.toys import toy

BODY = """
    %e = embedding(%ids, weight @table : f32[11, 6]) : f32[b, s, 6]
    %h = linear(%e, weight @up : f32[5, 6]) : f32[b, s, 5]
    %a = silu(%h) : f32[b, s, 5]
    %r = linear(%a, weight @head : f32[11, 5]) : f32[b, s, 11]
    return %r
"""
TEXT = Calibration(((1, 2, 3), (4, 5), (6, 7, 8, 9, 10)))


def model() -> Module:
    return toy(BODY, 3, "%ids: i64[b, s]")


def directly(module: Module, name: str) -> torch.Tensor:
    """Every position of a value over the text, [count, channels] in float64."""
    graph = module.graph().copy()
    graph.set_outputs([graph.value(name)])
    rows = [run(module, graph, [torch.tensor([document])])[0][0] for document in TEXT.documents]
    return torch.cat(rows).double()


@pytest.mark.parametrize("name", ["e", "h", "a", "r"])
def test_they_equal_a_direct_computation(name: str) -> None:
    module = model()
    value = module.graph().value(name)
    found = collect_statistics(module, [value], TEXT, second_moments=True)[value]
    rows = directly(module, name)
    assert found.count == len(rows) == 10
    assert torch.allclose(found.mean, rows.mean(0), rtol=0, atol=1e-12)
    assert torch.allclose(found.mean_square, rows.square().mean(0), rtol=0, atol=1e-12)
    assert torch.equal(found.maximum, rows.abs().amax(0))
    assert found.second_moments is not None
    assert torch.allclose(found.second_moments, rows.T @ rows / 10, rtol=0, atol=1e-12)


def test_a_pass_asks_its_context_for_several_at_once() -> None:
    module = model()
    graph = module.graph()
    linears = [op for op in graph.walk() if op.name == "linear"]
    reports: list[str] = []
    context = Context(calibration=TEXT, report=lambda what, share: reports.append(what))
    found = context.statistics(module, [op.value(0) for op in linears])
    assert [value.name for value in found] == ["e", "a"]
    assert all(statistics.second_moments is None for statistics in found.values())
    assert torch.allclose(found[graph.value("a")].mean, directly(module, "a").mean(0), rtol=0, atol=1e-12)
    assert reports == ["statistics of activations"] * 3
    assert context.statistics(module, []) == {}


def test_what_comes_after_is_not_run() -> None:
    module = model()
    before = str(module)
    loaded: list[str] = []
    with watch_loads(lambda key, tensor: loaded.append(key)):
        collect_statistics(module, [module.graph().value("h")], TEXT)
    assert set(loaded) == {"table", "up"}
    assert str(module) == before


def test_without_text_it_says_what_to_declare() -> None:
    module = model()
    with pytest.raises(ContractError, match="declares `calibrated: ClassVar"):
        Context().statistics(module, [module.graph().value("h")])


def _input(module: Module) -> Value:
    return module.graph().inputs[0]


def _of_a_copy(module: Module) -> Value:
    return module.copy().graph().value("h")


@pytest.mark.parametrize("wrong", [_input, _of_a_copy])
def test_values_of_elsewhere_are_errors(wrong: object) -> None:
    module = model()
    with pytest.raises(IRError, match="is no result of an op of @forward"):
        collect_statistics(module, [wrong(module)], TEXT)  # type: ignore[operator]


def test_values_without_channels_are_errors() -> None:
    body = '%c = cast(%ids) {element = "i32"} : i32[b, s]\n%f = cast(%c) {element = "f32"} : f32[b, s]\nreturn %f'
    module = toy(body, 0, "%ids: i64[b, s]")
    with pytest.raises(IRError, match="expected numbers with a last axis"):
        collect_statistics(module, [module.graph().value("c")], TEXT)
    with pytest.raises(IRError, match="as many channels as the text has tokens"):
        collect_statistics(module, [module.graph().value("f")], TEXT)
