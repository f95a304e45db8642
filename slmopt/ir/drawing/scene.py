"""What is drawn: a tree of boxes over the ops of a graph, repeated blocks once, and the arrows between its leaves."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from slmopt.ir.blocks import Block, find_blocks
from slmopt.ir.dims import SymbolicDim
from slmopt.ir.drawing.folding import Fold, fold_runs
from slmopt.ir.graph import Graph, Op, Operand, Value, Weight
from slmopt.ir.text import print_op

__all__ = ["Arrow", "Box", "Scene", "build_scene"]

_MAX_LABEL = 40  # characters
_NEARLY_ALL = 0.85


@dataclass(eq=False)
class Box:
    """A leaf (an op, an input, the outputs) or a group of boxes; `count`: how often it stands for something alike.

    lines: what is written in it, the first one bold. details: lines of IR text, of every instance. place: its module
    path. kind: op, weights (an op that reads some), mixing (an op that mixes positions), input, output, group.
    """

    number: int
    kind: str
    lines: tuple[str, ...]
    details: tuple[str, ...] = ()
    place: str = ""
    count: int = 1
    children: list[Box] = field(default_factory=list)

    def leaves(self) -> Iterator[Box]:
        """The leaves under it, itself where it is one."""
        if not self.children:
            yield self
        for child in self.children:
            yield from child.leaves()


@dataclass(frozen=True)
class Arrow:
    """Leaf `source` gives the value `name` of a type to leaf `target`."""

    source: int
    target: int
    name: str
    type: str


@dataclass
class Scene:
    """Boxes of the top level, and the arrows between leaves, by number."""

    name: str
    boxes: list[Box]
    arrows: list[Arrow]


def build_scene(graph: Graph, *, modules: bool = False) -> Scene:
    """The scene of a graph. With `modules`, ops are also grouped by the path of the module they came from."""
    return _Builder(graph, modules).scene()


class _Builder:
    def __init__(self, graph: Graph, modules: bool) -> None:
        self.graph, self.modules = graph, modules
        self.number = 0
        self.leaf: dict[int, Box] = {}  # by id of an op or an input; instances of one block share a leaf
        self.position = {id(op): index for index, op in enumerate(graph.walk())}
        repetitions = find_blocks(graph)
        self.same_sizes = bool(repetitions)
        if not self.same_sizes:
            repetitions = find_blocks(graph, sizes=False)
        blocks = [(block, kind) for kind, found in enumerate(repetitions) for block in found.instances]
        blocks.sort(key=lambda item: self._last(item[0]))
        self.folds = fold_runs(blocks)
        self.block_ops = {id(op) for block, _ in blocks for op in block.ops}
        self.later_ops: set[int] = set()  # those of blocks that share the boxes of an earlier one

    def _last(self, block: Block) -> int:
        return max(self.position[id(op)] for op in block.ops)

    def _box(self, kind: str, lines: Sequence[str], **more: object) -> Box:
        self.number += 1
        return Box(self.number, kind, tuple(lines), **more)  # type: ignore[arg-type]

    def scene(self) -> Scene:
        grouped = [self._fold(fold) for fold in self.folds]
        inputs = [self._input(value) for value in self.graph.inputs if id(value) not in self.leaf]
        rest = [self._op([op]) for op in self.graph.walk() if id(op) not in self.leaf and not _inline(op)]
        output = self._box(
            "output", ["return"], details=(f"return {', '.join(f'%{v.name}' for v in self.graph.outputs)}",)
        )
        boxes = inputs + self._by_module(grouped + rest, 0) + ([output] if self.graph.outputs else [])
        return Scene(self.graph.name, boxes, self._arrows(output))

    # --- leaves ---------------------------------------------------------------------------------------------------
    def _input(self, value: Value, *same: Value) -> Box:
        states = self.graph.inputs[len(self.graph.inputs) - self.graph.states :]
        word = "state" if any(value is state for state in states) else "input"
        box = self._box("input", [f"{word} %{value.name}", str(value.type)], count=1 + len(same),
                        details=tuple(f"{word} {value!r}" for value in (value, *same)))  # fmt: skip
        self.leaf.update({id(value): box for value in (value, *same)})
        return box

    def _op(self, ops: Sequence[Op]) -> Box:
        op = ops[0]
        weights = [operand for operand in op.operands if isinstance(operand, Weight)]
        kind = "mixing" if op.spec.step is not None else "weights" if weights else "op"
        numbers = [text for operand in op.operands if (text := _number(operand))]
        sizes = [f"@{_shorten(weight.key, op.location)} : {weight.type}" for weight in weights]
        module = op.location.rpartition(".")[2]
        head = " ".join([op.name, *numbers, *([f"· {module}"] if module and not module.isdigit() else [])])
        types = ", ".join(str(value.type) for value in op.results)
        lines = [_cut(line) for line in (head, *sizes, types)]
        box = self._box(kind, lines, details=tuple(map(print_op, ops)), place=op.location)
        self.leaf.update({id(op): box for op in ops})
        return box

    # --- groups ---------------------------------------------------------------------------------------------------
    def _fold(self, fold: Fold, outer: int = 1) -> Box:
        if fold.block is not None:
            return self._block([fold.block, *fold.same], outer)
        children = [self._fold(child, outer * fold.count) for child in fold.children]
        return self._box("group", [f"{fold.name} × {fold.count}"], count=fold.count, children=children)

    def _block(self, instances: list[Block], outer: int) -> Box:
        """One box for all instances, a share `outer` of which stands in each instance of the groups around."""
        instances.sort(key=self._last)
        first = instances[0]
        self.later_ops.update(id(op) for block in instances[1:] for op in block.ops)
        inputs = [box for values in zip(*(block.inputs for block in instances), strict=True)
                  if (box := self._own_input(values)) is not None]  # fmt: skip
        boxes = [self._op(ops) for ops in zip(*(block.ops for block in instances), strict=True) if not _inline(ops[0])]
        depth = len(first.name.split(".")) if first.name and "#" not in first.name else 0
        title = _title(instances[: len(instances) // outer], self.same_sizes)
        children = inputs + self._by_module(boxes, depth)
        names = tuple(block.name for block in instances)
        return self._box(
            "group", [title], count=len(instances), place=first.name, details=names, children=children
        )  # fmt: skip

    def _own_input(self, values: tuple[Value, ...]) -> Box | None:
        """The box of an input that each instance has for itself, such as the keys a layer keeps."""
        if len(set(map(id, values))) < len(values) or any(value.op is not None for value in values):
            return None
        single = all(len(value.users) == 1 for value in values)
        return self._input(*values) if single and not any(id(value) in self.leaf for value in values) else None

    def _by_module(self, boxes: list[Box], depth: int, shown: int | None = None) -> list[Box]:
        """Boxes of one module, from path part `depth` on, in a group; `shown`: parts that enclosing titles have said.

        A module that holds blocks, or nearly everything, makes no group of its own: its parts do.
        """
        if not self.modules:
            return boxes
        shown = depth if shown is None else shown
        found: dict[object, list[Box]] = {}
        for box in boxes:
            parts = box.place.split(".")
            found.setdefault(parts[depth] if box.place and len(parts) > depth else box.number, []).append(box)
        grouped: list[Box] = []
        for key, inside in found.items():
            nearly_all = len(inside) > _NEARLY_ALL * len(boxes)
            if not isinstance(key, str) or len(inside) < 2:
                grouped += inside
            elif nearly_all or any(box.children for box in inside):
                grouped += self._by_module(inside, depth + 1, shown)
            else:
                path = inside[0].place.split(".")[: depth + 1]
                inner = self._by_module(inside, depth + 1)
                grouped.append(self._box("group", [".".join(path[shown:])], place=".".join(path), children=inner))
        return grouped

    # --- arrows ---------------------------------------------------------------------------------------------------
    def _arrows(self, output: Box) -> list[Arrow]:
        """From operands to the ops that read them. What one instance of a block gives the next is not drawn."""
        found: dict[tuple[int, int, str], Arrow] = {}

        def add(value: Value, target: Box, later: bool = False) -> None:
            source = self.leaf.get(id(value) if value.op is None else id(value.op))
            if source is not None and source is not target and not (later and id(value.op) in self.block_ops):
                name = source.details[0].partition(" = ")[0] if value.op is not None else f"%{value.name}"
                arrow = Arrow(source.number, target.number, name, str(value.type))
                found.setdefault((source.number, target.number, name), arrow)

        for op in self.graph.walk():
            target = self.leaf.get(id(op))
            for operand in op.operands if target is not None else ():
                if isinstance(operand, Value) and target is not None:
                    add(operand, target, id(op) in self.later_ops)
        for value in self.graph.outputs:
            add(value, output)
        return list(found.values())


def _title(instances: Sequence[Block], same_sizes: bool) -> str:
    """`model.layers.0 … 4 × 5`; what is drawn is the first, the others may have other sizes."""
    first, last = instances[0].name, instances[-1].name
    if len(instances) == 1:
        return first
    parts = [end for start, end in zip(first.split("."), last.split("."), strict=False) if start != end]
    return f"{first} … {'.'.join(parts) or last} × {len(instances)}{'' if same_sizes else ', of other sizes'}"


def _inline(op: Op) -> bool:
    """A number of its own is written into the boxes of the ops that read it."""
    graph = op.graph
    return op.name == "constant" and graph is not None and op.result not in graph.outputs


def _number(operand: Operand) -> str:
    if not isinstance(operand, Value) or operand.op is None or not _inline(operand.op):
        return ""
    value = operand.op.attributes["value"]
    return f"{value:.6g}" if isinstance(value, float) else str(value) if isinstance(value, int | SymbolicDim) else ""


def _shorten(key: str, location: str) -> str:
    """A weight's key without what it shares with the op's module path."""
    return key.removeprefix(location).lstrip(".") if location and key != location else key


def _cut(line: str) -> str:
    return line if len(line) <= _MAX_LABEL else line[: _MAX_LABEL - 1] + "…"
