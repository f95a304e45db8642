"""What a pass must say, and must leave alone: each fault is caught, names the pass, and leaves no trace."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from safetensors.torch import save_file

from slmopt.calibrate import Calibration
from slmopt.errors import ContractError, IRError
from slmopt.frontends.safetensors_files import read_checkpoint
from slmopt.ir.graph import Graph, Module, Weight
from slmopt.ir.types import tensor
from slmopt.ir.weights import WeightSource, WeightStore
from slmopt.passes.fuse.fuse import Fuse
from slmopt.passes.fuse.qkv import FuseQKV
from slmopt.passes.incrementalize import Incrementalize
from slmopt.passes.quantize.round_to_nearest import Quantize
from slmopt.pipeline import Budget, Context, Lossy, Pipeline, module_facts
from tests.planted import only, pass_of, refusal, returns
from tests.toy_model import toy_model


def rename_value(module: Module) -> None:
    module.graph().rename(module.graph().value("r"), "renamed")


# --- the report --------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("report", "message"),
    [
        (None, r"^pass edit returned None: run returns what changed, counted by kind, such as {'linear': 3}, or {} "),
        (3, "^pass edit returned 3: run returns what changed"),
        ({"linear": 0}, "pass edit returned {'linear': 0}: 'linear': 0 is no kind of change .* leave out what did not"),
        ({"linear": -1}, "'linear': -1 is no kind of change"),
        ({"linear": 1.5}, "'linear': 1.5 is no kind of change"),
        ({"linear": True}, "'linear': True is no kind of change"),
        ({1: 1}, "1: 1 is no kind of change"),
    ],
)
def test_a_report_is_counts_by_kind(report: Any, message: str) -> None:
    assert re.search(message, refusal(returns(report, rename_value)))


def test_a_pass_that_hides_a_change_is_caught() -> None:
    assert refusal(returns({}, rename_value)) == (
        "pass edit returned {}, nothing changed, but it changed @forward: "
        "'%r = add(%x, %o) : f32[b, s, 32] loc(\"layers.0\")' became "
        "'%renamed = add(%x, %o) : f32[b, s, 32] loc(\"layers.0\")': return what changed, counted by kind"
    )
    added = refusal(returns({}, lambda module: module.metadata.update(note=[1])))
    assert "but it changed the metadata" in added
    graph = Graph("other")
    graph.set_outputs([graph.add_input("x", tensor("f32", "b"))])
    assert "but it changed the module: it added @other" in refusal(
        returns({}, lambda module: module.graphs.update(other=graph))
    )


def test_a_pass_that_claims_a_change_is_caught() -> None:
    assert refusal(returns({"linear": 3, "norm": 1})) == (
        "pass edit reports 3 linear, 1 norm, but the module is as it was: return {} where nothing changed, and to "
        "change a weight, derive another and let the ops read it"
    )


def test_what_is_true_is_accepted_and_shown() -> None:
    module = toy_model()
    note = returns({"note": 1}, lambda module: module.metadata.update(note={"a": [1]}))
    ledger = Pipeline([returns({}), returns({"names": 1}, rename_value), note]).run(module)
    assert [(dict(row.changed), row.graphs) for row in ledger.rows[1:]] == [
        ({}, ()), ({"names": 1}, ("forward",)), ({"note": 1}, ()),
    ]  # fmt: skip
    lines = [line.split() for line in ledger.table().splitlines()]
    assert [line[1] for line in lines[2:4]] == ["nothing", "1"] and lines[1][1] == "13"  # the original changed not even
    assert ledger.to_json()["rows"][2]["graphs"] == ["forward"]


def test_deriving_a_step_again_changes_nothing() -> None:
    ledger = Pipeline([Incrementalize(), Incrementalize(), Incrementalize(cache="f16")]).run(toy_model())
    assert [bool(row.changed) for row in ledger.rows[1:]] == [True, False, True]


# --- what callers, runtimes and other passes rely on --------------------------------------------------------------
def swap_inputs(module: Module) -> None:
    module.graph().inputs.reverse()


def drop_output(module: Module) -> None:
    module.graph().set_outputs([])


def add_input(module: Module) -> None:
    module.graph().add_input("more", tensor("f32", "b"))


def cut_output(module: Module) -> None:
    graph = module.graph()
    graph.set_outputs([graph.add("slice", [graph.outputs[0]], {"axis": 2, "stop": 7}).result])


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (add_input, r"changed the inputs of @forward: (%ids: i64[b, s]) became (%ids: i64[b, s], %more: f32[b])"),
        (drop_output, r"changed the outputs of @forward: (f32[b, s, 40]) became ()"),
        (cut_output, r"changed the outputs of @forward: (f32[b, s, 40]) became (f32[b, s, 7])"),
        (lambda module: module.graphs.pop("forward"), "removed the graph @forward: graphs stay"),
        (lambda module: setattr(module, "name", "other"), "renamed the module @toy to @other"),
        (lambda module: setattr(module, "ledger", 3), "set the module's ledger: the pipeline alone writes it"),
        (lambda module: setattr(module, "weights", WeightStore(module.weights)), "replaced the module's weight store"),
        (lambda module: module.metadata.update(vocab=41), "changed the metadata 'vocab' from 40 to 41: the runtime"),
        (lambda module: module.metadata.pop("context"), "changed the metadata 'context' from 64 to nothing"),
        (lambda module: module.metadata.update(facts=["raised"]), "edited the facts: declare `ensures` and `breaks`"),
    ],
)
def test_what_others_rely_on_is_kept(edit: Callable[[Module], Any], message: str) -> None:
    assert f"pass edit {message}" in refusal(pass_of(edit))


def test_a_list_in_the_metadata_that_is_edited_is_caught_and_put_back() -> None:
    module = toy_model()
    module.metadata["eos_token_ids"] = [2]
    edit = pass_of(lambda module: module.metadata["eos_token_ids"].append(3))
    assert "changed the metadata 'eos_token_ids' from [2] to [2, 3]" in refusal(edit, module=module)
    assert module.metadata["eos_token_ids"] == [2]


def test_the_inputs_of_a_step_stay_and_its_states_may_change() -> None:
    def rename(module: Module) -> None:
        module.graph("step").rename(module.graph("step").inputs[0], "tokens")

    def unpair(module: Module) -> None:
        module.graph("step").states -= 1

    assert "changed the inputs of @step: (%ids: i64[b, t]" in refusal(Incrementalize(), pass_of(rename))
    assert "changed the inputs of @step" in refusal(Incrementalize(), pass_of(unpair))
    removed = pass_of(lambda module: module.graphs.pop("step"))
    assert "removed the graph @step" in refusal(Incrementalize(), removed)
    module = toy_model()
    Pipeline([Incrementalize(), Incrementalize(cache="f16")]).run(module)
    assert str(module.graph("step").inputs[-1].type) == "f16[b, 2, c, 16]"


# --- weights -----------------------------------------------------------------------------------------------------
def test_a_key_that_is_redefined_is_caught_and_put_back() -> None:
    module = toy_model()
    source = module.weights.source("wq")

    def redefine(module: Module) -> None:
        module.weights._own["wq"] = WeightSource(tensor("f32", 32, 32), "changed", lambda: torch.zeros(32, 32))

    assert "pass edit changed the stored weight @wq: keys are never redefined" in refusal(
        pass_of(redefine), module=module
    )
    assert module.weights.source("wq") is source


def file_model(directory: Path) -> Module:
    """The toy model with its weights in a file."""
    drawn = toy_model()
    tensors = {key: drawn.weights.load(key).contiguous() for key in drawn.weight_types()}
    save_file(tensors, directory / "model.safetensors")
    module = Module(drawn.name, drawn.graphs.values(), metadata=drawn.metadata)
    for key, stored in read_checkpoint(directory).items():
        module.weights.add(key, WeightSource(drawn.weight_types()[key], "file", stored.load))
    return module


def zero(module: Module) -> None:
    with torch.no_grad():
        module.weights.float("wq")[3].zero_()


def zero_and_edit(module: Module) -> None:
    zero(module)
    rename_value(module)


@pytest.mark.parametrize("edit", [zero, zero_and_edit])
def test_writing_into_a_tensor_that_is_mapped_from_a_file_is_caught(
    edit: Callable[[Module], None], tmp_path: Path
) -> None:
    """The mapping is private: the write would be lost without a word."""
    module = file_model(tmp_path)
    before = module.weights.load("wq").clone()
    assert "pass edit wrote into the tensor of weight @wq: derive another one" in refusal(pass_of(edit), module=module)
    assert torch.equal(module.weights.load("wq"), before)


def test_writing_into_a_tensor_in_memory_through_numpy_is_caught() -> None:
    """torch does not count such writes, and the tensor is the caller's own."""
    drawn = toy_model()
    module = Module(drawn.name, drawn.graphs.values(), metadata=drawn.metadata)
    for key in drawn.weight_types():
        module.weights.add_tensor(key, drawn.weights.load(key))

    def clear(module: Module) -> None:
        module.weights.load("wq").numpy()[3] = 0
        rename_value(module)

    with pytest.raises(ContractError, match="pass edit wrote into the tensor of weight @wq"):
        Pipeline([returns({}), pass_of(clear)]).run(module)


