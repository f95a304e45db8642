"""What the interpreter expects of a compiled artifact: logits for fixed token ids, and a greedy continuation.

A compile writes it into the artifact as probe.json, so that any machine can check its program without the model. Of
each position it has the likeliest token, by how much it leads, and the logits of some tokens, evenly spaced.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slmopt.errors import ArtifactError, InputError
from slmopt.interpreter import initial_states, run, step_through
from slmopt.ir.dims import product
from slmopt.ir.graph import Module
from slmopt.ir.types import DType, QuantizedType
from slmopt.probe import make_probe, measuring

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

__all__ = ["PROBE", "Agreement", "Expectation", "Expected", "expect", "read_expectation"]

PROBE = "probe.json"
_VERSION = 1
_COLUMNS = 64  # most tokens whose logits are kept
_DIGITS = 8  # significant ones of a logit: float32 has no more
_GREEDY = 24  # tokens, at most
_PRODUCTS = 1 << 28  # that computing them may take
_EXACT = 1e-3  # error of float32 programs, relative to the largest logit: sums are added up in another order
# Where activations or states are rounded, a number on the edge between two codes may fall either way, and all that
# reads it follows.
_ROUNDED = 5e-2


@dataclass(frozen=True)
class Agreement:
    """How near a program's logits are to those expected of one sequence."""

    name: str
    positions: int
    error: float  # the largest difference, relative to the largest logit expected
    same: int  # positions whose likeliest token is the one expected
    tolerance: float
    settled: bool  # whether every token that differs leads by less than errors within the tolerance explain

    @property
    def holds(self) -> bool:
        """Whether all of it is within the tolerance; not where a logit is no number."""
        return self.error <= self.tolerance and self.settled


@dataclass(frozen=True)
class Expected:
    """A sequence: `prompt` ids at once, the rest one by one, and what is expected after each id.

    `greedy`: each id after the prompt is the likeliest after those before it. logits: [positions][columns].
    """

    name: str
    ids: tuple[int, ...]
    prompt: int
    greedy: bool
    columns: tuple[int, ...]
    logits: tuple[tuple[float, ...], ...]
    likeliest: tuple[int, ...]
    leads: tuple[float, ...]  # by how much the likeliest token leads the second
    largest: float  # size of the largest logit of all

    @property
    def parts(self) -> list[int]:
        """The lengths in which the ids are fed."""
        return [self.prompt] + [1] * (len(self.ids) - self.prompt)

    def head(self, count: int) -> Expected:
        """The first `count` positions."""
        kept = min(count, len(self.ids))
        return Expected(self.name, self.ids[:kept], min(self.prompt, kept), self.greedy, self.columns,
                        self.logits[:kept], self.likeliest[:kept], self.leads[:kept], self.largest)  # fmt: skip

    def compare(self, found: NDArray[np.float32], tolerance: float) -> Agreement:
        """Judge a program's logits [positions, vocab]."""
        import numpy as np

        if found.shape[0] != len(self.ids) or found.shape[1] <= max(self.columns):
            raise ArtifactError(f"the program gave logits {list(found.shape)} for {len(self.ids)} tokens")
        difference = np.abs(found[:, list(self.columns)] - np.array(self.logits, np.float32))
        error = float(difference.max() / max(self.largest, 1e-30))
        same = found.argmax(-1) == np.array(self.likeliest)
        close = np.array(self.leads) <= 2 * tolerance * self.largest
        settled = bool((same | close).all() and np.isfinite(found).all())
        return Agreement(self.name, len(self.ids), error if error == error else float("inf"), int(same.sum()),
                         tolerance, settled)  # fmt: skip


@dataclass(frozen=True)
class Expectation:
    """What is expected of a program: `tolerance` is the error relative to the largest logit that it may have."""

    tolerance: float
    sequences: tuple[Expected, ...]

    def to_json(self) -> str:
        """JSON text, a line; numbers have as many digits as float32."""
        sequences = [{
            "name": each.name, "ids": list(each.ids), "prompt": each.prompt, "greedy": each.greedy,
            "columns": list(each.columns), "logits": [[_short(x) for x in row] for row in each.logits],
            "likeliest": list(each.likeliest), "leads": [_short(x) for x in each.leads],
            "largest": _short(each.largest),
        } for each in self.sequences]  # fmt: skip
        values = {"version": _VERSION, "tolerance": self.tolerance, "sequences": sequences}
        return json.dumps(values, sort_keys=True, separators=(",", ":")) + "\n"


def _short(value: float) -> float:
    return float(f"{value:.{_DIGITS}g}")


