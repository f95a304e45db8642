"""Repeated blocks of a graph, such as the layers of a model: found by structure; module paths only name them.

Method. A value that every path to the output passes is a cut: the residual stream between two layers is one. The cuts
lie on a path of the post-dominator tree (Cooper, Harvey and Kennedy 2001), and part the graph into segments. What
several segments read (tables of cosines, a mask) belongs to none. Segments of one wiring get one letter, and letters
that always stand beside each other are joined (an attention part and the part after it), which gives whole layers.
Blocks are then the same where ops, attributes, types and the pattern of weights agree, in a canonical order.

A limit: layers that hand on several values at once (two residual streams) have no cut between them and are not found.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass

from slmopt.ir.dims import SymbolicDim
from slmopt.ir.graph import Attribute, Graph, Op, Operand, Value, Weight
from slmopt.ir.types import TensorType

__all__ = ["Block", "Repetition", "find_blocks"]

_PLACES = ("axis", "axes")  # attributes whose numbers say where, not how many


@dataclass(frozen=True, eq=False)
class Block:
    """Some ops of a graph, in an order that is the same for every instance of a repetition.

    `inputs`: values read from outside; `outputs`: results read outside or returned; `weights`: keys, each once. All
    three correspond, position by position, between the instances of a repetition.
    """

    name: str
    ops: tuple[Op, ...]
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]
    weights: tuple[str, ...]

    def __repr__(self) -> str:
        return f"<Block {self.name}: {len(self.ops)} ops>"


@dataclass(frozen=True, eq=False)
class Repetition:
    """Two or more blocks of equal structure, in the order of the graph; not always neighbours."""

    instances: tuple[Block, ...]

    def __repr__(self) -> str:
        return f"<Repetition of {len(self.instances)}: {', '.join(block.name for block in self.instances)}>"


def find_blocks(graph: Graph, *, sizes: bool = True, attributes: bool = True) -> tuple[Repetition, ...]:
    """The repeated blocks of a graph, in the order of their first instances; () where nothing repeats.

    `sizes=False` also takes blocks for the same that differ in sizes only: dimensions, and numbers in attributes other
    than axes. `attributes=False` takes those for the same whose ops and wiring agree, whatever their attributes and
    types. Two kinds of layers that alternate are two repetitions.
    """
    told = sizes if attributes else None
    best: tuple[Repetition, ...] = ()
    tree = _PostDominators(graph)
    for start in tree.starts():
        found = _repetitions(graph, _join(_segments(graph, tree, start)), told)
        if _covered(found) > _covered(best):
            best = found
    return best


def _covered(repetitions: Iterable[Repetition]) -> int:
    return sum(len(block.ops) for repetition in repetitions for block in repetition.instances)


# --- cuts ------------------------------------------------------------------------------------------------------------
class _PostDominators:
    """Of every input and op (numbered in order) the next one that all its paths to the first output pass."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.ops = list(graph.walk())
        self.first = len(graph.inputs)
        self.end = self.first + len(self.ops)
        self.number = {id(op): self.first + index for index, op in enumerate(self.ops)}
        values = [[value] for value in graph.inputs] + [list(op.results) for op in self.ops]
        plain = graph.outputs[: len(graph.outputs) - graph.states] or graph.outputs
        target = {id(value) for value in plain[:1]}
        self.next: list[int | None] = [None] * self.end
        for node in reversed(range(self.end)):
            found = self.end if any(id(value) in target for value in values[node]) else None
            for user in (self.number[id(use.op)] for value in values[node] for use in value.uses):
                if self.next[user] is not None:
                    found = user if found is None else self._meet(found, user)
            self.next[node] = found

    def _meet(self, left: int, right: int) -> int:
        while left != right:
            low, high = sorted((left, right))
            following = self.next[low]
            assert following is not None
            left, right = following, high
        return left

    def path(self, node: int) -> list[int]:
        """The cuts between a node and the output, the node itself first."""
        found = [node]
        while (following := self.next[found[-1]]) is not None and following != self.end:
            found.append(following)
        return found

    def starts(self) -> list[int]:
        """Where the main path may begin: an input, the end of the heaviest branch, the node with most cuts."""
        depth, weight = [0] * (self.end + 1), [1] * (self.end + 1)
        heaviest: dict[int, int] = {}
        for node in range(self.end):
            following = self.next[node]
            if following is not None:
                weight[following] += weight[node]
                if weight[node] > weight[heaviest.get(following, node)] or following not in heaviest:
                    heaviest[following] = node
        for node in reversed(range(self.end)):
            following = self.next[node]
            depth[node] = 0 if following is None else depth[following] + 1
        heavy = self.end
        while heavy in heaviest:
            heavy = heaviest[heavy]
        inputs = [node for node in range(self.first - self.graph.states) if self.next[node] is not None]
        deepest = max(range(self.end), key=depth.__getitem__, default=self.end)
        return [node for node in dict.fromkeys((*inputs, heavy, deepest)) if node != self.end]