def test_writing_into_codes_of_a_quantized_weight_is_caught() -> None:
    def clear(module: Module) -> None:
        module.weights.load("wq.q4g32").scales.mul_(2)

    assert "wrote into the tensor of weight @wq.q4g32" in refusal(Quantize(), pass_of(clear, contract=Lossy()))


def test_reading_and_computing_with_copies_is_fine(tmp_path: Path) -> None:
    def read(module: Module) -> None:
        stored = module.weights.load("wq")
        stored.clone().mul_(2)
        stored.abs().sum().mul_(2)
        module.weights.float("wk").double().zero_()

    assert len(Pipeline([pass_of(read)]).run(file_model(tmp_path)).rows) == 2


def test_watching_a_tensor_does_not_keep_its_numbers() -> None:
    import gc
    import weakref

    from slmopt.contract import Loads

    loads, value = Loads(), torch.zeros(1000)
    loads("w", value)
    part = value[2:5]
    part.add_(1)
    storage = weakref.ref(value.untyped_storage())
    assert loads.written() == ["w"]
    del value, part
    gc.collect()
    assert storage() is None and loads.written() == ["w"]


def test_a_derivation_that_writes_into_its_input_is_an_error() -> None:
    def derive(module: Module) -> None:
        type = module.weights.type("wq")
        module.weights.derive("wq.abs", ("wq",), type, "absolute", lambda w: w.abs_())
        only_query(module).set_operand(1, Weight("wq.abs", type))

    def only_query(module: Module) -> Any:
        return next(op for op in module.graph().walk() if op.result.name == "q")

    module = toy_model()
    with pytest.raises(IRError, match=r"@wq.abs \(absolute\) is computed by writing into the tensor of @wq") as caught:
        Pipeline([pass_of(derive, contract=Lossy())]).run(module)
    assert "while checking the pass edit" in caught.value.__notes__
    assert str(module) == str(toy_model()) and "wq.abs" not in module.weights


