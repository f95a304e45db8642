"""What healing is made of: divergences and their gradients, batches, the schedule, attention, which weights learn."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from slmopt.interpreter import forward, run
from slmopt.ir.graph import Module, Weight
from slmopt.ir.text import parse_module
from slmopt.passes.heal.attention import SUBSTITUTES
from slmopt.passes.heal.losses import LOSSES, add_gradients, divergence
from slmopt.passes.heal.parameters import find_parameters, load_parameters
from slmopt.passes.heal.texts import make_batches, predicted, split_documents
from slmopt.passes.heal.training import Runner, Schedule, pad
from slmopt.stand_in import add_stand_ins
from tests.passes.toys import toy
from tests.rewritten import random_calibration
from tests.toy_model import toy_model

DOCUMENTS = st.lists(st.lists(st.integers(0, 9), min_size=2, max_size=30).map(tuple), min_size=1, max_size=30)


def logits(*shape: int, seed: int = 0) -> torch.Tensor:
    return 3 * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


# --- divergences -----------------------------------------------------------------------------------------------------
def test_they_are_what_torch_computes() -> None:
    teacher, student = logits(5, 11), logits(5, 11, seed=1)
    p, q = teacher.log_softmax(-1), student.log_softmax(-1)
    expected = torch.nn.functional.kl_div(q, p, log_target=True, reduction="none").sum(-1)
    torch.testing.assert_close(divergence("kl", teacher, student, 1.0), expected)
    torch.testing.assert_close(divergence("reverse-kl", student, teacher, 1.0), expected)
    mean = ((p.exp() + q.exp()) / 2).log()
    both = [torch.nn.functional.kl_div(mean, one, log_target=True, reduction="none").sum(-1) for one in (p, q)]
    torch.testing.assert_close(divergence("js", teacher, student, 1.0), (both[0] + both[1]) / 2)


@pytest.mark.parametrize("loss", LOSSES)
@given(st.integers(0, 99), st.sampled_from([0.5, 1.0, 4.0]))
def test_they_are_0_for_equals_and_more_for_others(loss: str, seed: int, temperature: float) -> None:
    first, second = logits(3, 7, seed=seed), logits(3, 7, seed=seed + 100)
    assert float(divergence(loss, first, first + 2.5, temperature).abs().max()) < 1e-4
    assert float(divergence(loss, first, second, temperature).min()) > 0
    if loss == "js":
        assert float(divergence(loss, first, second, 1.0).max()) < math.log(2)


@pytest.mark.parametrize("loss", LOSSES)
def test_tokens_that_cannot_come_are_no_harm(loss: str) -> None:
    teacher, student = logits(4, 6), logits(4, 6, seed=1)
    teacher[:, 2] = student[:, 2] = float("-inf")
    expected = divergence(loss, teacher[:, [0, 1, 3, 4, 5]], student[:, [0, 1, 3, 4, 5]], 1.0)
    torch.testing.assert_close(divergence(loss, teacher, student, 1.0), expected)


@pytest.mark.parametrize("loss", LOSSES)
def test_gradients_in_parts_are_those_of_the_whole(loss: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("slmopt.passes.heal.losses._NUMBERS", 30)
    teacher, weight = logits(3, 4, 9), logits(9, 9, seed=1).requires_grad_()
    kept = torch.tensor([[1, 1, 1, 0], [1, 0, 0, 0], [1, 1, 1, 1]], dtype=torch.bool)
    student = logits(3, 4, 9, seed=2) @ weight
    whole = divergence(loss, teacher[kept], student[kept], 2.0).sum()
    (expected,) = torch.autograd.grad(whole * 0.125, weight, retain_graph=True)
    total = add_gradients(loss, teacher, student, kept, 2.0, 0.125)
    assert total == pytest.approx(float(whole.detach()), rel=1e-5)
    assert weight.grad is not None
    torch.testing.assert_close(weight.grad, expected)


# --- text ------------------------------------------------------------------------------------------------------------
@given(DOCUMENTS, st.integers(2, 64), st.integers(1, 500), st.integers(0, 3))
def test_batches(documents: list[tuple[int, ...]], size: int, tokens: int, seed: int) -> None:
    found = make_batches(documents, size, tokens, seed)
    assert found == make_batches(documents, size, tokens, seed)
    counts = [predicted(batch) for batch in found]
    assert sum(counts) >= tokens > sum(counts[:-1])
    for batch in found:
        assert len(batch) == 1 or len(batch) * max(map(len, batch)) <= size
    rounds = make_batches(documents, size, 1, seed, whole=True)
    assert sorted(document for batch in rounds for document in batch) == sorted(documents)


@given(DOCUMENTS, st.floats(0, 0.9), st.integers(0, 3))
def test_what_is_held_out_is_not_trained_on(documents: list[tuple[int, ...]], share: float, seed: int) -> None:
    found = split_documents(documents, share, seed)
    assert sorted((*found.training, *found.held_out)) == sorted(documents)
    assert len(found.held_out) == max(1, math.ceil(share * len(documents)))


def test_documents_of_a_batch_do_not_see_each_other() -> None:
    module = toy_model()
    documents = [(1, 5, 7), (1, 30, 2, 9, 11, 4), (3, 8)]
    ids, kept = pad(documents)
    assert kept.tolist() == [[True] * 2 + [False] * 4, [True] * 5 + [False], [True] + [False] * 5]
    found = Runner(module).logits(ids)
    for row, document in enumerate(documents):
        alone = forward(module, torch.tensor([document]))[0]
        torch.testing.assert_close(found[row, : len(document)], alone)


# --- the schedule ----------------------------------------------------------------------------------------------------
def test_the_rate_rises_and_falls_to_nothing() -> None:
    schedule = Schedule(0.5, steps=100, warm_up=10)
    rates = [schedule.at(step) for step in range(101)]
    assert rates[0] == pytest.approx(0.05) and rates[9] == rates[10] == 0.5
    assert rates[:10] == sorted(rates[:10]) and rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[55] == pytest.approx(0.25) and rates[100] == pytest.approx(0)


# --- attention -------------------------------------------------------------------------------------------------------
MASKS = (
    "window = none, chunk = none", "window = 3, chunk = none", "window = 3, chunk = none, sink = 2",
    "window = none, chunk = 4", "window = 99, chunk = none", "window = none, chunk = none, softcap = 2.0",
)  # fmt: skip


@pytest.mark.parametrize("mask", MASKS)
def test_attention_and_its_gradients_are_the_reference(mask: str) -> None:
    text = f"""module @m {{
      graph @forward(%q: f32[b, 4, s, 8], %k: f32[b, 2, s, 8], %v: f32[b, 2, s, 6]) {{
        %a = attention(%q, %k, %v) {{scale = 0.3, mask = "causal", {mask}}} : f32[b, 4, s, 6]
        return %a
      }}
    }}"""
    check_substitutes(parse_module(text), 11)


@pytest.mark.parametrize("positions", [1, 11, 64, 130])
def test_linear_attention_and_its_gradients_are_the_reference(positions: int) -> None:
    text = """module @m {
      graph @forward(%q: f32[b, 4, s, 8], %k: f32[b, 2, s, 8], %v: f32[b, 2, s, 6]) {
        %a = linear_attention(%q, %k, %v) {feature = "elu1"} : f32[b, 4, s, 6]
        return %a
      }
    }"""
    check_substitutes(parse_module(text), positions)


def check_substitutes(module: Module, positions: int) -> None:
    shapes = ((2, 4, positions, 8), (2, 2, positions, 8), (2, 2, positions, 6))
    inputs = [logits(*shape, seed=shape[1]).double().requires_grad_() for shape in shapes]
    expected, found = (run(module, "forward", inputs, substitutes=given)[0] for given in ({}, SUBSTITUTES))
    torch.testing.assert_close(found, expected)
    slopes = [torch.autograd.grad(value.square().sum(), inputs) for value in (expected, found)]
    for first, second in zip(*slopes, strict=True):
        torch.testing.assert_close(second, first)


# --- which weights learn ---------------------------------------------------------------------------------------------
BODY = """
%positions = arange() {start = 0, stop = s, element = "f32"} : f32[s]
%column = reshape(%positions) {shape = [s, 1]} : f32[s, 1]
%angles = mul(%column, weight @frequencies : f32[16]) : f32[s, 16]
%places = arange() {start = 0, stop = s, element = "i64"} : i64[s]
%learnt = embedding(%places, weight @positions : f32[64, 16]) : f32[s, 16]
%x = embedding(%ids, weight @table : f32[40, 16]) : f32[b, s, 16]
%y = add(%x, %learnt) : f32[b, s, 16]
%z = mul(%y, weight @scale : f32[16]) : f32[b, s, 16]
%w = add(%z, %angles) : f32[b, s, 16]
%m = add(%w, weight @mask : f32[16]) : f32[b, s, 16]
%logits = linear(%m, weight @table : f32[40, 16]) {activation = none, act = none} : f32[b, s, 40]
return %logits
"""


def model() -> Module:
    mask = torch.zeros(16)
    mask[3] = -1e30
    return toy(BODY, 0, "%ids: i64[b, s]", mask=mask)


def test_constants_and_masks_are_no_parameters() -> None:
    found = find_parameters(model())
    assert list(found.trained) == ["positions", "table", "scale", "mask"]
    assert [op.name for op in found.trained["table"].users] == ["embedding", "linear"]
    values, rest = load_parameters(model(), found)
    assert list(values) == list(rest.trained) == ["positions", "table", "scale"]
    assert rest.frozen == ("mask",)


@settings(max_examples=20)
@given(st.integers(0, 1000))
def test_gradients_reach_every_parameter(seed: int) -> None:
    module = toy_model()
    values, _ = load_parameters(module, find_parameters(module))
    for value in values.values():
        value.requires_grad_()
    ids = torch.tensor(random_calibration(3, 9, vocabulary=40).documents)
    found = Runner(module).logits(ids, values)
    found.backward(logits(*found.shape, seed=seed))  # type: ignore[no-untyped-call]
    for key, value in values.items():
        assert value.grad is not None and float(value.grad.abs().max()) > 0, key


def test_dead_code_and_other_outputs_are_not_run() -> None:
    module = parse_module(str(toy_model()).replace("return %logits", "%dead = exp(%x) : f32[b, s, 32]\nreturn %logits"))
    add_stand_ins(module, drawn=True)
    assert [op.name for op in Runner(module).graph.walk() if op.name == "exp"] == []
    assert [o.key for op in module.graph().walk() for o in op.operands if isinstance(o, Weight)] != []
