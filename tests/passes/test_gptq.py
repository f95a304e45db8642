"""The pass `gptq`."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import slmopt
import slmopt.runtime
from slmopt.backends.cpu.backend import CpuBackend
from slmopt.calibrate import Calibration, tokenize_documents
from slmopt.errors import InputError, UnsupportedError
from slmopt.evaluate import measure_perplexity
from slmopt.frontends import huggingface
from slmopt.interpreter import forward, run, step_through
from slmopt.ir.graph import Module
from slmopt.passes.canonicalize.canonicalize import Canonicalize
from slmopt.passes.fuse.fuse import Fuse
from slmopt.passes.incrementalize import Incrementalize
from slmopt.passes.quantize.feedback import round_with_feedback
from slmopt.passes.quantize.gptq import GPTQ
from slmopt.passes.quantize.round_to_nearest import Quantize
from slmopt.passes.quantize.rounding import round_to_nearest
from slmopt.passes.raise_.raising import Raise
from slmopt.passes.share.share_blocks import Pairs, ShareBlocks
from slmopt.pipeline import Context, Pass, Pipeline
from slmopt.sampled_text import sample_calibration
from slmopt.target import parse_target
from tests.backends.native import BUILTIN
from tests.backends.sessions import feed
from tests.passes.toys import IDS, TIED, graph_text, relative_error, toy
from tests.rewritten import VARIETY, raised, random_calibration
from tests.stories import EVALUATED, MODEL, calibration_text, evaluation_text, needs_stories, perplexity_after

TEXT = random_calibration(vocabulary=50)


def gptq(module: Module, item: Pass | None = None, text: Calibration | None = TEXT) -> tuple[Module, dict[str, int]]:
    """A copy of the module after the pass, and what it changed."""
    copy = module.copy()
    return copy, (item or GPTQ()).run(copy, Context(calibration=text))


def model(body: str = TIED, **metadata: object) -> Module:
    """A toy that reads ids."""
    module = toy(body, signature=IDS)
    module.metadata.update({"context": 32, "bos_token_id": 1, "sequence": "s", "vocab": 50, **metadata})
    return module


def products(module: Module, key: str) -> torch.Tensor:
    """What the linear that reads a weight, or what was made of it, gives on the text, as [positions, outputs]."""
    op = next(op for op in module.graph().walk() if op.name == "linear" and op.operands[1].key.startswith(key))  # type: ignore[union-attr]
    found: list[torch.Tensor] = []
    for document in TEXT.documents:
        run(module, "forward", [torch.tensor([document])],
            observe=lambda value, tensor: found.append(tensor[0]) if value is op.result else None)  # fmt: skip
    return torch.cat(found)


def test_golden() -> None:
    found, changes = gptq(model())
    assert graph_text(found.graph()) == graph_text("""
        graph @forward(%ids: i64[b, s]) {
          %x = embedding(%ids, weight @table.q8g32 : q8g32[50, 40]) : f32[b, s, 40]
          %h = linear(%x, weight @inner.q4g32a : q4g32a[70, 40], weight @bias : f32[70]) {activation = "silu", act = "q8"} : f32[b, s, 70]
          %y = linear(%h, weight @outer.q4g32a : q4g32a[40, 70], _, %x) {activation = none, act = "q8"} : f32[b, s, 40]
          %logits = linear(%y, weight @table.q8g32 : q8g32[50, 40]) {activation = none, act = "q8"} : f32[b, s, 50]
          return %logits
        }
    """)  # noqa: E501
    assert changes == {"embedding": 1, "linear": 3}
    assert gptq(found)[1] == {}


def test_each_linear_is_fitted_to_what_the_quantized_ones_before_it_give() -> None:
    module = model()
    found, _ = gptq(module, GPTQ(act="none"))
    table = round_to_nearest(module.weights.float("table"), found.weights.type("table.q8g32").element).dequantize()  # type: ignore[arg-type]
    x = torch.cat([table[list(document)] for document in TEXT.documents])
    for key in ("inner", "outer"):
        type = found.weights.type(f"{key}.q4g32a").element
        expected = round_with_feedback(module.weights.float(key), x.double().T @ x.double(), type)  # type: ignore[arg-type]
        torch.testing.assert_close(found.weights.float(f"{key}.q4g32a"), expected.dequantize())
        if key == "inner":
            x = torch.nn.functional.silu(x @ expected.dequantize().T + module.weights.float("bias"))


@pytest.mark.parametrize("options", [{}, {"grid": "symmetric"}, {"act_order": True}, {"group": 0}])
def test_what_linears_give_changes_less_than_by_rounding(options: dict[str, Any]) -> None:
    module = model()
    nearest, fitted = module.copy(), gptq(module, GPTQ(**{"act": "none", **options}))[0]
    Quantize(grid=options.get("grid", "asymmetric"), group=options.get("group", 32), act="none").run(nearest, Context())
    errors = [relative_rms(products(other, "inner"), products(module, "inner")) for other in (fitted, nearest)]
    assert errors[0] < 0.95 * errors[1]


def relative_rms(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).square().mean().sqrt() / expected.square().mean().sqrt())


def test_a_tied_head_of_four_bits_is_fitted_once_to_the_inputs_of_the_head() -> None:
    module = model()
    found, changes = gptq(module, GPTQ(head=4, act="none"))
    assert changes == {"embedding": 1, "linear": 3}
    assert sorted(key for key in found.weight_types() if "table" in key) == ["table.q4g32a"]
    x = torch.cat([_before_head(module, document) for document in TEXT.documents]).double()
    type = found.weights.type("table.q4g32a").element
    expected = round_with_feedback(module.weights.float("table"), x.T @ x, type)  # type: ignore[arg-type]
    torch.testing.assert_close(found.weights.float("table.q4g32a"), expected.dequantize())


def _before_head(module: Module, document: tuple[int, ...]) -> torch.Tensor:
    seen: list[torch.Tensor] = []
    run(module, "forward", [torch.tensor([document])],
        observe=lambda value, tensor: seen.append(tensor[0]) if value.name == "y" else None)  # fmt: skip
    return seen[0]


def test_a_weight_of_two_layers_is_fitted_to_the_inputs_of_both() -> None:
    body = """
        %x = embedding(%ids, weight @table : f32[50, 40]) : f32[b, s, 40]
        %h = linear(%x, weight @inner : f32[40, 40]) {activation = "silu"} : f32[b, s, 40]
        %y = linear(%h, weight @inner : f32[40, 40]) : f32[b, s, 40]
        %logits = linear(%y, weight @head : f32[50, 40]) : f32[b, s, 50]
        return %logits
    """
    module = model(body)
    found, _ = gptq(module, GPTQ(act="none", head=0))
    first = torch.cat([module.weights.float("table")[list(document)] for document in TEXT.documents])
    second = torch.nn.functional.silu(first @ module.weights.float("inner").T)
    both = torch.cat((first, second)).double()
    type = found.weights.type("inner.q4g32a").element
    expected = round_with_feedback(module.weights.float("inner"), both.T @ both, type)  # type: ignore[arg-type]
    torch.testing.assert_close(found.weights.float("inner.q4g32a"), expected.dequantize())
    assert sorted(key for key in found.weight_types() if "." not in key) == ["head", "table"]


def test_without_text_the_model_samples_its_own() -> None:
    module = model()
    own = sample_calibration(module, 32 * 70, seed=3)  # 70 inputs has the widest linear
    sampled, _ = gptq(module, GPTQ(seed=3), None)
    given, _ = gptq(module, GPTQ(), own)
    asked, _ = gptq(module, GPTQ(seed=3, sample=True))
    for other in (given, asked):
        for key in ("inner.q4g32a", "outer.q4g32a"):
            assert torch.equal(sampled.weights.load(key).codes, other.weights.load(key).codes)
    few, _ = gptq(module, GPTQ(tokens=60))
    head, _ = gptq(module, GPTQ(), TEXT.head(60))
    assert torch.equal(few.weights.load("outer.q4g32a").codes, head.weights.load("outer.q4g32a").codes)


def test_options_leave_weights_alone() -> None:
    untied = TIED.replace("%y, weight @table", "%y, weight @head")
    for item, left in (
        (GPTQ(head=0), {"head", "table"}),
        (GPTQ(layers="inner|head"), {"table", "outer"}),
        (GPTQ(layers="^nothing$"), {"head", "table", "inner", "outer"}),
    ):
        found, changes = gptq(model(untied), item)
        assert {key for key in found.weight_types() if ".q" not in key} - {"bias"} == left
        assert sum(changes.values()) == 4 - len(left)
    found, _ = gptq(model(untied), GPTQ(head=4))  # a table that is only looked up has no inputs to be fitted to
    table = round_to_nearest(model(untied).weights.float("table"), found.weights.type("table.q4g32a").element)  # type: ignore[arg-type]
    assert torch.equal(found.weights.load("table.q4g32a").codes, table.codes)


def test_must_not_fire() -> None:
    positions = """
        %i = arange() {start = 0, stop = s, element = "i64"} : i64[s]
        %p = embedding(%i, weight @w : f32[99, 64]) : f32[s, 64]
        %y = add(%x, %p) : f32[b, s, 64]
        return %y
    """
    for body in (positions, "%y = rms_norm(%x, weight @w : f32[64]) {eps = 1e-05} : f32[b, s, 64]\nreturn %y"):
        module = toy(body)
        found, changes = gptq(module, text=None)
        assert changes == {}
        assert found == module


def test_a_step_reads_the_same_codes() -> None:
    module = model(TIED)
    Incrementalize().run(module, Context())
    found, changes = gptq(module)
    assert changes == {"embedding": 2, "linear": 6}
    ids = torch.tensor([TEXT.documents[0]])
    torch.testing.assert_close(step_through(found, ids, [5, 27]), forward(found, ids))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bits": 5}, "bits must be 3, 4 or 8, got 5"),
        ({"group": 48}, "multiple of 32"),
        ({"grid": "log"}, "grid must be asymmetric or symmetric"),
        ({"head": 2}, "head must be 0, 3, 4 or 8"),
        ({"act": "q4"}, "act must be q8 or none"),
        ({"damping": 2.0}, "damping must be 0.0 to 1.0"),
        ({"layers": "("}, "no regular expression"),
    ],
)
def test_wrong_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        GPTQ(**options)


def test_what_reads_no_text_is_refused() -> None:
    module = toy("%y = linear(%x, weight @w : f32[64, 64]) : f32[b, s, 64]\nreturn %y")
    with pytest.raises(UnsupportedError, match="@toy samples no text"):
        gptq(module, text=None)
    with pytest.raises(UnsupportedError, match="@toy reads no text"):
        gptq(module)
    with pytest.raises(InputError, match=r"the text has no tokens"):
        gptq(model(), GPTQ(tokens=1))


def test_a_damaged_weight_is_named() -> None:
    module = model()
    weight = torch.ones(70, 40)
    weight[2, 5] = float("inf")
    damaged = toy(TIED, signature=IDS, inner=weight)
    damaged.metadata.update(module.metadata)
    with pytest.raises(InputError, match=r"gptq: weight @inner: .*NaN or infinity"):
        gptq(damaged)


@pytest.mark.parametrize("name", VARIETY)
def test_every_architecture(name: str, tmp_path: Path) -> None:
    """The library is compared with the graph as test_compiled_architectures does: codes may tip over."""
    module = raised(tmp_path, name)
    ShareBlocks(Pairs("0-1")).run(module, Context())
    before, context = module.copy(), Context(calibration=random_calibration())
    Pipeline([GPTQ(head=4), Fuse(), Incrementalize()]).run(module, context)
    linears = [op for op in module.graph("step").walk() if op.name == "linear"]
    assert {str(op.operands[1].type.element) for op in linears if op.operands[1] is not None} == {"q4g32a"}
    ids = torch.randint(3, 97, (1, 40), generator=torch.Generator().manual_seed(1))
    assert relative_error(forward(module, ids), forward(before, ids)) < 1.0
    check_compiled(module, tmp_path)


def check_compiled(module: Module, directory: Path) -> None:
    """The library gives what the graph gives, but where an activation on the edge between two codes falls otherwise."""
    ids = torch.randint(3, 97, (1, 20), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = forward(module, ids)[0].numpy()
    CpuBackend(BUILTIN).build(module, parse_target("cpu:context=48,chunk=16"), directory / "artifact")
    with slmopt.runtime.open(directory / "artifact") as opened, opened.session(threads=2) as session:
        found = feed(session, ids[0].tolist(), [13, 14, 20])
    error = np.abs(found - expected).max(-1) / np.abs(expected).max()
    assert np.median(error) < 1e-4
    assert error.max() < 0.02


# --- what it costs a trained model ---------------------------------------------------------------------------------
@cache
def stories() -> Module:
    """The trained model, raised."""
    module = huggingface.load(MODEL)
    Pipeline([Raise(), Canonicalize()], verify=False).run(module)
    return module


@needs_stories
def test_a_trained_model_loses_less_than_by_rounding() -> None:
    text = tokenize_documents(stories().metadata, calibration_text()).head(4000)
    few = tokenize_documents(stories().metadata, evaluation_text()).head(4000)
    fitted, nearest = gptq(stories(), GPTQ(head=4), text)[0], stories().copy()
    Quantize(grid="asymmetric").run(nearest, Context())
    whole, found, rounded = (measure_perplexity(module, few) for module in (stories(), fitted, nearest))
    assert whole < found < whole * 1.1
    assert found < whole + 0.9 * (rounded - whole)


# Perplexity of 120 stories through the compiled artifact: what the body in 4 bits may cost, and all in 4 bits.
BARS: dict[str, tuple[GPTQ, float]] = {"body": (GPTQ(), 0.06), "all": (GPTQ(head=4), 0.08)}


@needs_stories
@pytest.mark.slow
@pytest.mark.parametrize("case", BARS)
def test_perplexity_of_the_artifact(case: str, tmp_path: Path) -> None:
    item, bar = BARS[case]
    passes = [Raise(), Canonicalize(), item, Fuse(), Incrementalize("f16")]
    assert perplexity_after(passes, tmp_path) < EVALUATED * (1 + bar)


@needs_stories
@pytest.mark.slow
def test_text_of_its_own_does_nearly_as_well() -> None:
    evaluation = tokenize_documents(stories().metadata, evaluation_text())
    found, _ = gptq(stories(), GPTQ(), None)
    assert measure_perplexity(found, evaluation) < EVALUATED * 1.065
