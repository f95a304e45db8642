"""What holds of every pass, one check each: they look at a trial and raise BrokenError."""

from __future__ import annotations

import tempfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from slmopt.ir.graph import Graph, Module
from slmopt.ir.text import parse_module
from slmopt.ir.weights import QuantizedTensor
from slmopt.module_files import add_stored_weights, weights_file, write_module
from slmopt.pipeline import Exact
from slmopt.testing.numbers import SIZES, all_finite, compare, compute, compute_step, is_decoding, perturbed, rounds
from slmopt.testing.transformations import TRANSFORMATIONS, all_at_once, with_weights_reordered
from slmopt.testing.trial import BrokenError, RefusalError, Trial, run_pass

__all__ = ["CHECKS", "find_transformation"]

_STEP = 1e-4
_SAME = 1e-6  # two results of a lossy pass on modules that say the same
_ROUNDED = 0.05  # where activations are rounded to 8 bits, and one of them falls the other way
_BITS = 8.0  # how much more than a change of each weight's last bit an exact pass may change


# --- numbers -----------------------------------------------------------------------------------------------------
def check_numbers(trial: Trial) -> None:
    """Every graph gives what it gave, within the tolerance of an exact pass or the `loss_bound` of a lossy one."""
    for name in trial.before.graphs:
        if name != "step":
            _compare_graph(trial, trial.after, name, "numbers", "")


def _compare_graph(
    trial: Trial, after: Module, name: str, check: str, aside: str, sizes: Sequence[int] = range(len(SIZES))
) -> None:  # fmt: skip
    for index in sizes:
        size, expected = SIZES[index], trial.expected(name, index)
        if not all_finite(expected):
            continue
        where = f"@{name} at {', '.join(f'{k}={v}' for k, v in size.items())}{aside}"
        found = compute(after, name, size)
        if not all_finite(found):
            if not all_finite(compute(trial.before, name, size, wide=False)):
                continue  # beyond float32, in which weights are stored
            raise BrokenError(check, f"@{name} gives numbers that are not finite{aside}")
        worst = compare(expected, found, where)
        allowed = _allowed(trial, name, trial.tolerance)
        if worst.error > allowed and worst.error > _BITS * _sensitivity(trial, name, index):
            raise BrokenError(check, f"{worst.where} differs by {worst.error:.3g} of its largest number; "
                                     f"{allowed:g} is allowed")  # fmt: skip


def _allowed(trial: Trial, name: str, tolerance: float) -> float:
    """The tolerance, or that of graphs which round activations."""
    return max(tolerance, _ROUNDED) if rounds(trial.before.graph(name)) else tolerance


def _sensitivity(trial: Trial, name: str, index: int) -> float:
    """What storing the weights once more in float32 would change: no more can be asked of a pass."""
    found = compute(trial.before, name, SIZES[index], perturbed(trial.before))
    return compare(trial.expected(name, index), found, "").error


def check_decoding(trial: Trial) -> None:
    """@step gives what @forward gives, in whatever parts."""
    if not is_decoding(trial.after):
        return
    for whole, parts in compute_step(trial.after):
        if not all_finite([whole]):
            return
        error = compare([whole], [parts], "@step").error
        if error > _allowed(trial, "forward", _STEP) and error > _BITS * _sensitivity(trial, "forward", len(SIZES) - 1):
            raise BrokenError("decoding", f"@step differs from @forward by {error:.3g} of the largest logit; "
                                     f"{_STEP:g} is allowed")  # fmt: skip


# --- the same again ----------------------------------------------------------------------------------------------
def check_determinism(trial: Trial) -> None:
    """A second run, on a copy whose weights come in another order, gives the same text, report and weights."""
    again = with_weights_reordered(trial.before)
    report = run_pass(trial.item, again)
    if difference := _first_difference(str(trial.after), str(again)):
        raise BrokenError("determinism", f"a second run gives other text: {difference}")
    if dict(report) != dict(trial.report):
        raise BrokenError("determinism", f"a second run reports {dict(report)}, the first {dict(trial.report)}")
    for key in trial.after.weight_types():
        if key not in trial.before.weights and not _identical(trial.after.weights.load(key), again.weights.load(key)):
            raise BrokenError("determinism", f"weight @{key} is computed with other numbers in a second run")


def check_idempotence(trial: Trial) -> None:
    """A pass that claims it finds nothing in its own result."""
    if not trial.item.idempotent:
        return
    again = trial.after.copy()
    report = run_pass(trial.item, again)
    if report:
        difference = _first_difference(str(trial.after), str(again))
        raise BrokenError("idempotence", f"it claims to be idempotent, but changes its own result: {dict(report)}; "
                                    f"{difference}")  # fmt: skip


def _first_difference(before: str, after: str) -> str:
    pairs = zip(before.splitlines(), after.splitlines(), strict=False)
    for first, second in pairs:
        if first != second:
            return f"{first.strip()!r}, then {second.strip()!r}"
    return "" if before == after else "one text is longer"


def _parts(value: Any) -> list[Any]:
    if isinstance(value, QuantizedTensor):
        return [part for part in (value.codes, value.scales, value.minimum) if part is not None]
    return [value]


