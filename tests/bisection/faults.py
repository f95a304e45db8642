"""A model of several equal layers, passes that do no harm, and passes with a fault planted in one layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from slmopt.ir.graph import Module, Op, Value, Weight
from slmopt.ir.text import parse_module
from slmopt.pipeline import Context, Contract, Lossy, Pass
from slmopt.rewrite import Match, Rewriter, any_, op, rewrite, rule
from slmopt.stand_in import add_stand_ins

__all__ = [
    "Compares", "Expand", "Fails", "Harmless", "Head", "Marks", "NeedsMore", "Rounds", "Scales", "layered_model",
]  # fmt: skip

_LAYER = """
    %n{i} = rms_norm(%x{i}, weight @layers.{i}.norm : f32[16]) {{eps = 1e-05, output = "f32"}} : f32[b, s, 16]
    %u{i} = linear(%n{i}, weight @layers.{i}.up : f32[32, 16]) {{activation = none, act = none}} : f32[b, s, 32]
    %a{i} = silu(%u{i}) : f32[b, s, 32]
    %d{i} = linear(%a{i}, weight @layers.{i}.down : f32[16, 32]) {{activation = none, act = none}} : f32[b, s, 16]
    %x{next} = add(%x{i}, %d{i}) : f32[b, s, 16]"""


def layered_model(layers: int = 6) -> Module:
    """Embedding, `layers` times norm, linear %u, silu %a, linear %d and residual add %x, and the tied head."""
    body = "".join(_LAYER.format(i=i, next=i + 1) for i in range(layers))
    module = parse_module(f"""module @layered {{
  metadata {{"batch": "b", "context": 64, "sequence": "s", "vocab": 40}}
  graph @forward(%ids: i64[b, s]) {{
    %x0 = embedding(%ids, weight @table : f32[40, 16]) : f32[b, s, 16]{body}
    %logits = linear(%x{layers}, weight @table : f32[40, 16]) {{activation = none, act = none}} : f32[b, s, 40]
    return %logits
  }}
}}""")
    add_stand_ins(module, drawn=True)
    return module


def _ops(module: Module, name: str) -> list[Op]:
    return [found for graph in module.graphs.values() for found in graph.walk() if found.name == name]


@dataclass(frozen=True)
class Harmless(Pass):
    """add(x, y) -> add(y, x)."""

    name: ClassVar[str] = "harmless"

    number: int = 0

    def run(self, module: Module, context: Context) -> dict[str, int]:
        swapped = 0
        for add in _ops(module, "add"):
            if context.permits("swap", add):
                first, second = add.operands
                add.set_operand(0, second)
                add.set_operand(1, first)
                swapped += 1
        return {"add": swapped} if swapped else {}


@dataclass(frozen=True)
class Expand(Pass):
    """silu(x) -> x * sigmoid(x), by a rule, and 1.05 times too large in some layers."""

    name: ClassVar[str] = "expand"

    wrong: tuple[int, ...] = ()

    def run(self, module: Module, context: Context) -> dict[str, int]:
        @rule(op("silu", any_("x")))
        def expand(at: Rewriter, m: Match) -> Value:
            """silu(x) -> x * sigmoid(x)"""
            found = at.add("mul", m["x"], at.add("sigmoid", m["x"]))
            if int(m.root.result.name[1:]) in self.wrong:
                return at.add("mul", found, at.add("constant", value=1.05, element="f32"))
            return found

        return rewrite(module, [expand])


@dataclass(frozen=True)
class Scales(Pass):
    """linear(x, w) -> linear(x, w * 1), by hand and without asking, and w * 1.5 in one layer."""

    name: ClassVar[str] = "scales"

    wrong: int = -1

    def run(self, module: Module, context: Context) -> dict[str, int]:
        linears = [found for found in _ops(module, "linear") if found.result.name.startswith("d")]
        for linear in linears:
            factor, weight = (1.5 if linear.result.name == f"d{self.wrong}" else 1.0), linear.operands[1]
            if isinstance(weight, Weight):
                linear.set_operand(1, module.derive(weight, f"times {factor}", lambda w, by=factor: w * by))
        return {"linear": len(linears)}


@dataclass(frozen=True)
class Rounds(Pass):
    """linear(x, w) -> linear(x, round(w)), asking for each: far off in some layers, a little in the others."""

    name: ClassVar[str] = "rounds"
    contract: ClassVar[Contract] = Lossy()

    coarse: tuple[int, ...] = ()

    def run(self, module: Module, context: Context) -> dict[str, int]:
        changed = 0
        for linear in _ops(module, "linear"):
            weight = linear.operands[1]
            if linear.result.name[0] != "u" or not isinstance(weight, Weight) or not context.permits("round", linear):
                continue
            step = 2.0 if int(linear.result.name[1:]) in self.coarse else 2.0**10
            linear.set_operand(1, module.derive(weight, f"round by {step}", lambda w, by=step: (w * by).round() / by))
            changed += 1
        return {"linear": changed} if changed else {}


@dataclass(frozen=True)
class Fails(Pass):
    """silu(x) -> x * sigmoid(x), and a Python error in one layer."""

    name: ClassVar[str] = "fails"

    wrong: int = 0

    def run(self, module: Module, context: Context) -> dict[str, int]:
        @rule(op("silu", any_("x")))
        def expand(at: Rewriter, m: Match) -> Value:
            """silu(x) -> x * sigmoid(x)"""
            if m.root.result.name == f"a{self.wrong}":
                raise ZeroDivisionError("a planted fault")
            return at.add("mul", m["x"], at.add("sigmoid", m["x"]))

        return rewrite(module, [expand])


@dataclass(frozen=True)
class Compares(Pass):
    """logits -> logits * (1 + the number of ops that came in since the original)."""

    name: ClassVar[str] = "compares"
    contract: ClassVar[Contract] = Lossy()
    compares: ClassVar[bool] = True

    def run(self, module: Module, context: Context) -> dict[str, int]:
        graph = module.graph()
        original = 0 if context.original is None else sum(1 for _ in context.original.graph().walk())
        more = sum(1 for _ in graph.walk()) - original
        if more == 0:
            return {}
        factor = graph.add("constant", [], {"value": 1.0 + more, "element": "f32"}).result
        graph.set_outputs([graph.add("mul", [graph.outputs[0], factor]).result])
        return {"logits": 1}


@dataclass(frozen=True)
class Marks(Pass):
    """Writes a word into the metadata, where no rewrite can be told apart."""

    name: ClassVar[str] = "marks"

    def run(self, module: Module, context: Context) -> dict[str, int]:
        module.metadata["planted"] = True
        return {"word": 1}


@dataclass(frozen=True)
class NeedsMore(Marks):
    """Runs after what nobody establishes."""

    name: ClassVar[str] = "marks-too"
    requires: ClassVar[frozenset[str]] = frozenset({"established"})


@dataclass(frozen=True)
class Head(Pass):
    """The logits are (1 + error) times too large."""

    name: ClassVar[str] = "head"
    unties: ClassVar[bool] = True

    error: float = 0.0

    def run(self, module: Module, context: Context) -> dict[str, int]:
        head, factor = module.graph().value("logits").op, 1 + self.error
        weight = None if head is None else head.operands[1]
        if head is None or not isinstance(weight, Weight):
            return {}
        head.set_operand(1, module.derive(weight, f"times {factor}", lambda w: w * factor))
        return {"linear": 1}
