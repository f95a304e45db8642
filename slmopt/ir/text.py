"""The IR as text: `parse_module(print_module(m)) == m`, always. The grammar is in the docstring of `parse_module`."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Container
from typing import Any

from slmopt.errors import IRError
from slmopt.ir.dims import Dim, SymbolicDim, parse_dim
from slmopt.ir.graph import Attribute, Graph, Module, Op, Operand, Value, Weight
from slmopt.ir.types import TensorType, parse_element

__all__ = ["parse_module", "print_graph", "print_module", "print_op", "read_module", "write_attribute"]

_PLAIN_KEY = re.compile(r"[A-Za-z_][\w.]*\Z")


# --- printing ----------------------------------------------------------------------------------------------------
def write_attribute(value: Attribute) -> str:
    """An attribute as text."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return repr(value)
    if isinstance(value, int | SymbolicDim):
        return str(value)
    if isinstance(value, str):
        return json.dumps(str(value))
    return "[" + ", ".join(map(write_attribute, value)) + "]"


def _key(key: str) -> str:
    return f"@{key}" if _PLAIN_KEY.match(key) else f"@{json.dumps(key)}"


def _operand(operand: Operand) -> str:
    if operand is None:
        return "_"
    if isinstance(operand, Weight):
        return f"weight {_key(operand.key)} : {operand.type}"
    return f"%{operand.name}"


def print_op(op: Op) -> str:
    """One line: `%y = linear(%x, weight @w : f32[8, 4]) {activation = none} : f32[b, s, 8] loc("path")`."""
    names = ", ".join(f"%{value.name}" for value in op.results)
    attributes = ", ".join(f"{name} = {write_attribute(value)}" for name, value in op.attributes.items())
    types = ", ".join(str(value.type) for value in op.results)
    line = f"{names} = {op.name}({', '.join(map(_operand, op.operands))})"
    line += f" {{{attributes}}}" if attributes else ""
    line += f" : {types}" if types else ""
    return line + (f" loc({json.dumps(op.location)})" if op.location else "")


def print_graph(graph: Graph) -> str:
    """The graph's text, indented by two spaces."""
    plain = len(graph.inputs) - graph.states
    inputs = [f"{'state ' if i >= plain else ''}%{v.name}: {v.type}" for i, v in enumerate(graph.inputs)]
    lines = [f"  graph {_key(graph.name)}({', '.join(inputs)}) {{"]
    lines += [f"    {print_op(op)}" for op in graph.walk()]
    lines.append(f"    return {', '.join(f'%{value.name}' for value in graph.outputs)}".rstrip())
    return "\n".join([*lines, "  }"])


def print_module(module: Module) -> str:
    """The module's text; weights appear as keys with types."""
    lines = [f"module {_key(module.name)} {{"]
    if module.metadata:
        lines.append(f"  metadata {json.dumps(module.metadata, sort_keys=True)}")
    lines += [print_graph(graph) for graph in module.graphs.values()]
    return "\n".join([*lines, "}"]) + "\n"


# --- parsing -----------------------------------------------------------------------------------------------------
_TOKEN = re.compile(
    r'(?P<space>\s+|//[^\n]*)|(?P<string>"(?:[^"\\]|\\.)*")|(?P<float>-?(?:[0-9]+\.[0-9]*(?:e[+-]?[0-9]+)?|[0-9]+e[+-]?[0-9]+|inf\b))'
    r"|(?P<int>[0-9]+)|(?P<value>%\w+)|(?P<key>@[A-Za-z_][\w.]*|@(?=\"))|(?P<name>[A-Za-z_]\w*)|(?P<mark>[(){}\[\],:=+*-])"
)
_MAX_DEPTH = 32  # of lists
_MAX_JSON_DEPTH = 100
_MAX_MESSAGE = 1000  # characters: names in a wrong text may be of any length


