"""An exported program to a graph of the IR: one rule per node, places and names from the modules of the source."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind
from torch.fx import Node

from slmopt.errors import IRError, UnsupportedError
from slmopt.frontends.aten import IGNORED, find_rule
from slmopt.frontends.aten.builder import Argument, Builder, StructuralMask
from slmopt.frontends.symbols import Symbols
from slmopt.ir.graph import Graph, Value, Weight
from slmopt.ir.types import TensorType
from slmopt.ir.weights import WeightStore

__all__ = ["convert"]

WeightOf = Callable[[str, TensorType], Weight]


def convert(
    program: ExportedProgram, weight_of: WeightOf, store: WeightStore, *, wrapper: str = "", strip: str = ""
) -> Graph:
    """The graph @forward(ids: i64[b, s]) -> first output of `program`, which takes ids [batch, sequence].

    `weight_of(name, type)` gives the weight for a parameter, buffer or constant by its name in the traced module;
    `store` holds what it gave, for rules that look at the numbers of a mask.
    `wrapper` is the path prefix of the model inside the traced module, `strip` what names need not repeat.
    Raises UnsupportedError naming the op and its module path where an op has no conversion.
    """
    return _Conversion(program, weight_of, Builder(Graph("forward"), Symbols(), store), wrapper, strip).run()


class _Conversion:
    def __init__(self, program: ExportedProgram, weight_of: WeightOf, build: Builder, wrapper: str, strip: str) -> None:
        self.program, self.weight_of, self.wrapper, self.strip = program, weight_of, wrapper, strip
        self.build, self.graph, self.symbols = build, build.graph, build.symbols
        self.values: dict[Node, Argument] = {}
        self.last = _last_nodes(program, self._path)

    def run(self) -> Graph:
        inputs = {spec.arg.name: spec for spec in self.program.graph_signature.input_specs}
        for node in self.program.graph.nodes:
            if node.op == "placeholder":
                self._placeholder(node, inputs[node.name])
            elif node.op == "call_function":
                self._call(node)
            elif node.op == "output":
                self._output(node)
        self.graph.erase_dead()
        return self.graph

    # --- where a node came from --------------------------------------------------------------------------------------
    def _path(self, node: Node) -> str:
        stack = node.meta.get("nn_module_stack") or {}
        path = str(next(reversed(stack.values()))[0]) if stack else ""
        return path.removeprefix(self.wrapper).removeprefix(".")

    def _enter(self, node: Node) -> None:
        path = self._path(node)
        self.build.node, self.build.location = node, path
        short = path.removeprefix(self.strip + ".") if self.strip and path != self.strip else path
        self.build.hint = "" if path == self.strip else short.replace(".", "_")

    # --- nodes -------------------------------------------------------------------------------------------------------
    def _placeholder(self, node: Node, spec: Any) -> None:
        self._enter(node)
        if spec.kind == InputKind.USER_INPUT:
            if self.graph.inputs:
                raise UnsupportedError(f"the model takes more inputs than token ids: {node.name}")
            for size, name in zip(node.meta["val"].shape, ("b", "s"), strict=True):
                self.symbols.bind(size, name)
            self.values[node] = self.graph.add_input("ids", self.build.result_type())
        elif spec.kind in (InputKind.PARAMETER, InputKind.BUFFER, InputKind.CONSTANT_TENSOR):
            if node.users:
                self.values[node] = self.weight_of(spec.target, self.build.result_type())
        else:
            raise UnsupportedError(f"the model takes {node.name} ({spec.kind.name}), not only token ids")

    def _call(self, node: Node) -> None:
        self._enter(node)
        target = node.target
        if isinstance(node.meta.get("val"), torch.SymInt | int):
            self.values[node] = self.symbols.dim(node.meta["val"], self.build.place())
            return
        if getattr(target, "__name__", "") == "getitem" and not isinstance(target, torch._ops.OpOverload):
            self.values[node] = self._item(node)
            return
        if not isinstance(target, torch._ops.OpOverload):
            if not node.users:
                return
            raise self.build.unsupported("arithmetic on sizes that are no integers")
        namespace, name = target._schema.name.split("::")
        if name in IGNORED:
            return
        rule = find_rule(namespace, name, target._overloadname)
        if rule is None:
            raise UnsupportedError(f"{self.build.place()} has no conversion into the IR")
        self.values[node] = self._converted(node, rule)

    def _converted(self, node: Node, rule: Callable[..., Argument]) -> Argument:
        arguments = [self._argument(argument) for argument in node.args]
        options = {name: self._argument(value) for name, value in node.kwargs.items()}
        try:
            found = rule(self.build, *arguments, **options)
        except IRError as error:
            raise IRError(f"converting {self.build.place()}: {error}") from error
        except TypeError as error:
            raise UnsupportedError(f"{self.build.place()}: arguments {node.args} {node.kwargs} fit no rule") from error
        if any(isinstance(argument, StructuralMask) for argument in arguments) and isinstance(found, Value):
            found = self.build.expand(found, self.build.shape)  # a mask's numbers are alike for the whole batch
        own = isinstance(found, Value) and found.op is not None and found.op.location == self.build.location
        if own and node in self.last and self.build.hint:
            self.graph.rename(found, self.build.hint)
        self._check(node, found)
        return found

    def _check(self, node: Node, found: Argument) -> None:
        """What the rule made has the type torch gave the node."""
        if isinstance(found, list | tuple):
            pairs = [(item, self.build.result_type(index)) for index, item in enumerate(found) if item is not None]
        else:
            pairs = [] if isinstance(found, StructuralMask) else [(found, self.build.result_type())]
        for item, expected in pairs:
            if item.type != expected:
                raise IRError(f"{self.build.place()} was converted to {item.type}, but torch gives {expected}")

    def _item(self, node: Node) -> Argument:
        found = self._argument(node.args[0])[node.args[1]]
        if found is None and node.users:
            raise self.build.unsupported(f"result {node.args[1]} of {node.args[0]}")
        return found

    def _argument(self, argument: Any) -> Argument:
        if isinstance(argument, Node):
            return self.values.get(argument)
        if isinstance(argument, list | tuple):
            return [self._argument(item) for item in argument]
        if isinstance(argument, Mapping):
            raise UnsupportedError(f"{self.build.place()}: a mapping as argument is not supported")
        return argument

    def _output(self, node: Node) -> None:
        found = self._argument(node.args[0])
        first = found[0] if isinstance(found, list) and found else found
        if not isinstance(first, Value):
            raise UnsupportedError(f"the model returns {first!r}, expected logits [batch, sequence, vocabulary]")
        self.graph.set_outputs([first])


def _last_nodes(program: ExportedProgram, path: Callable[[Node], str]) -> set[Node]:
    """For each module that contains no other, the node that ends it: its value gets the module's name."""
    calls = [node for node in program.graph.nodes if node.op == "call_function" and _computes(node)]
    paths = {path(node) for node in calls}
    outer = {name[:cut] for name in paths for cut in range(len(name)) if name[cut] == "."}
    ends: dict[str, Node] = {path(node): node for node in calls}
    return {node for name, node in ends.items() if name and name not in outer}


def _computes(node: Node) -> bool:
    name = getattr(getattr(node.target, "_schema", None), "name", "")
    return bool(name) and name.split("::")[1] not in IGNORED