# --- @step -------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class ForwardOnly(FuseQKV):
    """fuse-qkv of @forward alone, as an author writes it who did not think of @step."""

    name: ClassVar[str] = "forward-only"

    def run(self, module: Module, context: Context) -> dict[str, int]:
        copied = Module(module.name, [module.graph()], module.weights, module.metadata)
        return super().run(copied, context)


def test_a_pass_that_leaves_the_step_stale_names_what_made_it() -> None:
    message = refusal(Incrementalize(), ForwardOnly())
    assert message == (
        "pass forward-only changed @forward and not @step, which incrementalize derived from it: %q = linear is there "
        "still; put forward-only before incrementalize, or let it edit every graph of the module "
        "(module.graphs.values())"
    )
    assert message == refusal(Incrementalize(), ForwardOnly(), verify=False)
    assert len(Pipeline([ForwardOnly(), Incrementalize()]).run(toy_model()).rows) == 3


def test_a_lossy_pass_that_leaves_the_step_stale_is_caught_without_numbers() -> None:
    def sharpen(module: Module) -> None:
        only(module, "attention").attributes["scale"] = 0.5

    lossy = pass_of(sharpen, contract=Lossy())
    message = refusal(Incrementalize(), lossy, verify=False)
    assert "changed @forward and not @step" in message and "the numbers of one are no longer those of the" in message
    module = toy_model()
    Pipeline([Incrementalize()], verify=False).run(module)
    module.ledger = None
    with pytest.raises(ContractError, match="which another pass derived from it"):
        Pipeline([lossy], verify=False).run(module)