def _identical(first: Any, second: Any) -> bool:
    import torch

    ours, theirs = _parts(first), _parts(second)
    if [(part.dtype, part.shape) for part in ours] != [(part.dtype, part.shape) for part in theirs]:
        return False
    bits = ([part.contiguous().flatten().view(torch.uint8) for part in parts] for parts in (ours, theirs))
    return all(torch.equal(a, b) for a, b in zip(*bits, strict=True))


# --- weights and text --------------------------------------------------------------------------------------------
def check_aliasing(trial: Trial) -> None:
    """What was stored once is not stored twice: no two weights read are the same numbers, made of the same weights."""
    before, after, store = trial.before.weight_types(), trial.after.weight_types(), trial.after.weights
    for key in (key for key in after if key not in before):
        for other in after:
            alike = other != key and after[other] == after[key]
            alike = alike and _roots(trial.after, key) == _roots(trial.after, other)
            if alike and not _is_uniform(store.float(key)) and _identical(store.load(key), store.load(other)):
                raise BrokenError("aliasing", f"weights @{key} and @{other} hold the same numbers, made of the same "
                                              "weights: what was stored once is stored twice")  # fmt: skip


def _roots(module: Module, key: str) -> frozenset[str]:
    """The weights that a weight is made of in the end."""
    inputs = module.weights.source(key).inputs
    return frozenset().union(*(_roots(module, name) for name in inputs)) if inputs else frozenset({key})


def _is_uniform(tensor: Any) -> bool:
    """Whether all numbers are one: then they are equal by chance."""
    return tensor.numel() == 0 or bool((tensor == tensor.flatten()[0]).all())


def check_places(trial: Trial) -> None:
    """Where every op says where it came from, every op of the result does."""
    for name, graph in trial.before.graphs.items():
        if all(op.location for op in graph.walk()):
            for op in trial.after.graph(name).walk():
                if not op.location:
                    raise BrokenError("places", f"@{name}: {op.describe()} has no location, as all ops had before: "
                                                "give what is added the location of what it stands for")  # fmt: skip


def check_text(trial: Trial) -> None:
    """The result prints, and parses back to itself."""
    text = str(trial.after)
    parsed = parse_module(text)
    if difference := _first_difference(text, str(parsed)):
        raise BrokenError("text", f"the printed result does not parse back: {difference}")


_STORED = 8  # one example in so many is written to files: that takes longer than everything else


def check_stored(trial: Trial) -> None:
    """The result is written to files and read back, to the same numbers."""
    if zlib.crc32(str(trial.after).encode()) % _STORED:
        return
    with tempfile.TemporaryDirectory(prefix="slmopt-check-") as directory:
        path = Path(directory) / "module.slm"
        write_module(trial.after, path)
        read = parse_module(path.read_text(encoding="utf-8"))
        add_stored_weights(read, weights_file(path))
        for key in trial.after.weight_types():
            if not _identical(trial.after.weights.load(key), read.weights.load(key)):
                raise BrokenError("stored", f"weight @{key} comes back from a file with other numbers")


# --- the same, written otherwise ---------------------------------------------------------------------------------
_OUTPUTS = "more outputs"  # not of lossy passes: which op gives an output may decide what they round


def check_transformed(trial: Trial) -> None:
    """Names of values, the order of ops, dead code and further outputs make no difference to what is computed."""
    but = () if isinstance(trial.item.contract, Exact) else (_OUTPUTS,)
    _check_transformation(trial, lambda graph: all_at_once(graph, *but), "all of this")


def find_transformation(trial: Trial) -> BrokenError | None:
    """The one transformation that makes a difference, where one alone does."""
    for name, transform in TRANSFORMATIONS.items():
        if name != _OUTPUTS or isinstance(trial.item.contract, Exact):
            try:
                _check_transformation(trial, transform, name)
            except (BrokenError, RefusalError) as error:
                if isinstance(error, BrokenError):
                    return error
    return None


def _check_transformation(trial: Trial, transform: Callable[[Graph], Graph], name: str) -> None:
    before = trial.before.copy()
    # Not @step: it would be transformed otherwise than @forward, and is to be what is derived from that.
    before.graphs = {key: transform(graph) for key, graph in before.graphs.items() if key != "step"}
    after = before.copy()
    try:
        report = run_pass(trial.item, after)
    except BrokenError as broken:
        raise BrokenError("transformed", f"given {name}: {broken}", before) from broken
    if isinstance(trial.item.contract, Exact):
        other = Trial(trial.item, before, after, report)
        for graph in before.graphs:
            try:
                _compare_graph(other, after, graph, "transformed", f", given {name}", sizes=(len(SIZES) - 1,))
            except BrokenError as broken:
                raise BrokenError(broken.check, str(broken), before) from broken
        return
    for graph in before.graphs:
        expected, found = (compute(module, graph, SIZES[-1]) for module in (trial.after, after))
        error = compare(expected, found, "").error
        same = _allowed(trial, graph, _SAME)
        if all_finite(expected) and error > same and error > _BITS * _sensitivity(trial, graph, len(SIZES) - 1):
            raise BrokenError("transformed", f"given {name}, the result is another: @{graph} differs by {error:.3g}",
                              before)  # fmt: skip


CHECKS: Mapping[str, Callable[[Trial], None]] = {
    "numbers": check_numbers, "decoding": check_decoding, "text": check_text, "places": check_places,
    "stored": check_stored, "aliasing": check_aliasing,
    "determinism": check_determinism, "idempotence": check_idempotence, "transformed": check_transformed,
}  # fmt: skip
