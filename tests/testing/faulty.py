"""Passes with one planted fault each, which the conformance kit must find."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

from slmopt.ir.graph import Graph, Module, Op, Value, Weight
from slmopt.pipeline import Context, Contract, Lossy, Pass

__all__ = ["FAULTS", "forget"]


class _Faulty(Pass):
    """Edits each op that `_finds`; the first line of the docstring is the planted fault."""

    def run(self, module: Module, context: Context) -> dict[str, int]:
        count = 0
        for graph in self._graphs(module):
            for op in graph.walk():
                if self._finds(graph, op):
                    self._edit(module, graph, op)
                    count += 1
        return {"edited": count} if count else {}

    def _graphs(self, module: Module) -> list[Graph]:
        return list(module.graphs.values())

    def _finds(self, graph: Graph, op: Op) -> bool:
        raise NotImplementedError

    def _edit(self, module: Module, graph: Graph, op: Op) -> None:
        raise NotImplementedError


def _again(graph: Graph, op: Op, *operands: Any, **attributes: Any) -> None:
    """Replace an op by the same with other operands or attributes."""
    made = graph.add(
        op.name, operands or op.operands, {**op.attributes, **attributes}, before=op, location=op.location,
        hint=op.result.name,
    )  # fmt: skip
    graph.replace(op, made.result)


def _readers(graph: Graph) -> Iterator[tuple[Op, int, Weight]]:
    for op in graph.walk():
        for index, operand in enumerate(op.operands):
            if isinstance(operand, Weight):
                yield op, index, operand


def _is_plain_linear(operand: Any) -> bool:
    """A linear to which nothing was fused yet."""
    made_by = operand.op if isinstance(operand, Value) else None
    if made_by is None or made_by.name != "linear" or made_by.attributes["activation"] is not None:
        return False
    return len(made_by.operands) < 4 or made_by.operands[3] is None


# --- the numbers -------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class DropsAnOp(_Faulty):
    """drops an op"""

    name: ClassVar[str] = "drops-an-op"

    def _finds(self, graph: Graph, op: Op) -> bool:
        return op.name in ("relu", "silu", "gelu")

    def _edit(self, module: Module, graph: Graph, op: Op) -> None:
        graph.replace(op, op.value(0))


@dataclass(frozen=True)
class SwapsOperands(_Faulty):
    """swaps the operands of an op that does not commute"""

    name: ClassVar[str] = "swaps-operands"

    def _finds(self, graph: Graph, op: Op) -> bool:
        if op.name not in ("sub", "glu", "div") or op.operands[0] is op.operands[1]:
            return False
        return all(isinstance(o, Value) and o.type == op.result.type for o in op.operands)

    def _edit(self, module: Module, graph: Graph, op: Op) -> None:
        first, second = op.operands
        op.set_operand(0, second)
        op.set_operand(1, first)


@dataclass(frozen=True)
class ChangesNumbers(_Faulty):
    """changes numbers by 1e-2"""

    name: ClassVar[str] = "changes-numbers"

    def _finds(self, graph: Graph, op: Op) -> bool:
        return op.name == "linear" and op.attributes["activation"] is None

    def _edit(self, module: Module, graph: Graph, op: Op) -> None:
        factor = graph.add("constant", (), {"value": 1.01, "element": "f32"}, before=op, location=op.location)
        scaled = graph.add("mul", (op.result, factor.result), after=op, location=op.location)
        graph.replace_uses(op.result, scaled.result, but=scaled)


@dataclass(frozen=True)
class ForgetsAnAttribute(_Faulty):
    """forgets an attribute: eps becomes what is usual"""

    name: ClassVar[str] = "forgets-an-attribute"

    def _finds(self, graph: Graph, op: Op) -> bool:
        return op.name == "rms_norm" and op.attributes["eps"] != 1e-5

    def _edit(self, module: Module, graph: Graph, op: Op) -> None:
        _again(graph, op, eps=1e-5)


@dataclass(frozen=True)
class WrongAxis(_Faulty):
    """works along the wrong axis"""

    name: ClassVar[str] = "wrong-axis"

    def _finds(self, graph: Graph, op: Op) -> bool:
        return op.name in ("softmax", "cumsum") and op.attributes["axis"] == -1

    def _edit(self, module: Module, graph: Graph, op: Op) -> None:
        op.attributes["axis"] = -2


@dataclass(frozen=True)
class WrongWithAWindow(_Faulty):
    """is wrong where attention has a window"""

    name: ClassVar[str] = "wrong-with-a-window"

    def _finds(self, graph: Graph, op: Op) -> bool:
        return op.name == "attention" and op.attributes["window"] is not None and not op.attributes["ring"]

    def _edit(self, module: Module, graph: Graph, op: Op) -> None:
        _again(graph, op, window=None)


@dataclass(frozen=True)
class WrongForGroupedHeads(_Faulty):
    """reads the wrong keys where several heads share them"""

    name: ClassVar[str] = "wrong-for-grouped-heads"

    def _finds(self, graph: Graph, op: Op) -> bool:
        groups = op.value(1).shape[1] if op.name == "attention" else 0
        return op.name == "attention" and groups != 1 and groups != op.value(0).shape[1]

    def _edit(self, module: Module, graph: Graph, op: Op) -> None:
        key = op.value(1)
        groups = key.shape[1]
        cut = ({"axis": 1, "start": i, "stop": i + 1} for i in reversed(range(int(groups))))  # type: ignore[arg-type]
        parts = [graph.add("slice", (key,), where, before=op, location=op.location).result for where in cut]
        op.set_operand(1, graph.add("concat", parts, {"axis": 1}, before=op, location=op.location).result)


@dataclass(frozen=True)
class WrongForUnequalWidths(_Faulty):
    """takes the inner width of the first layer for that of all"""

    name: ClassVar[str] = "wrong-for-unequal-widths"

    def run(self, module: Module, context: Context) -> dict[str, int]:
        count = 0
        for graph in module.graphs.values():
            units = [op for op in graph.walk() if op.name in ("glu", "silu", "gelu", "relu")]
            for op in units[1:]:
                if op.result.shape[-1] != units[0].result.shape[-1]:
                    zero = graph.add("sub", (op.result, op.result), after=op, location=op.location)
                    graph.replace_uses(op.result, zero.result, but=zero)
                    count += 1
        return {"edited": count} if count else {}

    def _finds(self, graph: Graph, op: Op) -> bool:
        return False


@dataclass(frozen=True)
class WrongForOddSizes(_Faulty):
    """loses the last element where a size is odd"""

    name: ClassVar[str] = "wrong-for-odd-sizes"

    def _finds(self, graph: Graph, op: Op) -> bool:
        width = op.results[0].shape[-1] if op.results and op.results[0].shape else 0
        return op.name == "linear" and isinstance(width, int) and width % 2 == 1 and width > 1

    def _edit(self, module: Module, graph: Graph, op: Op) -> None:
        width, rank = int(op.result.shape[-1]), op.result.type.rank  # type: ignore[arg-type]
        start = {"axis": rank - 1, "start": 0, "stop": width - 1}
        first = graph.add("slice", (op.result,), start, after=op, location=op.location)
        repeated = graph.add("slice", (op.result,), {**start, "stop": 1}, after=first, location=op.location)
        parts = (first.result, repeated.result)
        whole = graph.add("concat", parts, {"axis": rank - 1}, after=repeated, location=op.location)
        for use in list(op.result.uses):
            if use.op not in (first, repeated):
                use.op.set_operand(use.index, whole.result)
        graph.set_outputs([whole.result if value is op.result else value for value in graph.outputs])


@dataclass(frozen=True)
class WrongForTwoUses(_Faulty):
    """fuses an activation into a linear that something else reads, too"""

    name: ClassVar[str] = "wrong-for-two-uses"

    def _finds(self, graph: Graph, op: Op) -> bool:
        return op.name in ("silu", "relu") and _is_plain_linear(op.operands[0])

    def _edit(self, module: Module, graph: Graph, op: Op) -> None:
        linear = op.value(0).op
        assert linear is not None
        linear.attributes["activation"] = op.name
        graph.replace(op, linear.result)


@dataclass(frozen=True)
class WrongForSeveralOutputs(_Faulty):
    """fuses an op away that is an output, too"""

    name: ClassVar[str] = "wrong-for-several-outputs"

    def _finds(self, graph: Graph, op: Op) -> bool:
        several = len(graph.outputs) - graph.states > 1
        return several and bool(op.results) and op.results[0] in graph.outputs[1:] and op.name in _UNARY

    def _edit(self, module: Module, graph: Graph, op: Op) -> None:
        graph.set_outputs([op.value(0) if value is op.result else value for value in graph.outputs])


_UNARY = ("neg", "silu", "tanh", "relu", "sigmoid", "abs", "sin", "softplus", "erf", "floor", "gelu", "softmax",
          "cumsum", "rms_norm", "layer_norm")  # fmt: skip


@dataclass(frozen=True)
class DependsOnTheOrder(_Faulty):
    """takes the op that happens to stand before for the one that is read"""

    name: ClassVar[str] = "depends-on-the-order"

    def run(self, module: Module, context: Context) -> dict[str, int]:
        count = 0
        for graph in module.graphs.values():
            ops = list(graph.walk())
            for before, op in itertools.pairwise(ops):
                unary = op.name in (*_UNARY, "glu") and before.name not in _UNARY and len(before.results) == 1
                if unary and op.operands[0] is not before.result and op.value(0).type == before.result.type:
                    op.set_operand(0, before.result)
                    count += 1
        return {"fused": count} if count else {}

    def _finds(self, graph: Graph, op: Op) -> bool:
        return False


# --- weights -----------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class BreaksATie(Pass):
    """breaks a tie: one of two readers gets a copy"""

    name: ClassVar[str] = "breaks-a-tie"
    unties: ClassVar[bool] = False

    def run(self, module: Module, context: Context) -> dict[str, int]:
        return _untie(module, "copy", once=True)


@dataclass(frozen=True)
class UntiesOneSide(Pass):
    """reads a rounded copy on one side of a tie alone"""

    name: ClassVar[str] = "unties-one-side"
    contract: ClassVar[Contract] = Lossy()
    unties: ClassVar[bool] = False

    def run(self, module: Module, context: Context) -> dict[str, int]:
        return _untie(module, "rounded", once=True)


@dataclass(frozen=True)
class StoresTwice(Pass):
    """stores a shared weight once for each reader, and says that it may"""

    name: ClassVar[str] = "stores-twice"
    unties: ClassVar[bool] = True

    def run(self, module: Module, context: Context) -> dict[str, int]:
        return _untie(module, "copy", once=False)


def _untie(module: Module, what: str, *, once: bool) -> dict[str, int]:
    count, seen, made = 0, set[str](), dict[str, Weight]()
    for graph in module.graphs.values():
        for op, index, weight in list(_readers(graph)):
            if str(weight.type.element) != "f32" or weight.key.endswith(what):
                continue
            if weight.key not in seen:
                seen.add(weight.key)
                continue
            if weight.key not in made or not once:
                key = module.weights.fresh_key(f"{weight.key}.{what}")
                compute = (lambda w: w.clone()) if what == "copy" else (lambda w: w.half().float())
                module.weights.derive(key, (weight.key,), weight.type, f"{what} {len(made)}", compute)
                made[weight.key] = Weight(key, weight.type)
            op.set_operand(index, made[weight.key])
            count += 1
    return {"copied": count} if count else {}


@dataclass(frozen=True)
class WritesIntoAWeight(_Faulty):
    """writes into a stored weight"""

    name: ClassVar[str] = "writes-into-a-weight"

    def run(self, module: Module, context: Context) -> dict[str, int]:
        for graph in module.graphs.values():
            for _, _, weight in _readers(graph):
                tensor = module.weights.load(weight.key)
                if hasattr(tensor, "mul_") and tensor.is_floating_point():
                    tensor.mul_(1.0)
        return {}

    def _finds(self, graph: Graph, op: Op) -> bool:
        return False


@dataclass(frozen=True)
class ChangesAType(Pass):
    """stores weights in another type and calls itself exact"""

    name: ClassVar[str] = "changes-a-type"

    def run(self, module: Module, context: Context) -> dict[str, int]:
        from slmopt.ir.types import DType

        made: dict[str, Weight] = {}
        for graph in module.graphs.values():
            for op, index, weight in list(_readers(graph)):
                if op.name == "linear" and index == 1 and weight.type.element == DType.f32:
                    type = weight.type.with_element(DType.bf16)
                    key = f"{weight.key}.bf16"
                    if weight.key not in made:
                        module.weights.derive(key, (weight.key,), type, "cast", lambda w: w.bfloat16())
                        made[weight.key] = Weight(key, type)
                    op.set_operand(index, made[weight.key])
        return {"cast": len(made)} if made else {}


# --- the rules of the IR and the contract ------------------------------------------------------------------------
@dataclass(frozen=True)
class RenamesAnInput(_Faulty):
    """renames an input"""

    name: ClassVar[str] = "renames-an-input"

    def run(self, module: Module, context: Context) -> dict[str, int]:
        for graph in module.graphs.values():
            graph.rename(graph.inputs[0], "tokens_in")
        return {"renamed": len(module.graphs)}

    def _finds(self, graph: Graph, op: Op) -> bool:
        return False


@dataclass(frozen=True)
class LosesALocation(_Faulty):
    """loses where an op came from"""

    name: ClassVar[str] = "loses-a-location"

    def _finds(self, graph: Graph, op: Op) -> bool:
        return op.name == "linear" and op.location != ""

    def _edit(self, module: Module, graph: Graph, op: Op) -> None:
        made = graph.add(op.name, op.operands, op.attributes, before=op, hint=op.result.name)
        graph.replace(op, made.result)


@dataclass(frozen=True)
class LeavesStaleStep(_Faulty):
    """changes @forward and leaves @step as it was"""

    name: ClassVar[str] = "leaves-stale-step"
    contract: ClassVar[Contract] = Lossy()

    def _graphs(self, module: Module) -> list[Graph]:
        return [module.graph("forward")]

    def _finds(self, graph: Graph, op: Op) -> bool:
        return op.name == "linear" and op.attributes["activation"] is None

    def _edit(self, module: Module, graph: Graph, op: Op) -> None:
        op.attributes["activation"] = "tanh"


@dataclass(frozen=True)
class SaysNothingChanged(_Faulty):
    """changes a graph and says that it did not"""

    name: ClassVar[str] = "says-nothing-changed"

    def run(self, module: Module, context: Context) -> dict[str, int]:
        for graph in module.graphs.values():
            graph.erase_dead()
            for op in graph.walk():
                if op.name == "reshape":
                    _again(graph, op)
        return {}

    def _finds(self, graph: Graph, op: Op) -> bool:
        return False


@dataclass(frozen=True)
class SaysTooMuch(_Faulty):
    """reports a change where it made none"""

    name: ClassVar[str] = "says-too-much"

    def run(self, module: Module, context: Context) -> dict[str, int]:
        return {"linear": sum(op.name == "linear" for op in module.graph().walk()) or 1}

    def _finds(self, graph: Graph, op: Op) -> bool:
        return False


@dataclass(frozen=True)
class ClaimsIdempotence(_Faulty):
    """finds something in its own result and claims that it does not"""

    name: ClassVar[str] = "claims-idempotence"
    idempotent: ClassVar[bool] = True

    def _finds(self, graph: Graph, op: Op) -> bool:
        return op.name == "reshape"

    def _edit(self, module: Module, graph: Graph, op: Op) -> None:
        _again(graph, op)


@dataclass(frozen=True)
class RaisesOnAbsentOperands(_Faulty):
    """fails where an optional operand is absent"""

    name: ClassVar[str] = "raises-on-absent-operands"

    def _finds(self, graph: Graph, op: Op) -> bool:
        return op.name == "linear" and op.operands[2].type.rank > 1  # type: ignore[union-attr]

    def _edit(self, module: Module, graph: Graph, op: Op) -> None:
        raise NotImplementedError


# --- the same every time -----------------------------------------------------------------------------------------
_RUNS: list[int] = []


def forget() -> None:
    """Forget what a pass kept between runs, so that each test begins alike."""
    _RUNS.clear()


@dataclass(frozen=True)
class KeepsState(_Faulty):
    """keeps state between runs"""

    name: ClassVar[str] = "keeps-state"

    def run(self, module: Module, context: Context) -> dict[str, int]:
        _RUNS.append(len(_RUNS))
        return super().run(module, context)

    def _finds(self, graph: Graph, op: Op) -> bool:
        return op.name in ("add", "mul") and len(_RUNS) % 2 == 0

    def _edit(self, module: Module, graph: Graph, op: Op) -> None:
        first, second = op.operands
        _again(graph, op, second, first)


@dataclass(frozen=True)
class DrawsAtRandom(_Faulty):
    """is not deterministic: derives a weight with random numbers"""

    name: ClassVar[str] = "draws-at-random"
    contract: ClassVar[Contract] = Lossy()

    def _finds(self, graph: Graph, op: Op) -> bool:
        return op.name == "rms_norm" and len(op.operands) > 1 and isinstance(op.operands[1], Weight) and (
            not op.operands[1].key.endswith(".noisy"))  # fmt: skip

    def _edit(self, module: Module, graph: Graph, op: Op) -> None:
        import torch

        weight = op.operands[1]
        if isinstance(weight, Weight):
            key = f"{weight.key}.noisy"
            module.weights.derive(key, (weight.key,), weight.type, "noise", lambda w: w + 1e-3 * torch.rand_like(w))
            op.set_operand(1, Weight(key, weight.type))


@dataclass(frozen=True)
class DependsOnNames(_Faulty):
    """decides by the names of values"""

    name: ClassVar[str] = "depends-on-names"

    def _finds(self, graph: Graph, op: Op) -> bool:
        return bool(op.results) and op.results[0].name.startswith("v") and op.name in _UNARY

    def _edit(self, module: Module, graph: Graph, op: Op) -> None:
        graph.replace(op, op.value(0))


# Each with the checks that may find it.
FAULTS: dict[type[Pass], frozenset[str]] = {
    fault: frozenset(checks.split())
    for fault, checks in {
        DropsAnOp: "numbers transformed",
        BreaksATie: "contract aliasing decoding",
        SwapsOperands: "numbers transformed",
        ChangesNumbers: "numbers transformed",
        DrawsAtRandom: "determinism",
        KeepsState: "determinism transformed",
        ForgetsAnAttribute: "numbers transformed",
        WrongAxis: "numbers transformed",
        WritesIntoAWeight: "contract",
        ChangesAType: "numbers transformed",
        LosesALocation: "places",
        RenamesAnInput: "contract",
        WrongForUnequalWidths: "numbers transformed",
        WrongForSeveralOutputs: "numbers transformed",
        WrongWithAWindow: "numbers transformed",
        WrongForGroupedHeads: "numbers transformed",
        WrongForOddSizes: "numbers transformed",
        WrongForTwoUses: "numbers transformed",
        UntiesOneSide: "contract decoding aliasing",
        StoresTwice: "contract aliasing",
        LeavesStaleStep: "contract decoding",
        SaysNothingChanged: "contract",
        SaysTooMuch: "contract",
        ClaimsIdempotence: "idempotence",
        RaisesOnAbsentOperands: "error",
        DependsOnTheOrder: "contract numbers transformed",
        DependsOnNames: "transformed",
    }.items()
}
