"""The pipeline: order, contracts, budget, what a pass must leave alone, and what the ledger says."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch

from slmopt import verification
from slmopt.calibrate import Calibration
from slmopt.errors import ContractError, InputError
from slmopt.ir.graph import Module, Value, Weight
from slmopt.ir.types import DType, tensor
from slmopt.ir.weights import WeightSource
from slmopt.passes.fuse.qkv import FuseQKV
from slmopt.passes.incrementalize import Incrementalize
from slmopt.passes.quantize.round_to_nearest import Quantize
from slmopt.pipeline import Budget, Context, Contract, Exact, Lossy, Pass, Pipeline, module_facts
from slmopt.probe import Probe
from tests.toy_model import toy_model

TEXT = Calibration((tuple(range(1, 30)), tuple(range(30, 4, -1))))


@dataclass(frozen=True)
class Planted(Pass):
    """logits -> logits * (1 + drift)."""

    name: ClassVar[str] = "planted"
    drift: float = 0.0

    def run(self, module: Module, context: Context) -> dict[str, int]:
        scale(module, 1 + self.drift)
        return {"logits": 1}


@dataclass(frozen=True)
class PlantedLossy(Planted):
    """logits -> logits * (1 + drift), admittedly."""

    name: ClassVar[str] = "planted-lossy"
    contract: ClassVar[Contract] = Lossy()


def scale(module: Module, factor: float) -> None:
    """Multiply the logits."""
    graph = module.graph()
    (logits,) = graph.outputs
    constant = graph.add("constant", [], {"value": factor, "element": "f32"}).result
    graph.set_outputs([graph.add("mul", [logits, constant]).result])


def pass_of(edit: Callable[[Module], Any], **facts: object) -> Pass:
    """A pass named "edit" that does one thing to a module, and says so."""

    def run(self: Pass, module: Module, context: Context) -> dict[str, int]:
        before = str(module)
        edit(module)
        return {"edit": 1} if str(module) != before else {}

    cls: Any = type("Edit", (Pass,), {"name": "edit", "run": run, **facts})
    found: Pass = dataclass(frozen=True)(cls)()
    return found


def test_an_exact_pass_that_drifts_is_named() -> None:
    with pytest.raises(ContractError, match=r"pass planted is exact but changes the logits.*0\.001 of the"):
        Pipeline([Planted(), Planted(0.001)]).run(toy_model())


def test_drift_within_the_tolerance_is_measured() -> None:
    ledger = Pipeline([Planted(1e-5)]).run(toy_model())
    assert [row.name for row in ledger.rows] == ["original", "planted{drift=1e-05}"]
    drift = ledger.rows[1].drift
    assert drift is not None and drift.max_error == pytest.approx(1e-5, rel=0.1) and drift.top1 == 1


def test_the_tolerance_is_the_contracts() -> None:
    class Loose(Planted):
        name = "loose"
        contract = Exact(0.1)

    assert len(Pipeline([Loose(0.01)]).run(toy_model()).rows) == 2
    with pytest.raises(ContractError, match=r"pass loose .* and 0.1 is allowed"):
        Pipeline([Loose(0.2)]).run(toy_model())


def test_an_exact_pass_is_compared_with_what_it_got_and_drift_is_from_the_original() -> None:
    ledger = Pipeline([PlantedLossy(0.5), Planted(0.0)]).run(toy_model())
    drifts = [row.drift.max_error for row in ledger.rows[1:] if row.drift is not None]
    assert drifts == pytest.approx([0.5, 0.5])


def test_not_a_number_is_an_error_of_a_lossy_pass_too() -> None:
    with pytest.raises(ContractError, match="pass planted-lossy makes logits that are not finite"):
        Pipeline([PlantedLossy(float("nan"))]).run(toy_model())


def test_the_budget_is_enforced_and_names_the_pass() -> None:
    context = Context(calibration=TEXT)
    with pytest.raises(ContractError, match=r"pass planted-lossy leaves the budget: perplexity went from .* \+3.00%"):
        Pipeline([Planted(), PlantedLossy(1.0)], Budget(0.03)).run(toy_model(), context)
    ledger = Pipeline([Planted(), PlantedLossy(1.0)]).run(toy_model(), context)  # without a budget, it is measured
    first, same, last = (row.perplexity for row in ledger.rows)
    assert first is not None and first == same and last is not None and last > 1.03 * first


@dataclass(frozen=True)
class Mending(PlantedLossy):
    """logits -> logits * (1 + drift), as a pass that wins back what was lost."""

    name: ClassVar[str] = "mending"
    mends: ClassVar[bool] = True


def test_the_budget_waits_for_a_pass_that_mends() -> None:
    rows = Pipeline([PlantedLossy(1.0), Mending(-0.5)], Budget(0.03)).run(toy_model(), Context(calibration=TEXT)).rows
    first, worse, last = (row.perplexity or 0.0 for row in rows)
    assert worse > 1.03 * first > 0
    assert last == pytest.approx(first, rel=1e-5)


@pytest.mark.parametrize(
    ("passes", "guilty"), [([PlantedLossy(1.0), Mending(-0.1)], "mending"), ([Mending(), PlantedLossy(1.0)], "planted")]
)
def test_what_is_not_mended_leaves_the_budget(passes: list[Pass], guilty: str) -> None:
    with pytest.raises(ContractError, match=f"pass {guilty}[-a-z]* leaves the budget"):
        Pipeline(passes, Budget(0.03)).run(toy_model(), Context(calibration=TEXT))


def test_an_order_that_breaks_a_requirement_names_both_before_anything_runs() -> None:
    ran: list[str] = []
    makes = pass_of(lambda module: ran.append("makes"), name="makes", ensures=frozenset({"made"}))
    needs = pass_of(lambda module: ran.append("needs"), name="needs", requires=frozenset({"made"}))
    with pytest.raises(ContractError, match="pass needs requires 'made', which makes ensures: put makes before needs"):
        Pipeline([needs, makes]).run(toy_model())
    remakes = pass_of(lambda module: None, name="remakes", ensures=frozenset({"made"}))
    with pytest.raises(ContractError, match=r"which makes or remakes ensures: add it before needs; .*: makes, needs$"):
        Pipeline([needs], known=lambda: {"makes": type(makes), "remakes": type(remakes)}).run(toy_model())
    assert ran == []
    module = toy_model()
    Pipeline([makes, needs]).run(module)
    assert ran == ["makes", "needs"] and module_facts(module) == {"made"}
    Pipeline([needs]).run(module)  # facts stay with the module


def test_a_pass_that_needs_text_says_so_before_anything_runs() -> None:
    needs = pass_of(lambda module: None, calibrated=True)
    with pytest.raises(ContractError, match="pass edit needs calibration text"):
        Pipeline([needs]).run(toy_model())
    assert len(Pipeline([needs]).run(toy_model(), Context(calibration=TEXT)).rows) == 2


def test_a_stored_weight_that_is_redefined_is_caught() -> None:
    def redefine(module: Module) -> None:
        module.weights._own["wq"] = WeightSource(tensor("f32", 32, 32), "changed", lambda: torch.zeros(32, 32))

    with pytest.raises(ContractError, match="pass edit changed the stored weight @wq: keys are never redefined"):
        Pipeline([pass_of(redefine)]).run(toy_model())


def test_a_tensor_in_memory_that_is_written_to_is_caught() -> None:
    module = toy_model()
    table = module.weights.load("table")
    held = Module(module.name, module.graphs.values(), metadata=module.metadata)
    for key in module.weight_types():
        held.weights.add_tensor(key, table if key == "table" else module.weights.load(key))
    edit = pass_of(lambda module: module.weights.load("table").mul_(1.0), contract=Lossy())
    with pytest.raises(ContractError, match="pass edit wrote into the tensor of weight @table: derive another one"):
        Pipeline([edit]).run(held)


def test_what_callers_see_is_kept() -> None:
    def rename(module: Module) -> None:
        module.graph().rename(module.graph().inputs[0], "tokens")

    def cut(module: Module) -> None:
        graph = module.graph()
        graph.set_outputs([graph.add("slice", [graph.outputs[0]], {"axis": 2, "stop": 7}).result])

    edits: tuple[tuple[Callable[[Module], Any], str], ...] = (
        (rename, r"pass edit changed the inputs of @forward: \(%ids: i64\[b, s\]\) became \(%tokens"),
        (cut, r"pass edit changed the outputs of @forward: \(f32\[b, s, 40\]\) became \(f32\[b, s, 7\]\)"),
        (lambda module: module.graphs.pop("forward"), "pass edit removed the graph @forward"),
    )
    for edit, message in edits:
        with pytest.raises(ContractError, match=message):
            Pipeline([pass_of(edit)]).run(toy_model())


def test_broken_ir_names_the_pass_and_the_op() -> None:
    def break_type(module: Module) -> None:
        module.graph().value("r").type = tensor("f32", "b", "s", 31)

    with pytest.raises(ContractError, match=r"pass edit leaves a module that breaks the IR's rules: .*layers\.0"):
        Pipeline([pass_of(break_type)]).run(toy_model())


def test_an_exception_of_a_pass_says_which_pass_was_running() -> None:
    def fail(module: Module) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError) as caught:
        Pipeline([pass_of(fail)]).run(toy_model())
    assert caught.value.__notes__ == ["while running the pass edit"]


def test_a_step_that_disagrees_with_forward_is_caught() -> None:
    def shift(module: Module) -> None:
        graph = module.graph("step")
        (attention,) = [op for op in graph.walk() if op.name == "attention"]
        zero = graph.add("constant", [], {"value": 0, "element": "i64"}, before=attention).result
        attention.set_operand(4, zero)  # every query now believes it is at position 0

    with pytest.raises(ContractError, match="after pass edit, @step does not give what @forward gives"):
        Pipeline([Incrementalize(), pass_of(shift)]).run(toy_model())


def test_a_rounded_cache_is_measured_as_drift_and_no_breach() -> None:
    wide = Pipeline([Incrementalize(cache="f32")]).run(toy_model()).rows[-1]
    narrow = Pipeline([Incrementalize(cache="f16")]).run(toy_model()).rows[-1]
    codes = Pipeline([Incrementalize(cache="q8")]).run(toy_model()).rows[-1]
    assert wide.drift is not None and narrow.drift is not None and codes.drift is not None
    assert wide.drift.max_error < 1e-5 < narrow.drift.max_error < codes.drift.max_error < 5e-2
    assert narrow.size.state_bytes_per_token == 2 * 2 * 16 * 2  # keys and values of 2 heads of 16 numbers
    assert codes.size.state_bytes_per_token == 2 * 2 * (16 + 4)  # and a float32 scale for each 32 of them at most
    assert wide.size.state_bytes_per_token == 2 * (narrow.size.state_bytes_per_token or 0)


def test_codes_of_activations_that_tip_over_do_not_count_as_drift(monkeypatch: pytest.MonkeyPatch) -> None:
    """A rewrite may reorder float32 sums. Next to a rounding boundary that moves a code; in float64 it does not."""
    module = toy_model()
    Pipeline([Quantize(bits=8)]).run(module)
    real = Probe.forward

    def tipped(self: Probe, module: Module, *, wide: bool = False) -> torch.Tensor:
        return real(self, module, wide=wide) * (1 if wide else 1.01)

    monkeypatch.setattr(Probe, "forward", tipped)
    assert Pipeline([FuseQKV()]).run(module).rows[-1].name == "fuse-qkv"
    with pytest.raises(ContractError, match="pass planted is exact"):
        Pipeline([Planted(0.01)]).run(module)


def test_a_graph_that_a_pass_leaves_as_it_is_does_not_run_again(monkeypatch: pytest.MonkeyPatch) -> None:
    nothing = pass_of(lambda module: None)
    module = toy_model()
    first = Pipeline([Quantize(), Incrementalize(cache="f32"), nothing]).run(module)
    assert first.rows[-1].drift == first.rows[-2].drift != first.rows[0].drift
    for name in ("forward", "step"):
        monkeypatch.setattr(Probe, name, lambda *_, **__: pytest.fail("a graph ran again"))
    assert len(Pipeline([nothing, nothing]).run(module).rows) == 6


def test_the_original_runs_once_and_later_pipelines_go_on_from_it(monkeypatch: pytest.MonkeyPatch) -> None:
    runs: list[int] = []
    real = Probe.forward

    def counted(self: Probe, module: Module, *, wide: bool = False) -> torch.Tensor:
        runs.append(sum(1 for _ in module.graph().walk()))
        return real(self, module, wide=wide)

    monkeypatch.setattr(Probe, "forward", counted)
    module = toy_model()
    original = sum(1 for _ in module.graph().walk())
    Pipeline([Planted(1e-6), Planted(1e-6)]).run(module)
    before = module.ledger
    Pipeline([PlantedLossy(0.5)]).run(module)
    assert runs.count(original) == 1 and len(runs) == 4
    assert module.ledger.rows[0].name == "original" and len(module.ledger.rows) == 4
    assert len(before.rows) == 3  # a ledger that was handed out does not grow


@pytest.mark.parametrize("text", [TEXT, None])
def test_what_was_not_verified_is_not_laid_on_the_next_pass(text: Calibration | None) -> None:
    module = toy_model()
    Pipeline([]).run(module, Context(calibration=TEXT))
    Pipeline([PlantedLossy(0.5)], verify=False).run(module, Context(calibration=text))
    Pipeline([Planted(), Planted(1e-6)]).run(module, Context(calibration=text))
    first, unverified, *later = module.ledger.rows
    assert unverified.drift is None
    for row in later:
        assert row.drift.max_error == pytest.approx(0.5, rel=1e-4)  # from the original, which stays
        assert row.perplexity != pytest.approx(first.perplexity, rel=1e-3)
    with pytest.raises(ContractError, match="pass planted is exact but changes the logits"):
        Pipeline([Planted(0.01)]).run(module, Context(calibration=text))


def test_drift_is_from_the_original_where_the_first_pass_was_not_verified() -> None:
    module = toy_model()
    Pipeline([PlantedLossy(0.5)], verify=False).run(module)
    Pipeline([Planted()]).run(module)
    assert module.ledger.rows[-1].drift.max_error == pytest.approx(0.5, rel=1e-4)


def test_observe_sees_the_module_after_each_pass() -> None:
    seen: list[tuple[str, int]] = []
    Pipeline([Planted(), Planted()]).run(
        toy_model(), observe=lambda item, module: seen.append((item.name, sum(1 for _ in module.graph().walk())))
    )
    assert seen == [("planted", 15), ("planted", 17)]


def test_without_verification_no_number_is_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verification, "make_probe", lambda module: pytest.fail("the probe was made"))
    ledger = Pipeline([Planted(5.0)], verify=False).run(toy_model())
    assert ledger.rows[1].drift is None and ledger.rows[1].size.ops == 15


def test_a_new_weight_must_be_in_the_store() -> None:
    def point(module: Module) -> None:
        (op,) = [op for op in module.graph().walk() if op.name == "rms_norm"]
        op.set_operand(1, Weight("missing", tensor("f32", 32)))

    with pytest.raises(ContractError, match=r"pass edit leaves .*@missing"):
        Pipeline([pass_of(point)]).run(toy_model())


def test_the_ledger_counts_what_the_model_costs() -> None:
    module = toy_model()
    ledger = Pipeline([Quantize(bits=4, group=32)]).run(module)
    before, after = (row.size for row in ledger.rows)
    assert before.ops == 13 and before.parameters == after.parameters == 40 * 32 + 32 + 2 * 32 * 32
    assert before.weight_bytes == 4 * before.parameters
    assert after.weight_bytes == (40 * 32 + 2 * 32 * 32) // 32 * (16 + 2) + 4 * 32  # 32 codes of 4 bits and a scale
    products = 2 * (2 * 32 * 32 + 40 * 32)  # three linears
    assert before.flops_per_token > products + 2 * 2 * 256 * 32  # and attention over 256 positions
    assert before.state_bytes_per_token is None


def test_the_ledger_as_json_and_table() -> None:
    module = toy_model()
    ledger = Pipeline([Quantize(bits=4), Incrementalize()]).run(module, Context(calibration=TEXT))
    whole, stable = ledger.to_json(), ledger.to_json(timings=False)
    assert json.loads(json.dumps(whole, allow_nan=False)) == whole
    assert "seconds" in whole["rows"][1] and not {"seconds", "verify_seconds", "peak_bytes"} & set(stable["rows"][1])
    again = toy_model()
    assert Pipeline([Quantize(bits=4), Incrementalize()]).run(again, Context(calibration=TEXT)).to_json(
        timings=False
    ) == stable
    lines = ledger.table().splitlines()
    assert len(lines) == 4 and re.match(r"pass +changed +ops", lines[0])
    assert lines[2].startswith("quantize ") and "3 linear" in lines[2] and lines[3].startswith("incrementalize")


def test_probes_reach_past_windows() -> None:
    from slmopt.probe import make_probe

    module = toy_model()
    assert make_probe(module).inputs[0].shape == (2, 24)
    (attention,) = [op for op in module.graph().walk() if op.name == "attention"]
    attention.attributes["window"] = 40
    assert make_probe(module).inputs[0].shape == (2, 48)
    module.metadata["context"] = 32
    assert make_probe(module).inputs[0].shape == (2, 32)


def test_inputs_that_are_not_ids_get_numbers() -> None:
    from slmopt.probe import make_probe

    module = toy_model()
    graph = module.graph()
    extra: Value = graph.add_input("extra", tensor("f32", "b", "z", 5))
    first, second = make_probe(module).inputs
    assert first.dtype == torch.int64 and int(first.max()) < 40
    assert second.shape == (2, 3, 5) and second.dtype == torch.float32 and extra.type.element == DType.f32


def test_wrong_probe_input_is_an_error_of_the_caller() -> None:
    from slmopt.interpreter import forward

    with pytest.raises(InputError, match=r"graph @forward: input %ids must be i64\[b, s\], got shape \[3\]"):
        forward(toy_model(), torch.zeros(3, dtype=torch.int64))
