"""The pass heal: what was lost is learnt again, never more is lost, and a healing that was killed goes on."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

from slmopt.calibrate import Calibration
from slmopt.errors import ContractError, InputError, UnsupportedError
from slmopt.interpreter import forward
from slmopt.ir.graph import Module, Weight
from slmopt.ir.types import DType
from slmopt.passes.heal import training
from slmopt.passes.heal.heal import Heal
from slmopt.passes.heal.parameters import find_parameters
from slmopt.passes.incrementalize import Incrementalize
from slmopt.passes.quantize.round_to_nearest import Quantize
from slmopt.pipeline import Context, Contract, Lossy, Pass, Pipeline
from slmopt.testing import check_pass
from tests.passes.toys import toy
from tests.rewritten import VARIETY, check_rewritten, raised, random_calibration, rewritten
from tests.toy_model import toy_model

SMALL: Mapping[str, Any] = {"tokens": 3000, "batch": 300, "sampled": 0, "rate": 1e-2}
TEXT = random_calibration(24, 24, vocabulary=40)
OTHER = random_calibration(40, 20, vocabulary=39)


@dataclass(frozen=True)
class Damage(Pass):
    """linear(x, w) -> linear(x, w with a part of its inputs left out)."""

    name: ClassVar[str] = "damage"
    contract: ClassVar[Contract] = Lossy()
    keys: tuple[str, ...] = ("wq", "wk")

    def run(self, module: Module, context: Context) -> dict[str, int]:
        count = 0
        for graph in module.graphs.values():
            read = Counter(o.key for op in graph.walk() for o in op.operands if isinstance(o, Weight))
            for op in graph.walk():
                weight = op.operands[1] if op.name == "linear" else None
                if not isinstance(weight, Weight) or weight.type.element != DType.f32:
                    continue
                if read[weight.key] == 1 and weight.key in (self.keys or read):
                    op.set_operand(1, module.derive(weight, "thinned", _thin))
                    count += 1
        return {"linear": count} if count else {}


def _thin(weight: torch.Tensor) -> torch.Tensor:
    kept = torch.ones(weight.shape[-1])
    kept[::3] = 0
    return weight * kept


def healed(item: Heal, module: Module | None = None, text: Calibration | None = TEXT, **context: Any) -> Module:
    """A model after damage and healing."""
    module = toy_model() if module is None else module
    Pipeline([Damage(), item]).run(module, Context(calibration=text, **context))
    return module


def distance(module: Module, text: Calibration = OTHER) -> float:
    """The mean KL(original || module) per position, over text that healing never sees."""
    total = 0.0
    for document in text.documents:
        ids = torch.tensor([document])
        with torch.no_grad():
            p, q = (forward(one, ids).double().log_softmax(-1) for one in (toy_model(), module))
        total += float((p.exp() * (p - q)).sum(-1).mean())
    return total / len(text.documents)


def weights_of(module: Module) -> dict[str, torch.Tensor]:
    return {key: module.weights.load(key) for key in module.weight_types()}


def assert_same(first: Module, second: Module) -> None:
    assert str(first) == str(second)
    for key, value in weights_of(first).items():
        assert torch.equal(value, second.weights.load(key)), key


# --- learning --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("loss", ["kl", "reverse-kl", "js"])
def test_what_was_lost_is_learnt_again(loss: str) -> None:
    damaged = toy_model()
    Pipeline([Damage()]).run(damaged)
    module = healed(Heal(loss=loss, **SMALL))
    assert distance(module) < 0.5 * distance(damaged)
    row = module.ledger.rows[-1]
    assert row.changed == {"embedding": 1, "rms_norm": 1, "linear": 2}
    assert row.drift.kl < module.ledger.rows[-2].drift.kl


def test_only_the_weights_change() -> None:
    module = healed(Heal(**SMALL))
    text = str(module)
    for key in ("table", "norm", "wq.thinned", "wk.thinned"):
        assert f"@{key}.healed" in text
        text = text.replace(f"@{key}.healed", f"@{key}")
    expected = toy_model()
    Damage().run(expected, Context())
    Pipeline([]).run(expected)
    assert text.replace('"facts": ["healed"], ', "") == str(expected)


def test_weights_that_are_tied_stay_one() -> None:
    module = healed(Heal(**SMALL))
    embedding, *_, head = module.graph().walk()
    assert embedding.operands[1] == head.operands[1] != Weight("table", module.weights.type("table"))


def test_step_reads_the_same_weights() -> None:
    module = toy_model()
    Pipeline([Incrementalize()]).run(module)
    module = healed(Heal(**SMALL), module)
    keys = [{o.key for op in g.walk() for o in op.operands if isinstance(o, Weight)} for g in module.graphs.values()]
    assert keys[0] == keys[1] and all(".healed" in key for key in keys[0])


def test_the_original_samples_text_where_none_is_given() -> None:
    module = healed(Heal(**{**SMALL, "sampled": 800}), text=None)
    damaged = toy_model()
    Damage().run(damaged, Context())
    assert distance(module) < 0.6 * distance(damaged)


def test_a_model_that_is_named_teaches() -> None:
    asked = []

    def load(path: str) -> Module:
        asked.append(path)
        return toy_model()

    module = toy_model()
    Damage().run(module, Context())  # as if it had been read from a file: the pipeline does not know what was before
    before = distance(module)
    Pipeline([Heal(teacher="models/first", **SMALL)]).run(module, Context(calibration=TEXT, load=load))
    assert asked == ["models/first"]
    assert distance(module) < 0.5 * before


def test_every_parameter_gets_a_gradient() -> None:
    module = healed(Heal(**{**SMALL, "tokens": 200}))
    assert sorted(find_parameters(module).trained) == [
        "norm.healed", "table.healed", "wk.thinned.healed", "wq.thinned.healed",
    ]  # fmt: skip


# --- never worse -----------------------------------------------------------------------------------------------------
def test_weights_that_got_worse_are_not_kept() -> None:
    module, damaged = toy_model(), toy_model()
    Pipeline([Damage()]).run(damaged)
    module = healed(Heal(**{**SMALL, "rate": 1.0, "warm_up": 0.0, "tokens": 600, "clip": 1e6}))
    assert module.ledger.rows[-1].changed == {}
    assert weights_of(module).keys() == weights_of(damaged).keys()


@pytest.mark.parametrize("passes", [[], [Incrementalize()]])
def test_nothing_is_done_where_nothing_was_lost(passes: list[Pass]) -> None:
    module = toy_model()
    Pipeline([*passes, Heal(**SMALL)]).run(module, Context(calibration=TEXT))
    assert module.ledger.rows[-1].changed == {}


def test_narrow_weights_stay_narrow() -> None:
    module = toy_model()
    for op in module.graph().walk():
        for index, operand in enumerate(op.operands):
            if isinstance(operand, Weight) and operand.key in ("wq", "wk"):
                key = f"{operand.key}.narrow"
                type = operand.type.with_element(DType.bf16)
                module.weights.derive(key, (operand.key,), type, "cast", lambda w: w.bfloat16())
                op.set_operand(index, Weight(key, type))
    module = healed(Heal(**SMALL), module)
    types = {str(key): str(type.element) for key, type in module.weight_types().items()}
    assert {types[key] for key in types if "narrow" in key} == {"bf16"}


# --- going on --------------------------------------------------------------------------------------------------------
class Stop:
    """Interrupts at the report after so many steps."""

    def __init__(self, steps: int) -> None:
        self.left = steps

    def __call__(self, what: str, share: float) -> None:
        if what.startswith("heal: loss"):
            self.left -= 1
            if self.left == 0:
                raise KeyboardInterrupt


@pytest.mark.parametrize("steps", [1, 4, 9])
def test_a_healing_that_was_killed_goes_on(steps: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLMOPT_CACHE", str(tmp_path / "whole"))
    seen: list[str] = []
    whole = healed(Heal(**SMALL), report=lambda what, share: seen.append(what))
    count = len([what for what in seen if what.startswith("heal: loss")])
    monkeypatch.setenv("SLMOPT_CACHE", str(tmp_path / "parts"))
    monkeypatch.setattr(training, "_SAVED_EVERY", 0.0)
    module = toy_model()
    with pytest.raises(KeyboardInterrupt):
        healed(Heal(**SMALL), module, report=Stop(steps))
    assert len([path for path in (tmp_path / "parts" / "heal").rglob("*") if path.is_file()]) == (steps > 1)
    seen.clear()
    assert_same(healed(Heal(**SMALL), report=lambda what, share: seen.append(what)), whole)
    assert len([what for what in seen if what.startswith("heal: loss")]) == count - (steps - 1)
    assert not [path for path in (tmp_path / "parts" / "heal").rglob("*") if path.is_file()]


KILLED = """
import os, signal
from slmopt.passes.heal import training
from tests.passes.test_heal import SMALL, Heal, healed