def _segments(graph: Graph, tree: _PostDominators, start: int) -> list[list[Op]]:
    """The ops between two cuts, cut by cut, the later cut included; ops of several segments are in none."""
    cuts = {node: index for index, node in enumerate(tree.path(start))}
    place: dict[int, int | None] = {}
    for op in reversed(tree.ops):  # an op belongs where its readers do
        node = tree.number[id(op)]
        readers = {place[id(use.op)] for value in op.results for use in value.uses if id(use.op) in place}
        if node in cuts:
            place[id(op)] = cuts[node]
        elif readers:
            place[id(op)] = readers.pop() if len(readers) == 1 else None
    for op in tree.ops:  # what leads to other outputs only belongs to what it reads
        if id(op) not in place:
            read = [place.get(id(o.op)) for o in op.operands if isinstance(o, Value) and o.op is not None]
            place[id(op)] = max((segment for segment in read if segment is not None), default=None)
    segments: list[list[Op]] = [[] for _ in cuts]
    for op in tree.ops:
        segment = place[id(op)]
        if segment is not None:
            segments[segment].append(op)
    return [ops for ops in segments if ops]


# --- letters ---------------------------------------------------------------------------------------------------------
def _join(segments: list[list[Op]]) -> list[list[Op]]:
    """Segments joined where one kind always stands before another, or always after it."""
    numbers: dict[Hashable, int] = {}
    text = [numbers.setdefault(_signature(_canonical(ops), None), len(numbers)) for ops in segments]
    while (pair := _inseparable(text)) is not None:
        numbers[pair] = letter = len(numbers)
        joined: list[list[Op]] = []
        letters: list[int] = []
        index = 0
        while index < len(text):
            if tuple(text[index : index + 2]) == pair:
                joined.append(segments[index] + segments[index + 1])
                letters.append(letter)
                index += 2
            else:
                joined.append(segments[index])
                letters.append(text[index])
                index += 1
        segments, text = joined, letters
    return segments


def _inseparable(text: list[int]) -> tuple[int, int] | None:
    """The first pair of letters of which one occurs several times, and only beside the other.

    A letter that stands beside itself is a whole layer already.
    """
    count = Counter(text)
    after: dict[int, set[int]] = {}
    before: dict[int, set[int]] = {}
    for left, right in zip([-1, *text], [*text, -1], strict=True):
        after.setdefault(left, set()).add(right)
        before.setdefault(right, set()).add(left)
    single = [letter for letter in dict.fromkeys(text) if letter not in after[letter]]
    for letter in single:
        (following, *others) = after[letter]
        if count[letter] > 1 and not others and following in single:
            return letter, following
    for letter in single:
        (leading, *others) = before[letter]
        if count[letter] > 1 and not others and leading in single:
            return leading, letter
    return None


# --- signatures ------------------------------------------------------------------------------------------------------
def _canonical(ops: Sequence[Op]) -> list[Op]:
    """The ops in an order that their wiring gives: operands first, depth first, from the last op on backwards."""
    inside = set(map(id, ops))
    roots = [op for op in ops if not any(id(use.op) in inside for value in op.results for use in value.uses)]
    found: dict[int, Op] = {}
    for root in roots:
        stack = [(root, False)]
        while stack:
            op, ready = stack.pop()
            if id(op) in found:
                continue
            if ready:
                found[id(op)] = op
                continue
            stack.append((op, True))
            read = [o.op for o in op.operands if isinstance(o, Value) and o.op is not None and id(o.op) in inside]
            stack += [(producer, False) for producer in reversed(read)]
    return list(found.values())