class _Reader:
    """Tokens of a text, with the position for messages."""

    def __init__(self, text: str) -> None:
        self.text, self.tokens, self.at = text, [], 0
        self.lines: dict[int, int] = {}  # of each op, by its id
        self._line, self._counted = 1, 0
        place = 0
        while place < len(text):
            match = _TOKEN.match(text, place)
            if match is None:
                raise IRError(f"{self._where(place)}: unexpected character {text[place]!r}")
            if match.lastgroup != "space":
                self.tokens.append((str(match.lastgroup), match[0], place))
            place = match.end()
        self.tokens.append(("end", "", len(text)))

    tokens: list[tuple[str, str, int]]

    def _where(self, place: int) -> str:
        line = self.text.count("\n", 0, place)
        return f"line {line + 1}, column {place - self.text.rfind(chr(10), 0, place)}"

    @property
    def kind(self) -> str:
        return self.tokens[self.at][0]

    @property
    def token(self) -> str:
        return self.tokens[self.at][1]

    def error(self, message: str) -> IRError:
        found = self.token or "the end of the text"
        return IRError(f"{self._where(self.tokens[self.at][2])}: {message[:_MAX_MESSAGE]}, found {found[:40]!r}")

    def take(self, expected: str | None = None, kind: str | None = None) -> str:
        if (expected is not None and self.token != expected) or (kind is not None and self.kind != kind):
            raise self.error(f"expected {expected or kind}")
        token = self.token
        if self.kind != "end":
            self.at += 1
        return token

    def line(self) -> int:
        """The line of the next token, from 1 on; asked for tokens in order."""
        place = self.tokens[self.at][2]
        self._line, self._counted = self._line + self.text.count("\n", self._counted, place), place
        return self._line

    def accept(self, token: str) -> bool:
        if self.token == token and self.kind != "string":
            self.at += 1
            return True
        return False

    def string(self) -> str:
        token = self.take(kind="string")
        try:
            return str(json.loads(token))
        except ValueError as error:
            self.at -= 1
            raise self.error("expected a JSON string") from error


def _read_dim(reader: _Reader) -> Dim:
    parts: list[str] = []
    start = reader.at
    while reader.kind in ("int", "name") or reader.token in ("+", "-", "*"):
        parts.append(reader.take())
    try:
        return parse_dim(" ".join(parts))
    except IRError as error:
        if parts:
            reader.at = start
        raise reader.error(f"expected a dimension such as 64, s or p + t: {error}") from error


def _read_type(reader: _Reader) -> TensorType:
    name = reader.take(kind="name")
    try:
        element = parse_element(name)
    except IRError as error:
        reader.at -= 1
        raise reader.error(str(error)) from error
    reader.take("[")
    shape: list[Dim] = []
    while not reader.accept("]"):
        shape.append(_read_dim(reader))
        if reader.token != "]":
            reader.take(",")
    return TensorType(element, tuple(shape))


def _read_attribute(reader: _Reader, depth: int = 0) -> Attribute:
    if depth > _MAX_DEPTH:
        raise reader.error(f"lists nest deeper than {_MAX_DEPTH}")
    if reader.kind == "string":
        return reader.string()
    if reader.kind == "float":
        return float(reader.take())
    if reader.token == "-" and reader.tokens[reader.at + 1][0] == "float":
        reader.take()
        return -float(reader.take())
    constants: dict[str, Attribute] = {"none": None, "true": True, "false": False, "nan": math.nan}
    if reader.token in constants:
        return constants[reader.take()]
    if reader.accept("["):
        items: list[Attribute] = []
        while not reader.accept("]"):
            items.append(_read_attribute(reader, depth + 1))
            if reader.token != "]":
                reader.take(",")
        return tuple(items)
    return _read_dim(reader)


def _read_key(reader: _Reader) -> str:
    token = reader.take(kind="key")
    return token[1:] if len(token) > 1 else reader.string()


def _read_operand(reader: _Reader, values: dict[str, Value]) -> Operand:
    if reader.accept("_"):
        return None
    if reader.accept("weight"):
        key = _read_key(reader)
        reader.take(":")
        return Weight(key, _read_type(reader))
    if reader.kind == "value" and reader.token[1:] not in values:
        raise reader.error("this value is not defined before here")
    return values[reader.take(kind="value")[1:]]


def _read_name(reader: _Reader, values: Container[str]) -> str:
    name = reader.token[1:]
    if reader.kind == "value" and name in values:
        raise reader.error("this value is already defined")
    if reader.kind == "value" and name[0].isdigit():
        raise reader.error("a value's name begins with a letter or an underscore")
    return reader.take(kind="value")[1:]


def _read_names(reader: _Reader, values: dict[str, Value]) -> list[str]:
    names = {_read_name(reader, values): None}
    while reader.accept(","):
        name = _read_name(reader, values)
        if name in names:
            reader.at -= 1
            raise reader.error("this value is already defined")
        names[name] = None
    return list(names)


def _read_op(reader: _Reader, graph: Graph, values: dict[str, Value]) -> None:
    start, line = reader.at, reader.line()
    names = _read_names(reader, values)
    reader.take("=")
    op_name = reader.take(kind="name")
    reader.take("(")
    operands: list[Operand] = []
    while not reader.accept(")"):
        operands.append(_read_operand(reader, values))
        if reader.token != ")":
            reader.take(",")
    attributes: dict[str, Attribute] = {}
    if reader.accept("{"):
        while not reader.accept("}"):
            name = reader.take(kind="name")
            reader.take("=")
            attributes[name] = _read_attribute(reader)
            if reader.token != "}":
                reader.take(",")
    reader.take(":")
    types = [_read_type(reader)]
    while reader.accept(","):
        types.append(_read_type(reader))
    location = ""
    if reader.accept("loc"):
        reader.take("(")
        location = reader.string()
        reader.take(")")
    if len(names) != len(types):
        reader.at = start
        raise reader.error(f"{len(names)} results but {len(types)} types")
    try:
        op = graph.add(op_name, operands, attributes, hint=names, location=location, types=types)
    except IRError as error:
        reader.at = start
        raise reader.error(str(error)) from error
    reader.lines[id(op)] = line
    values.update({value.name: value for value in op.results})


