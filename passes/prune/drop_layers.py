"""The pass `drop-layers`: the layers that change least of what passes through them are left out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from slmopt.declaration import option
from slmopt.errors import UnsupportedError
from slmopt.ir.blocks import Block
from slmopt.ir.graph import Graph, Module, Op, Value
from slmopt.layers import Layers, find_layers
from slmopt.passes.prune.live import without_dead_ops
from slmopt.pipeline import Context, Contract, Lossy, Pass

if TYPE_CHECKING:
    import torch

__all__ = ["DropLayers"]

_AROUND = ("add", "rms_norm", "layer_norm")  # what a stream passes on its way around the parts of a layer


@dataclass(frozen=True, eq=False)
class _Layer:
    """A repeated block that adds to a stream: leaving it out, `after` is `before`. Of the graph without dead ops."""

    block: Block
    before: Value
    after: Value


@dataclass(frozen=True)
class DropLayers(Pass):
    """layer(x) -> x, for the layers of which the output is most like the input

    Block influence (ShortGPT, Men et al. 2024, arXiv 2403.03853): 1 - the mean over all tokens of the text of the
    cosine between what enters a layer and what leaves it. Layers are found as repeated blocks of the graph that add to
    what they read.
    """

    name: ClassVar[str] = "drop-layers"
    contract: ClassVar[Contract] = Lossy()
    requires: ClassVar[frozenset[str]] = frozenset({"raised"})
    calibrated: ClassVar[bool] = True

    count: int = option(1, minimum=1, help="how many layers are left out")
    layers: Layers = option(Layers(), help="of which layers, such as 0-3,7")  # noqa: RUF009 (it cannot be changed)

    def run(self, module: Module, context: Context) -> dict[str, int]:
        live = without_dead_ops(module).graph()
        found = self._find(live)
        if not found:
            return {}
        if "step" in module.graphs:
            raise UnsupportedError("drop-layers: the module has @step already, which would keep the layers: put "
                                   "drop-layers before the pass that derives @step")  # fmt: skip
        influence = _measure_influence(module, live, found, context)
        chosen = sorted(found, key=lambda number: (influence[number], number))[: self.count]
        dropped = 0
        for number in sorted(chosen, reverse=True):  # what a layer reads is there, as no layer before it has gone
            last = _last_op(module.graph(), found[number])
            if context.permits("dropped", last):
                _leave_out(module.graph(), found[number], last)
                dropped += 1
        return {"dropped": dropped} if dropped else {}

    def _find(self, live: Graph) -> dict[int, _Layer]:
        """The layers that can be left out, of those selected; {} where the model has none that repeat."""
        total, selected = len(find_layers(live)), find_layers(live, self.layers)
        found = {number: layer for number, block in selected.items() if (layer := _as_layer(block)) is not None}
        if total and (len(found) < self.count or self.count >= total):
            why = f"{len(selected) - len(found)} of those selected do not add to what they read, and "
            raise UnsupportedError(f"drop-layers: of {len(selected)} layers selected, of {total}, {self.count} cannot "
                                   f"be left out: {why if len(found) < len(selected) else ''}one at least must be "
                                   "left: choose fewer, or other layers")  # fmt: skip
        return found


def _as_layer(block: Block) -> _Layer | None:
    """A block with one result, which is one value that it reads, of the same type, plus something."""
    after = block.outputs[0]
    if len(block.outputs) > 1 or not after.type.element.is_float:
        return None
    inside = set(block.ops)
    seen: dict[Value, None] = {}
    waiting = [after]
    while waiting:
        value = waiting.pop()
        if value in seen or value.type != after.type:
            continue
        seen[value] = None
        if value.op in inside and value.op is not None and value.op.name in _AROUND:
            waiting += [operand for operand in value.op.operands if isinstance(operand, Value)]
    around = [value for value in block.inputs if value in seen and value.op is not None]
    return _Layer(block, around[0], after) if len(around) == 1 else None


def _measure_influence(
    module: Module, live: Graph, layers: Mapping[int, _Layer], context: Context
) -> dict[int, float]:  # fmt: skip
    """1 - the mean cosine of what enters and leaves each layer, over the tokens of the text."""
    import torch

    from slmopt.interpreter import run

    assert context.calibration is not None
    documents = context.calibration.documents
    totals = dict.fromkeys(layers, 0.0)
    wanted = {value for layer in layers.values() for value in (layer.before, layer.after)}
    with torch.no_grad():
        for index, document in enumerate(documents):
            context.report("influence of layers", index / len(documents))
            seen: dict[Value, torch.Tensor] = {}

            def observe(value: Value, tensor: torch.Tensor, seen: dict[Value, torch.Tensor] = seen) -> None:
                if value in wanted:
                    seen[value] = tensor.double()

            run(module, live, [torch.tensor([document])], observe=observe)
            for number, layer in layers.items():
                alike = torch.nn.functional.cosine_similarity(seen[layer.before], seen[layer.after], dim=-1)
                totals[number] += float(alike.sum())
    return {number: 1 - total / context.calibration.tokens for number, total in totals.items()}


def _last_op(graph: Graph, layer: _Layer) -> Op:
    """The op of the graph itself that gives the layer's result."""
    found = graph.value(layer.after.name).op
    assert found is not None
    return found


def _leave_out(graph: Graph, layer: _Layer, last: Op) -> None:
    """Read what enters the layer instead of what leaves it, and erase its ops."""
    graph.replace_uses(last.results[layer.after.index], graph.value(layer.before.name))
    names = {value.name for op in layer.block.ops for value in op.results}
    for op in reversed(list(graph.walk())):
        if op.results[0].name in names and not any(value.uses for value in op.results):
            graph.erase(op)