def _signature(ops: Sequence[Op], sizes: bool | None) -> Hashable:
    """What blocks of equal structure have in common; `sizes` None: names and wiring alone."""
    place = {id(value): (index, value.index) for index, op in enumerate(ops) for value in op.results}
    outside: dict[object, int] = {}

    def operand(found: Operand) -> Hashable:
        if found is None:
            return None
        if isinstance(found, Value) and id(found) in place:
            return place[id(found)]
        key = found.key if isinstance(found, Weight) else id(found)
        return type(found).__name__, outside.setdefault(key, len(outside)), _type(found.type, sizes)

    borders = () if sizes is None else tuple(place[id(value)] for value in _outputs(ops))
    rows = tuple(
        (op.name, tuple(map(operand, op.operands)), tuple(_type(value.type, sizes) for value in op.results),
         None if sizes is None else tuple((n, _attribute(n, v, sizes)) for n, v in op.attributes.items()))
        for op in ops
    )  # fmt: skip
    return rows, borders


def _type(type: TensorType, sizes: bool | None) -> Hashable:
    return None if sizes is None else type if sizes else (type.element, type.rank)


def _attribute(name: str, value: Attribute, sizes: bool) -> Hashable:
    if isinstance(value, tuple):
        return tuple(_attribute(name, item, sizes) for item in value)
    number = isinstance(value, int | float | SymbolicDim) and not isinstance(value, bool)
    return "number" if number and not sizes and name not in _PLACES else (type(value).__name__, repr(value))


# --- blocks ----------------------------------------------------------------------------------------------------------
def _outputs(ops: Sequence[Op]) -> list[Value]:
    inside = set(map(id, ops))
    returned = set(map(id, ops[0].graph.outputs)) if ops and ops[0].graph is not None else set()
    return [
        value for op in ops for value in op.results
        if id(value) in returned or any(id(use.op) not in inside for use in value.uses)
    ]  # fmt: skip


def _repetitions(graph: Graph, candidates: list[list[Op]], sizes: bool | None) -> tuple[Repetition, ...]:
    groups: dict[Hashable, list[list[Op]]] = {}
    for ops in candidates:
        if len(ops) > 1:
            ordered = _canonical(ops)
            groups.setdefault(_signature(ordered, sizes), []).append(ordered)
    return tuple(Repetition(_blocks(group)) for group in groups.values() if len(group) > 1)


def _blocks(group: list[list[Op]]) -> tuple[Block, ...]:
    names = [_name(ops) for ops in group]
    if len(set(names)) < len(names):
        names = [f"{name or 'block'}#{index}" for index, name in enumerate(names)]
    return tuple(_block(name, ops) for name, ops in zip(names, group, strict=True))


def _block(name: str, ops: list[Op]) -> Block:
    inside = set(map(id, ops))
    inputs: dict[int, Value] = {}
    weights: dict[str, None] = {}
    for operand in (operand for op in ops for operand in op.operands):
        if isinstance(operand, Weight):
            weights[operand.key] = None
        elif isinstance(operand, Value) and (operand.op is None or id(operand.op) not in inside):
            inputs[id(operand)] = operand
    return Block(name, tuple(ops), tuple(inputs.values()), tuple(_outputs(ops)), tuple(weights))


def _name(ops: Sequence[Op]) -> str:
    """The longest module path that nine in ten of the ops with a path lie under."""
    paths = [op.location.split(".") for op in ops if op.location]
    name: list[str] = []
    while True:
        following = Counter(path[len(name)] for path in paths if path[: len(name)] == name and len(path) > len(name))
        if not following or following.most_common(1)[0][1] * 10 < len(paths) * 9:
            return ".".join(name)
        name.append(following.most_common(1)[0][0])
