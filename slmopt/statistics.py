"""Statistics of activations over calibration text: what passes need that look at data."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from slmopt.errors import IRError
from slmopt.ir.graph import Graph, Module, Value

if TYPE_CHECKING:
    import torch

    from slmopt.calibrate import Calibration

__all__ = ["Statistics", "collect_statistics"]


@dataclass(frozen=True)
class Statistics:
    """Of each channel of a value, the last axis, over all `count` positions of the text. Tensors are float64.

    mean, mean_square, maximum (of absolute values), each [channels]; second_moments [channels, channels], the mean of
    x x^T, where it was asked for.
    """

    count: int
    mean: torch.Tensor
    mean_square: torch.Tensor
    maximum: torch.Tensor
    second_moments: torch.Tensor | None = None


def collect_statistics(
    module: Module, values: Iterable[Value], calibration: Calibration, *, second_moments: bool = False,
    report: Callable[[str, float], None] = lambda what, share: None,
) -> dict[Value, Statistics]:  # fmt: skip
    """Statistics of some values of @forward, computed by the interpreter in float32 and added up in float64.

    One document is run at a time, each no longer than the model's context, and only as far as the values need; no
    activation is kept. What stays is one sum of [channels] per value and kind, and with `second_moments` a matrix
    [channels, channels] of float64: of a large model, ask for the values of one layer after the other. IRError where a
    value is not one of @forward, or is a number or an integer.
    """
    graph = module.graph()
    wanted = dict.fromkeys(values)
    for value in wanted:
        _check(value, graph)
    if not wanted:
        return {}
    sums = {value: _Sums(value, second_moments) for value in wanted}
    part, mapping = _needed(graph, list(wanted))
    _run(module, part, {part_value: sums[value] for part_value, value in mapping.items()}, calibration, report)
    return {value: found.result() for value, found in sums.items()}


def _check(value: Value, graph: Graph) -> None:
    if value.op is None or value.op.graph is not graph:
        raise IRError(f"%{value.name} is no result of an op of @{graph.name}: statistics are of such results")
    if not value.shape or not value.type.element.is_float:
        raise IRError(f"%{value.name}: {value.type} has no channels to measure: expected numbers with a last axis")
    if not isinstance(value.shape[-1], int):
        raise IRError(f"%{value.name}: {value.type} has as many channels as the text has tokens: nothing to add up")


def _needed(graph: Graph, wanted: list[Value]) -> tuple[Graph, dict[Value, Value]]:
    """A copy of what computes some values, nothing behind the last of them; and which values those are in it."""
    part = graph.copy()
    place = {value.name: value for value in part.values()}
    mapping = {place[value.name]: value for value in wanted}
    part.set_outputs(list(mapping))
    part.erase_dead()
    part.set_outputs([next(value for op in reversed(list(part.walk())) for value in op.results if value in mapping)])
    return part, mapping


def _run(
    module: Module, part: Graph, sums: dict[Value, _Sums], calibration: Calibration,
    report: Callable[[str, float], None],
) -> None:  # fmt: skip
    import torch

    from slmopt.interpreter import run

    def observe(value: Value, tensor: torch.Tensor) -> None:
        if value in sums:
            sums[value].add(tensor)

    with torch.no_grad():
        for index, document in enumerate(calibration.documents):
            report("statistics of activations", index / len(calibration.documents))
            run(module, part, [torch.tensor([document])], observe=observe)


class _Sums:
    """What is added up of one value."""

    def __init__(self, value: Value, second_moments: bool) -> None:
        import torch

        channels = int(value.shape[-1])  # type: ignore[arg-type]
        self.count = 0
        self.total, self.squares, self.maximum = (torch.zeros(channels, dtype=torch.float64) for _ in range(3))
        self.products = torch.zeros(channels, channels, dtype=torch.float64) if second_moments else None

    def add(self, tensor: Any) -> None:
        rows = tensor.reshape(-1, tensor.shape[-1]).double()
        self.count += len(rows)
        self.total += rows.sum(0)
        self.squares += rows.square().sum(0)
        if len(rows):
            self.maximum = self.maximum.maximum(rows.abs().amax(0))
        if self.products is not None:
            self.products += rows.T @ rows

    def result(self) -> Statistics:
        count = max(self.count, 1)
        products = None if self.products is None else self.products / count
        return Statistics(self.count, self.total / count, self.squares / count, self.maximum, products)
