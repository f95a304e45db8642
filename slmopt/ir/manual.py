"""The manual of the IR, written from its op specs: `python -m slmopt.ir.manual > docs/ir.md`."""

from __future__ import annotations

import sys
from importlib.resources import files

from slmopt.errors import IRError
from slmopt.ir.dims import symbol
from slmopt.ir.graph import Attribute, Graph, Module, Op, Operand, Value
from slmopt.ir.ops import attention, elementwise, language, linear_attention, reduce, shape
from slmopt.ir.spec import OpSpec, Required
from slmopt.ir.step import POSITION, TOKENS, StepBuilder
from slmopt.ir.text import parse_module, print_op, write_attribute
from slmopt.ir.types import DType, TensorType

__all__ = ["describe_op", "example_module", "example_op", "write_manual"]

_SEQUENCE = "s"
_PARTS = (
    ("Language models", (language, attention, linear_attention)), ("Elementwise", (elementwise,)),
    ("Along axes", (reduce,)), ("Making and moving", (shape,)),
)  # fmt: skip
_KINDS = {"int": "size", "float": "number", "tuple": "list", "str": "string"}


def write_manual() -> str:
    """The whole manual in Markdown: the language, then every op of the core."""
    head = (files("slmopt.ir") / "manual.md").read_text(encoding="utf-8")
    parts = [head.replace("{{grammar}}", _grammar()).rstrip()]
    for title, modules in _PARTS:
        specs = [spec for module in modules for spec in module.SPECS]
        names = ", ".join(f"[`{spec.name}`](#{spec.name})" for spec in specs)
        parts += [f"## {title}\n\n{names}", *(describe_op(spec) for spec in specs)]
    return "\n\n".join(parts) + "\n"


def _grammar() -> str:
    """The grammar as the parser's docstring has it."""
    text = (parse_module.__doc__ or "").partition("Grammar")[2].partition("\n\n")[2]
    return "\n".join(line.removeprefix("        ") for line in text.rstrip().splitlines())


def example_module(spec: OpSpec) -> Module:
    """The example of a spec as a module with one graph; IRError where there is none or it is wrong."""
    inputs, arrow, op = spec.example.partition("-> ")
    if not arrow:
        raise IRError(f"op {spec.name} has no example: expected `inputs -> op`")
    return parse_module(f"module @example {{ graph @forward({inputs}) {{ %y = {op} return %y }} }}")


def example_op(spec: OpSpec) -> Op:
    """The op of a spec's example, in its graph."""
    return next(example_module(spec).graph().walk())


def describe_op(spec: OpSpec) -> str:
    """What there is to know of an op, in Markdown, with an example, its cost, and how it is decoded."""
    lines = [f"### {spec.name}", f"{_sentence(spec.summary)}"]
    if spec.meaning:
        lines.append(spec.meaning)
    lines.append(_operands(spec.operands))
    if spec.attributes:
        rows = [f"| `{name}` | {_kind(default)} | {_default(default)} |" for name, default in spec.attributes.items()]
        lines.append("\n".join(["| attribute | type | default |", "| --- | --- | --- |", *rows]))
    if spec.example:
        lines += _example(spec)
    return "\n\n".join(lines)


def _sentence(text: str) -> str:
    return f"{text}." if text[-1] != "." else text


def _operands(operands: tuple[str, ...]) -> str:
    if not operands:
        return "No operands."
    said = [
        f"any number of {name[1:]}" if name.startswith("*") else f"{name[:-1]} (may be absent)" if name.endswith("?")
        else name for name in operands
    ]  # fmt: skip
    return f"Operands: {', '.join(said)}."


def _kind(default: object) -> str:
    if isinstance(default, Required):
        return _KINDS.get(default.type.__name__, default.type.__name__)
    kinds: dict[type, str] = {bool: "true or false", int: "size", float: "number", str: "string", tuple: "list"}
    return kinds.get(type(default), "see above") if default is not None else "none, or see above"


def _default(default: Attribute | Required) -> str:
    return "required" if isinstance(default, Required) else f"`{write_attribute(default)}`"


# --- the example, and what can be computed of it ---------------------------------------------------------------------
def _example(spec: OpSpec) -> list[str]:
    op = example_op(spec)
    graph = op.graph
    inputs = ", ".join(f"%{value.name}: {value.type}" for value in graph.inputs) if graph is not None else ""
    cost = spec.cost(op)
    weights = f", {cost.weight_bytes} bytes of weights" if cost.weight_bytes else ""
    work = f"Cost of the example: {cost.flops} FLOP{weights}"
    code = f"```\n({inputs}) ->\n{print_op(op)}\n```" if inputs else f"```\n{print_op(op)}\n```"
    return [code, f"{work}. {_decoding(spec, op)}"]


def _decoding(spec: OpSpec, op: Op) -> str:
    """Whether positions along `s` mix in the example, and what its step does."""
    if spec.mixes is None:
        return "Positions never mix."
    mixes = spec.mixes(op, _SEQUENCE)
    where = f"In the example positions along `{_SEQUENCE}` {'mix' if mixes else 'do not mix'}"
    if spec.step is None:
        return f"{where}; where they mix, there is no incremental form."
    graph, states = _step(spec, op)
    lines = "\n".join(f"    {print_op(inner)}" for inner in graph.walk())
    kept = ", ".join(f"`%{state.name}: {state.type}`" for state in states) or "nothing"
    return f"{where}. Its step keeps {kept}:\n\n{lines}"


def _step(spec: OpSpec, op: Op) -> tuple[Graph, list[Value]]:
    graph = Graph("step")
    source = op.graph.inputs if op.graph is not None else []
    made: dict[int, Operand] = {
        id(value): graph.add_input(value.name, value.type.substitute({_SEQUENCE: symbol(TOKENS)})) for value in source
    }
    builder = StepBuilder(graph, graph.add_input(POSITION, TensorType(DType.i64, ())), _SEQUENCE)
    builder.op = op
    assert spec.step is not None
    spec.step(builder, op, tuple(made.get(id(operand), operand) for operand in op.operands))
    return graph, builder.states


if __name__ == "__main__":
    sys.stdout.write(write_manual())