def test_what_is_dead_in_forward_need_not_change_in_the_step() -> None:
    """@step has no dead ops, or they are alive there as part of a state."""
    dead = toy_model()
    graph = dead.graph()
    graph.add("linear", (graph.value("r"), Weight("wq", tensor("f32", 32, 32))))
    gone = toy_model()  # attention is dead in @forward, and in @step its state is not
    gone.graph().set_outputs([gone.graph().value("x")])
    for module in (dead, gone):
        Pipeline([Incrementalize()]).run(module)
        erase = pass_of(lambda module: module.graph().erase_dead())
        Pipeline([erase, Quantize(head=False, embedding=False)], verify=False).run(module)


def test_passes_that_edit_every_graph_keep_the_step() -> None:
    first, second = toy_model(), toy_model()
    Pipeline([Incrementalize(), Quantize(), Fuse()]).run(first)
    Pipeline([Quantize(), Fuse(), Incrementalize()]).run(second)
    assert first.graph("step").inputs[0].type == second.graph("step").inputs[0].type
    assert sorted(op.name for op in first.graph("step").walk()) == sorted(op.name for op in second.graph("step").walk())


def test_what_only_one_graph_has_may_change_there() -> None:
    def drop_dead(module: Module) -> None:
        module.graph().erase_dead()

    module = toy_model()
    graph = module.graph()
    graph.add("silu", [graph.value("r")])
    assert Pipeline([Incrementalize(), pass_of(drop_dead)]).run(module).rows[-1].graphs == ("forward",)


# --- failures ----------------------------------------------------------------------------------------------------
def edit_half(module: Module) -> None:
    """Edits graph, metadata and weights, and then fails."""
    rename_value(module)
    module.metadata["note"] = 1
    module.weights.add_tensor("half", torch.zeros(2))
    for name in ("other", "another", "third", "fourth"):
        module.graphs[name] = module.graph().copy(name)
    raise ZeroDivisionError


def test_a_pass_that_raises_half_way_leaves_no_trace() -> None:
    module, expected = toy_model(), toy_model()
    Pipeline([Quantize()]).run(expected)
    with pytest.raises(ZeroDivisionError) as caught:
        Pipeline([Quantize(), pass_of(edit_half), Incrementalize()]).run(module)
    first, second = caught.value.__notes__
    assert first == "while running the pass edit"
    assert second.startswith("what the pass edit had done, before it was undone:\ngraph @forward\n")
    assert "+    %renamed = add(%x, %o)" in second and second.count("\n") == 61
    assert second.endswith("lines more")
    assert str(module) == str(expected) and set(module.weights) == set(expected.weights)
    assert module_facts(module) == {"quantized"}
    assert [row.name for row in module.ledger.rows] == ["original", "quantize"]
    Pipeline([Incrementalize()]).run(module)  # and can go on
    assert [row.name for row in module.ledger.rows] == ["original", "quantize", "incrementalize"]


def test_an_interrupted_pass_leaves_no_trace() -> None:
    def interrupt(module: Module) -> None:
        rename_value(module)
        raise KeyboardInterrupt

    module = toy_model()
    with pytest.raises(KeyboardInterrupt):
        Pipeline([pass_of(interrupt)]).run(module)
    assert str(module) == str(toy_model())


def test_after_a_breach_the_next_pipeline_compares_with_what_is_there() -> None:
    """Neither logits nor perplexity of the pass that was refused are taken for those of the module."""
    text = Context(calibration=Calibration((tuple(range(1, 30)),)))

    def scale(module: Module) -> None:
        only(module, "attention").attributes["scale"] = 40.0

    module = toy_model()
    Pipeline([returns({})]).run(module, text)
    with pytest.raises(ContractError, match="pass edit leaves the budget"):
        Pipeline([pass_of(scale, contract=Lossy())], Budget(-0.5)).run(module, text)
    row = Pipeline([FuseQKV()]).run(module, text).rows[-1]
    assert row.drift is not None and row.drift.max_error < 1e-5
    assert row.perplexity == module.ledger.rows[0].perplexity
