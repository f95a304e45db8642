"""The ledger: what each pass did to the model's size, work and numbers, as a table and as JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import asdict, dataclass, field
from typing import Any

from slmopt.ir.dims import Dim, dim_symbols, product, substitute_dim
from slmopt.ir.graph import Graph, Module
from slmopt.ir.types import QuantizedType, TensorType
from slmopt.journal import Spent

__all__ = ["Drift", "Ledger", "Row", "Size", "format_count", "measure_size"]

MEASURED_TOKENS = 256  # FLOPs per token are those of @forward over so many tokens, divided by their number


@dataclass(frozen=True)
class Drift:
    """How far the logits of the probe are from the original model's.

    max_error: largest difference relative to the largest logit. kl: mean Kullback-Leibler divergence of the original's
    next-token distribution from the new one, in nats. top1: share of positions where both prefer the same token.
    """

    max_error: float
    kl: float
    top1: float


@dataclass(frozen=True)
class Size:
    """What a module costs: ops of @forward, numbers and bytes of weights, work and state of one token.

    state_bytes_per_token is None where there is no @step.
    """

    ops: int
    parameters: int
    weight_bytes: int
    flops_per_token: int
    state_bytes_per_token: int | None


@dataclass(frozen=True)
class Row:
    """One pass (or the original): what changed, by kind; size, drift and perplexity after it; what it took.

    seconds: of the pass and of its verification. peak_bytes: the most memory the process had used until then.
    rewrites: how often each kind of rewrite was made, and its time. graphs: those that the pass changed or added.
    """

    name: str
    changed: Mapping[str, int]
    size: Size
    drift: Drift | None = None
    perplexity: float | None = None
    seconds: float = 0.0
    verify_seconds: float = 0.0
    peak_bytes: int = 0
    rewrites: Mapping[str, Spent] = field(default_factory=dict)
    graphs: tuple[str, ...] = ()


@dataclass
class Ledger:
    """Rows in order, the original first.

    `baseline`: what a pipeline that goes on compares with. `original`: the module of the first row. Neither is written.
    """

    rows: list[Row] = field(default_factory=list)
    baseline: Any = None
    original: Module | None = None

    def branch(self) -> Ledger:
        """A ledger that goes on from here without changing this one."""
        return Ledger(list(self.rows), copy(self.baseline), self.original)

    def to_json(self, *, timings: bool = True) -> dict[str, Any]:
        """The ledger as JSON values; without `timings` it is the same for every run on the same input."""
        rows = [asdict(row) for row in self.rows]
        for row in rows:
            for name in () if timings else ("seconds", "verify_seconds", "peak_bytes", "rewrites"):
                del row[name]
            row["graphs"] = list(row["graphs"])
            row["drift"] = row["drift"] and {name: _rounded(value) for name, value in row["drift"].items()}
            row["perplexity"] = row["perplexity"] and _rounded(row["perplexity"])
        return {"rows": rows}

    def table(self) -> str:
        """The ledger as aligned text."""
        header = ("pass", "changed", "ops", "params", "weights", "FLOP/tok", "state/tok", "max err", "KL", "top-1",
                  "perplexity", "s", "peak")  # fmt: skip
        return format_table(header, [_cells(row) for row in self.rows], left=2)

    def timings(self) -> str:
        """Where the time went, as aligned text: each pass with its verification, and under it its kinds of rewrite.

        A kind's time is that of looking for its rewrites and making them, and part of the pass's.
        """
        rows: list[tuple[str, ...]] = []
        for row in self.rows:
            rows.append((row.name, "", _milliseconds(row.seconds), _milliseconds(row.verify_seconds)))
            spent = sorted(row.rewrites.items(), key=lambda item: -item[1].seconds)
            rows += [(f"  {kind}", str(found.count), _milliseconds(found.seconds), "") for kind, found in spent]
        total, checked = (sum(getattr(row, name) for row in self.rows) for name in ("seconds", "verify_seconds"))
        rows.append(("total", "", _milliseconds(total), _milliseconds(checked)))
        return format_table(("pass", "rewrites", "ms", "verify ms"), rows)


def _cells(row: Row) -> tuple[str, ...]:
    changed = ", ".join(f"{count} {kind}" for kind, count in row.changed.items())
    if not changed and row.name != "original":
        changed = "nothing"
    state = row.size.state_bytes_per_token
    drift = ("", "", "") if row.drift is None else (
        f"{row.drift.max_error:.1e}", f"{row.drift.kl:.1e}", f"{row.drift.top1:.1%}",
    )  # fmt: skip
    return (
        row.name, changed if len(changed) <= 48 else changed[:45] + "...", str(row.size.ops),
        format_count(row.size.parameters), format_count(row.size.weight_bytes, "B"),
        format_count(row.size.flops_per_token), "" if state is None else format_count(state, "B"), *drift,
        "" if row.perplexity is None else f"{row.perplexity:.4f}", f"{row.seconds + row.verify_seconds:.1f}",
        format_count(row.peak_bytes, "B") if row.peak_bytes else "",
    )  # fmt: skip


def _milliseconds(seconds: float) -> str:
    return f"{1000 * seconds:.1f}"


def format_table(header: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> str:
    """Aligned columns without those that are empty in every row; the first `left` are flush left."""
    used = [index for index in range(len(header)) if any(row[index] for row in rows)]
    lines = [[row[index] for index in used] for row in (header, *rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(used))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if index < left else cell.rjust(width)
            for cell, width, index in zip(line, widths, used, strict=True)
        ).rstrip()
        for line in lines
    )


def format_count(number: int | float, unit: str = "") -> str:
    """Three significant digits with k, M, G (powers of 1000): 1234567 -> `1.23 M`."""
    size, prefix = float(number), ""
    for larger in ("k", "M", "G", "T"):
        if abs(size) < 1000:
            break
        size, prefix = size / 1000, larger
    digits = f"{size:.0f}" if not prefix or abs(size) >= 100 else f"{size:.3g}"
    return f"{digits} {prefix}{unit}".rstrip()


def _rounded(value: float) -> float:
    return float(f"{value:.4g}")


def measure_size(module: Module) -> Size:
    """What the module costs; symbols other than batch and sequence count as 1."""
    graph = module.graphs.get("forward") or next(iter(module.graphs.values()), Graph("empty"))
    types = module.weight_types()
    return Size(
        ops=sum(1 for _ in graph.walk()),
        parameters=sum(_number(product(type.shape), {}) for type in types.values()),
        weight_bytes=sum(_number(type.bytes, {}) for type in types.values()),
        flops_per_token=_flops_per_token(module, graph),
        state_bytes_per_token=_state_bytes(module.graphs["step"]) if "step" in module.graphs else None,
    )


def _flops_per_token(module: Module, graph: Graph) -> int:
    sizes: dict[str, Dim] = {str(module.metadata.get("sequence", "s")): MEASURED_TOKENS}
    return sum(_number(op.spec.cost(op).flops, sizes) for op in graph.walk()) // MEASURED_TOKENS


def _state_bytes(step: Graph) -> int:
    """Bytes of state that one more position of capacity takes."""
    from slmopt.ir.step import CAPACITY

    states = [value.type for value in step.inputs[len(step.inputs) - step.states :]]

    def total(capacity: int) -> int:
        return sum(_bytes(type, {CAPACITY: capacity}) for type in states)

    return total(2) - total(1)


def _bytes(type: TensorType, sizes: Mapping[str, Dim]) -> int:
    """Of a state. Codes of activations have float32 scales, those of weights, which `bytes` counts, float16."""
    names = {name for dim in type.shape for name in dim_symbols(dim)}
    bound = type.substitute({name: sizes.get(name, 1) for name in names})
    found = _number(bound.bytes, {})
    if isinstance(bound.element, QuantizedType):
        found += 2 * bound.element.groups(_number(bound.shape[-1], {})) * _number(product(bound.shape[:-1]), {})
    return found


def _number(dim: Dim, sizes: Mapping[str, Dim]) -> int:
    found = substitute_dim(dim, {name: sizes.get(name, 1) for name in dim_symbols(dim)})
    return int(found)  # type: ignore[arg-type]
