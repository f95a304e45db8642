"""Which weights of a graph are trained, and how trained ones are put back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from slmopt.ir.graph import Graph, Module, Op, Value, Weight
from slmopt.ir.types import DType, TensorType

if TYPE_CHECKING:
    import torch

__all__ = ["Parameter", "Parameters", "find_parameters", "load_parameters", "predicting", "put_back"]

_ALWAYS = ("embedding", "linear")  # ops whose weights are parameters whatever else they read
_LARGEST = 1e4  # greater numbers are no parameter's: they hide keys from queries


@dataclass
class Parameter:
    """A float weight that is trained, under its key, and every op that reads it, over all graphs of the module."""

    key: str
    type: TensorType
    users: list[Op] = field(default_factory=list)


@dataclass(frozen=True)
class Parameters:
    """`trained`: by key; ops that read one weight share its parameter. `frozen`: keys of the other weights that
    numbers of the text meet: integers, codes, and weights whose numbers are far too large to be trained."""

    trained: Mapping[str, Parameter]
    frozen: tuple[str, ...]


def find_parameters(module: Module) -> Parameters:
    """The weights of @forward that its predictions depend on and that are trained.

    A weight that meets nothing but constants and positions is none: the frequencies of rotary positions, say, or a
    table that a mask is made from.
    """
    trained: dict[str, Parameter] = {}
    frozen: dict[str, None] = {}
    for op in _fed(predicting(module.graph())):
        for operand in op.operands:
            if isinstance(operand, Weight):
                if isinstance(operand.type.element, DType) and operand.type.element.is_float:
                    trained.setdefault(operand.key, Parameter(operand.key, operand.type))
                else:
                    frozen.setdefault(operand.key)
    for graph in module.graphs.values():
        for op in graph.walk():
            for key in dict.fromkeys(operand.key for operand in op.operands if isinstance(operand, Weight)):
                if key in trained:
                    trained[key].users.append(op)
    return Parameters(trained, tuple(frozen))


def predicting(graph: Graph) -> Graph:
    """A copy of what gives the first output."""
    copied = graph.copy()
    copied.set_outputs(copied.outputs[:1])
    copied.erase_dead()
    return copied


def _fed(graph: Graph) -> list[Op]:
    """The ops that read what comes from an input; embeddings and linears whatever they read."""
    reached = set(graph.inputs)
    found = []
    for op in graph.walk():
        if any(isinstance(operand, Value) and operand in reached for operand in op.operands):
            reached.update(op.results)
            found.append(op)
        elif op.name in _ALWAYS:
            found.append(op)
    return found


def load_parameters(module: Module, parameters: Parameters) -> tuple[dict[str, torch.Tensor], Parameters]:
    """The numbers of the parameters as float32 tensors of their own; and the parameters without those whose numbers
    show that they are masks."""
    found: dict[str, torch.Tensor] = {}
    frozen = list(parameters.frozen)
    for key in parameters.trained:
        value = module.weights.load(key).detach().float().clone()
        if value.numel() and not bool((value.abs() <= _LARGEST).all()):
            frozen.append(key)
        elif value.numel():
            found[key] = value
    trained = {key: parameter for key, parameter in parameters.trained.items() if key in found}
    return found, Parameters(trained, tuple(frozen))


def put_back(module: Module, parameters: Parameters, values: Mapping[str, torch.Tensor], what: str) -> dict[str, int]:
    """Let every op read the trained weights, under new keys; those that shared one still do.

    Returns how many weights there are for each kind of op; a weight counts for the first op that reads it.
    """
    changes: dict[str, int] = {}
    for key, parameter in parameters.trained.items():
        if key not in values:
            continue
        new = Weight(module.weights.fresh_key(f"{key}.healed"), parameter.type)
        module.weights.add_tensor(new.key, values[key], what)
        for op in parameter.users:
            for index, operand in enumerate(op.operands):
                if isinstance(operand, Weight) and operand.key == key:
                    op.set_operand(index, new)
        kind = parameter.users[0].name
        changes[kind] = changes.get(kind, 0) + 1
    return changes