training._SAVED_EVERY = 0.0
def stop(what, share):
    if what.startswith("heal: loss") and share > 0.5:
        os.kill(os.getpid(), signal.SIGKILL)
healed(Heal(**SMALL), report=stop)
"""


def test_a_process_that_was_killed_leaves_what_another_goes_on_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = healed(Heal(**SMALL))
    monkeypatch.setenv("SLMOPT_CACHE", str(tmp_path))
    done = subprocess.run([sys.executable, "-c", KILLED], cwd=Path(__file__).parents[2], capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert [path for path in (tmp_path / "heal").rglob("*") if path.is_file()]
    seen: list[tuple[str, float]] = []
    assert_same(healed(Heal(**SMALL), report=lambda what, share: seen.append((what, share))), whole)
    assert min(share for what, share in seen if what.startswith("heal: loss")) > 0.5


def test_an_interrupted_module_is_as_it_was() -> None:
    module, damaged = toy_model(), toy_model()
    Pipeline([Damage()]).run(damaged)
    with pytest.raises(KeyboardInterrupt):
        healed(Heal(**SMALL), module, report=Stop(3))
    assert_same(module, damaged)
    assert list(module.weights) == list(damaged.weights)


def test_a_damaged_checkpoint_is_no_harm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLMOPT_CACHE", str(tmp_path))
    monkeypatch.setattr(training, "_SAVED_EVERY", 0.0)
    with pytest.raises(KeyboardInterrupt):
        healed(Heal(**SMALL), report=Stop(3))
    (path,) = (path for path in (tmp_path / "heal").rglob("*") if path.is_file())
    path.write_bytes(path.read_bytes()[:100])
    assert_same(healed(Heal(**SMALL)), healed(Heal(**SMALL)))


def test_the_seed_decides() -> None:
    first, again, other = (healed(Heal(seed=seed, **SMALL)) for seed in (1, 1, 2))
    assert_same(first, again)
    assert not torch.equal(first.weights.load("norm.healed"), other.weights.load("norm.healed"))


# --- what cannot be --------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"loss": "l2"}, "option loss must be kl, reverse-kl or js, got 'l2'"),
        ({"tokens": 0}, "option tokens must be at least 1"),
        ({"temperature": 0.0}, "option temperature must be"),
        ({"held_out": 1.0}, "option held_out must be 0.0 to 0.9"),
        ({"rate": -1.0}, "option rate must be"),
    ],
)
def test_wrong_options(options: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        Heal(**options)


def _no_original() -> None:
    module = toy_model()
    Heal(**SMALL).run(module, Context(calibration=TEXT))


def _after_quantization() -> None:
    Pipeline([Damage(), Quantize(), Heal(**SMALL)]).run(toy_model(), Context(calibration=TEXT))


def _nothing_but_codes() -> None:
    body = """
    %x = embedding(%ids, weight @t : f32[40, 32]) : f32[b, s, 32]
    %y = linear(%x, weight @w : f32[40, 32]) {activation = none, act = none} : f32[b, s, 40]
    return %y"""
    module = toy(body, 0, "%ids: i64[b, s]")
    Quantize().run(module, Context())
    Heal(**SMALL).run(module, Context(calibration=TEXT, original=toy_model()))


def _another_vocabulary() -> None:
    Heal(teacher="small", **SMALL).run(
        toy_model(), Context(calibration=TEXT, load=lambda path: toy("%y = exp(%x) : f32[b, s, 64]\nreturn %y"))
    )


def _no_language_model() -> None:
    module = toy("%y = exp(%x) : f32[b, s, 64]\nreturn %y")
    Pipeline([Heal(**SMALL)]).run(module)


def _no_text() -> None:
    healed(Heal(**SMALL), text=None)


def _nothing_to_predict() -> None:
    context = Context(calibration=Calibration(((1,), (2,), (3,))), original=toy_model())
    module = toy_model()
    Damage().run(module, context)
    Heal(**SMALL).run(module, context)


def _one_document() -> None:
    healed(Heal(**SMALL), text=Calibration((tuple(range(20)),)))


@pytest.mark.parametrize(
    ("act", "error", "words"),
    [
        (_no_original, ContractError, "run it in a Pipeline, give Context\\(original=...\\), or name a model"),
        (_after_quantization, ContractError, "put heal before quantize"),
        (_nothing_but_codes, UnsupportedError, "heal finds no float weights to train in @toy .*put it before quantiz"),
        (_another_vocabulary, InputError, "the teacher @toy is no language model"),
        (_no_language_model, UnsupportedError, "heal is for language models"),
        (_no_text, InputError, "trains on calibration text and none is given"),
        (_nothing_to_predict, InputError, "trains on calibration text and none is given"),
        (_one_document, InputError, "holds one document out and there is no other"),
    ],
)
def test_what_cannot_be_is_said(act: Callable[[], None], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        act()


# --- other architectures ---------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", VARIETY)
def test_every_architecture_heals_and_compiles(name: str, tmp_path: Path) -> None:
    item = Heal(tokens=1200, batch=400, sampled=0, rate=1e-3)
    module = rewritten(raised(tmp_path, name), [Damage(()), item], random_calibration())
    rows = {row.name: row for row in module.ledger.rows}
    healing = next(row for name, row in rows.items() if name.startswith("heal"))
    assert sum(healing.changed.values()) > 10
    assert healing.drift.kl < next(row for row in module.ledger.rows if row.name.startswith("damage")).drift.kl
    check_rewritten(module, tmp_path)


# --- the kit ---------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Hurt(Pass):
    """linear(x, w) -> linear(x, w damaged and healed)."""

    name: ClassVar[str] = "hurt"
    contract: ClassVar[Contract] = Lossy()

    def run(self, module: Module, context: Context) -> dict[str, int]:
        original = module.copy()
        changes = Damage(()).run(module, context)
        text = Calibration(tuple(tuple(i * j % 5 for j in range(1, 8)) for i in range(1, 5)))
        item = Heal(tokens=40, batch=20, sampled=0)
        found = item.run(module, Context(original=original, calibration=text, rules=context.rules))
        return {**changes, **{f"{kind} healed": count for kind, count in found.items()}}


def test_it_holds_what_every_pass_must() -> None:
    check_pass(Hurt, examples=10)