def _read_graph(reader: _Reader) -> Graph:
    graph = Graph(_read_key(reader))
    values: dict[str, Value] = {}
    reader.take("(")
    while not reader.accept(")"):
        state = reader.accept("state")
        if graph.states and not state:
            raise reader.error("states come last among the inputs: expected 'state'")
        name = _read_name(reader, values)
        reader.take(":")
        values[name] = graph.add_input(name, _read_type(reader))
        graph.states += state
        if reader.token != ")":
            reader.take(",")
    reader.take("{")
    while not reader.accept("return"):
        _read_op(reader, graph, values)
    outputs: list[Value] = []
    while reader.token != "}":
        operand = _read_operand(reader, values)
        if not isinstance(operand, Value):
            raise reader.error("a graph returns values")
        outputs.append(operand)
        if reader.token != "}":
            reader.take(",")
    reader.take("}")
    graph.set_outputs(outputs)
    return graph


def _read_json(reader: _Reader) -> dict[str, Any]:
    place = reader.tokens[reader.at][2]
    try:
        value, end = json.JSONDecoder().raw_decode(reader.text, place)
    except (ValueError, RecursionError) as error:
        raise reader.error("expected a JSON object after 'metadata'") from error
    if not isinstance(value, dict):
        raise reader.error("expected a JSON object after 'metadata'")
    inner: list[Any] = [value]
    for _ in range(_MAX_JSON_DEPTH):
        inner = [x for item in inner for x in (item.values() if isinstance(item, dict) else item)
                 if isinstance(x, dict | list)]  # fmt: skip
    if inner:
        raise reader.error(f"metadata nests deeper than {_MAX_JSON_DEPTH}")
    while reader.tokens[reader.at][2] < end and reader.kind != "end":
        reader.at += 1
    return value


def parse_module(text: str) -> Module:
    """Parse a module; IRError gives line, column and what was expected.

    Grammar (`[x]`: x or nothing, `{x}`: x any number of times; `//` begins a comment; a comma may end a list):

        module    = "module" key "{" ["metadata" object] {graph} "}"
        graph     = "graph" key "(" [input {"," input}] ")" "{" {op} "return" [value {"," value}] "}"
        input     = ["state"] value ":" type                          states come last
        op        = value {"," value} "=" name "(" [operand {"," operand}] ")" ["{" [setting {"," setting}] "}"]
                    ":" type {"," type} ["loc" "(" string ")"]        a value and a type for each result
        operand   = value | "weight" key ":" type | "_"               "_": an absent optional operand
        setting   = name "=" attribute
        attribute = "none" | "true" | "false" | real | size | string | "[" [attribute {"," attribute}] "]"
        type      = name "[" [size {"," size}] "]"                    name of an element type: f32, i64, q4g32
        size      = ["-"] product {("+" | "-") product}               2*b*s - 1
        product   = (digits | name) {"*" (digits | name)}
        real      = ["-"] (digits "." [digits] [exponent] | digits exponent | "inf") | "nan"
        exponent  = "e" ["+" | "-"] digits
        value     = "%" word                                          word: letters, digits, "_"; no digit first
        key       = "@" word {"." [word]} | "@" string
        name      = letter or "_", then letters, digits, "_"
        object, string                                                as JSON has them
    """
    return _read_module(_Reader(text))


def read_module(text: str) -> Module:
    """Parse a module and verify it; IRError begins with the line of what is wrong, also where the text parses."""
    from slmopt.ir.verify import verify

    reader = _Reader(text)
    module = _read_module(reader)
    try:
        verify(module)
    except IRError as error:
        line = reader.lines.get(id(error.op), 1)
        raise IRError(f"line {line}: {error}") from error
    return module


def _read_module(reader: _Reader) -> Module:
    reader.take("module")
    name = _read_key(reader)
    reader.take("{")
    metadata = _read_json(reader) if reader.accept("metadata") else {}
    graphs: dict[str, Graph] = {}
    while reader.accept("graph"):
        graph = _read_graph(reader)
        if graph.name in graphs:
            raise reader.error(f"graph @{graph.name} is defined twice")
        graphs[graph.name] = graph
    reader.take("}")
    reader.take(kind="end")
    return Module(name, graphs.values(), metadata=metadata)