def read_expectation(artifact: Path) -> Expectation:
    """The expectation that an artifact carries; InputError where it has none, ArtifactError where it is damaged."""
    file = artifact / PROBE
    if not file.is_file():
        raise InputError(f"{artifact} has no {PROBE}, which says what the interpreter expects of it: compile it again, "
                         "or name the model to compare with (--model)")  # fmt: skip
    try:
        data = json.loads(file.read_bytes())
        if data["version"] != _VERSION:
            raise ArtifactError(f"{file} has version {data['version']}, expected {_VERSION}; compile the model again")
        return Expectation(float(data["tolerance"]), tuple(_read_sequence(each) for each in data["sequences"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ArtifactError(f"{file} is damaged ({type(error).__name__}: {error}); compile the model again") from error


def _read_sequence(data: Mapping[str, Any]) -> Expected:
    rows = tuple(tuple(float(x) for x in row) for row in data["logits"])
    ids, columns, likeliest = (tuple(int(x) for x in data[name]) for name in ("ids", "columns", "likeliest"))
    leads = tuple(float(x) for x in data["leads"])
    if not ids or {len(rows), len(likeliest), len(leads)} != {len(ids)} or {len(row) for row in rows} != {len(columns)}:
        raise ValueError("its lists are of unequal lengths")
    return Expected(str(data["name"]), ids, int(data["prompt"]), bool(data["greedy"]), columns, rows, likeliest, leads,
                    float(data["largest"]))  # fmt: skip


def expect(module: Module, *, context: int, greedy: int | None = None) -> Expectation:
    """What the interpreter computes through @step, its states rounded as they are declared.

    Ids drawn from the whole vocabulary, as many as a pass is probed with; and `greedy` tokens that follow the token
    every text begins with, without a number as many as a compile has the time for. Both are cut to `context` positions.
    """
    greedy = _affordable(module) if greedy is None else greedy
    with measuring():
        drawn = make_probe(module).inputs[0][0].tolist()[:context]
        prompt = max(1, len(drawn) // 2)
        sequences = [_expected(module, "drawn", drawn, prompt, False)]
        if greedy > 0:
            first = module.metadata.get("bos_token_id")
            ids = _continue(module, drawn[0] if first is None else int(first), min(greedy, context))
            sequences.append(_expected(module, "greedy", ids, 1, True))
    return Expectation(_ROUNDED if _rounds(module) else _EXACT, tuple(sequences))


def _continue(module: Module, first: int, count: int) -> list[int]:
    """A token and the `count` - 1 that follow it, each the likeliest; the logits after the last give one more."""
    import torch

    graph = module.graph("step")
    states, ids = initial_states(graph, 1, count, chunk=1), [first]
    while len(ids) < count:
        given = [torch.tensor([ids[-1:]]), torch.tensor(len(ids) - 1), *states]
        logits, *following = run(module, graph, given)
        states = [new.to(old.dtype) for old, new in zip(states, following, strict=True)]
        ids.append(int(logits[0, -1].argmax()))
    return ids


def _expected(module: Module, name: str, ids: list[int], prompt: int, greedy: bool) -> Expected:
    import torch

    parts = [prompt] + [1] * (len(ids) - prompt)
    logits: torch.Tensor = step_through(module, torch.tensor([ids]), parts if greedy else [len(ids)])[0].float()
    vocabulary = logits.shape[1]
    columns = sorted({index * vocabulary // _COLUMNS for index in range(_COLUMNS)}) if vocabulary > _COLUMNS else (
        list(range(vocabulary))
    )  # fmt: skip
    best = logits.topk(min(2, vocabulary), dim=-1)
    leads = best.values[:, 0] - best.values[:, -1]
    rows = tuple(tuple(row) for row in logits[:, columns].tolist())
    return Expected(name, tuple(ids), prompt, greedy, tuple(columns), rows, tuple(best.indices[:, 0].tolist()),
                    tuple(leads.tolist()), float(logits.abs().max()))  # fmt: skip


def _affordable(module: Module) -> int:
    """How many greedy tokens a compile has the time for: a fraction of a second, whatever the model."""
    numbers = sum(product(type.shape) for type in module.weight_types().values())
    return min(_GREEDY, _PRODUCTS // max(1, numbers)) if isinstance(numbers, int) else 0


def _rounds(module: Module) -> bool:
    """Whether @step rounds activations or states to anything shorter than float32."""
    graph = module.graph("step")
    values = [*graph.inputs, *(result for op in graph.walk() for result in op.results)]
    short = any(
        isinstance(element, QuantizedType) or (element.is_float and element.bits < DType.f32.bits)
        for element in (value.type.element for value in values)
    )
    return short or any(op.attributes.get("act") is not None for op in graph.walk() if op.name == "linear")
