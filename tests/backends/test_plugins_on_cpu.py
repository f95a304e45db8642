"""What plugins offer to the code generator: instruction sets and kernels, new ones and in the stead of ours."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import slmopt.runtime
from slmopt.backends.cpu.backend import CpuBackend
from slmopt.backends.tvm.lower import Lowering
from slmopt.backends.tvm.lowerings import Lowerings
from slmopt.errors import InputError, UnsupportedError
from slmopt.interpreter import forward, step_through
from slmopt.ir.graph import Module
from slmopt.ir.ops import registry as ops
from slmopt.ir.text import parse_module
from slmopt.offers import Offers, replaces
from slmopt.passes.incrementalize import Incrementalize
from slmopt.pipeline import Context
from slmopt.plugins import builtin
from slmopt.plugins.discovery import Registry
from slmopt.plugins.hooks import slmopt_plugin
from slmopt.stand_in import add_stand_ins
from slmopt.target import parse_target
from slmopt.testing.op_check import check_op
from tests.backends import acme
from tests.backends.native import BUILTIN, ISAS
from tests.toy_model import TEXT

IDS = [1, 7, 3, 30, 9, 9, 2, 21, 13]
WIDE = "f32[b, s, 32]"


@pytest.fixture(autouse=True)
def _known_ops() -> Iterator[None]:
    with ops.having(acme.SPECS, "acme"):
        yield


def offers(lowerings: dict[str, Any] = acme.LOWERINGS, isas: dict[str, Any] | None = None) -> Offers:
    """What the built-ins and a plugin offer together."""

    class Acme:
        @slmopt_plugin
        def slmopt_lowerings(self) -> dict[str, Any]:
            return lowerings

        @slmopt_plugin
        def slmopt_isas(self) -> dict[str, Any]:
            return isas or {}

    return Registry([("slmopt", builtin), ("acme (tests)", Acme())]).offers


def model(*lines: str) -> Module:
    """The toy model with more ops between %r and the logits, the last of them %g."""
    head = "    %logits = linear("
    text = TEXT.replace(f"{head}%r,", "".join(f"    {line}\n" for line in lines) + f"{head}%g,")
    module = parse_module(text)
    add_stand_ins(module, drawn=True)
    Incrementalize().run(module, Context())
    return module


def agree(found: np.ndarray, expected: np.ndarray) -> None:
    """Equal, to 1e-5 of the largest logit."""
    np.testing.assert_allclose(found, expected, atol=1e-5 * max(1.0, float(np.abs(expected).max())))


def check(module: Module, offered: Offers, output: Path, target: str = "cpu:chunk=4") -> str:
    """The compiled model equals the interpreter, whole and in parts; its program."""
    ids = torch.tensor([IDS])
    expected = forward(module, ids)[0].numpy()
    agree(step_through(module, ids, [5, 1, 3])[0].numpy(), expected)
    path = CpuBackend(offered).build(module, parse_target(target), output)
    with slmopt.runtime.open(path) as opened, opened.session(threads=2) as session:
        for parts in ([9], [5, 1, 3]):
            session.reset()
            found, start = [], 0
            for length in parts:
                found.append(session.logits(IDS[start : start + length]))
                start += length
            agree(np.concatenate(found), expected)
        session.reset()
        session.prefill(IDS)
        agree(session.last_logits(), expected[-1])
    return (path / "program.c").read_text()


def lower(module: Module, offered: Offers) -> Lowering:
    step = module.graph("step").copy(dims={"b": 1, "c": 64})
    isa = ISAS.load("scalar")
    lowering = Lowering(module, step, isa, 16, 64, Lowerings(offered.lowerings, isa.name))
    lowering.run()
    return lowering


# --- kernels ---------------------------------------------------------------------------------------------------------
GLU = f'%g = glu(%r, %o) {{activation = none, output = "f32"}} : {WIDE}'


def test_a_kernel_replaces_ours(tmp_path: Path) -> None:
    with_theirs = offers({"tvm:glu": replaces(f"{acme.__name__}:lower_glu")})
    program = check(model(GLU), with_theirs, tmp_path / "theirs")
    assert "  acme_glu_32(" in program and "  glu_" not in program
    program = check(model(GLU), BUILTIN, tmp_path / "ours")
    assert "  glu_None_32_f32(" in program and "acme" not in program


def test_a_kernel_may_be_for_one_instruction_set(tmp_path: Path) -> None:
    offered = offers({"tvm:glu@avx2": f"{acme.__name__}:lower_glu"})
    assert "  glu_None_32_f32(" in check(model(GLU), offered, tmp_path / "scalar", "cpu:isa=scalar")
    path = CpuBackend(offered).build(model(GLU), parse_target("cpu:isa=avx2"), tmp_path / "avx2")
    assert "  acme_glu_32(" in (path / "program.c").read_text()


def test_two_kernels_for_one_op_are_an_error_that_names_both(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="tvm:glu"):
        offered = offers({"tvm:glu": f"{acme.__name__}:lower_glu"})
    with pytest.raises(InputError, match=r"'tvm:glu' is offered by slmopt.* and by acme \(tests\)"):
        CpuBackend(offered).build(model(GLU), parse_target("cpu"), tmp_path / "artifact")


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("tests.backends.acme:lower_it", "cannot be imported from 'tests.backends.acme:lower_it': AttributeError"),
        ("tests.backends.nowhere:lower", "cannot be imported from 'tests.backends.nowhere:lower': ModuleNotFoundError"),
        ("tests.backends.acme:NOT_CALLABLE", "cannot be called; expected a function of (lowering, op)"),
        ("tests.backends.acme:lower_wrongly", "%g = squash: the lowering tests.backends.acme:lower_wrongly, offered by "
         "acme (tests), raised KeyError: 'width'"),
        ("tests.backends.acme:lower_nothing", "says of %g not where it lies; it must call lowering.allocate"),
        ("tests.backends.acme:lower_with_too_few_arguments", "acme_glu_32 takes (float *out, const float *gate, "),
    ],
)  # fmt: skip
def test_a_broken_lowering_names_its_owner(place: str, message: str) -> None:
    module = model(f"%g = squash(%r) {{offset = 0.0}} : {WIDE}")
    with pytest.raises(InputError, match=re.escape(message)):
        CpuBackend(offers({"tvm:squash": place})).supports(module, parse_target("cpu"))


def test_every_op_without_a_kernel_is_reported_by_op_and_place(tmp_path: Path) -> None:
    module = model(
        f'%e = shift_tokens(%r) : {WIDE} loc("layers.1")',
        f'%f = squash(%e) {{offset = 0.0}} : {WIDE} loc("layers.1.mlp")',
        f'%g = decayed_sum(%f) {{decay = 0.5}} : {WIDE} loc("layers.2")',
    )
    problems = CpuBackend(BUILTIN).supports(module, parse_target("cpu"))
    assert [problem.split(":")[0] for problem in problems] == [
        "%f = squash (at layers.1.mlp)",
        "%g, %g_last_next = decayed_sum_step (at layers.2)",
    ]
    advice = "a plugin offers one through the hook slmopt_lowerings, as 'tvm:squash' (docs/writing-an-op.md)"
    assert advice in problems[0]
    with pytest.raises(UnsupportedError, match=r"(?s)cannot compile @toy:\n  %f = squash.*\n  %g, %g_last_next"):
        CpuBackend(BUILTIN).build(module, parse_target("cpu"), tmp_path / "artifact")
    assert not (tmp_path / "artifact").exists()


def test_one_unsupported_op_does_not_accuse_those_after_it() -> None:
    module = model(f'%g = glu(%r, %o) {{activation = "silu", output = "f32"}} : {WIDE} loc("layers.1")')
    offered = offers({"tvm:glu": replaces(f"{acme.__name__}:lower_glu")})
    (problem,) = CpuBackend(offered).supports(module, parse_target("cpu"))
    assert problem == "%g = glu (at layers.1): acme has no activation 'silu'"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"vocab": 40', '"vocab": 41', "%logits: f32[1, t, 40]; a vocabulary of 41 tokens has logits f32[1, t, 41]"),
        (', "vocab": 40', "", "the module's metadata does not say its `vocab`, a whole number"),
        ("%ids: i64[b, s]", "%ids: i64[b, s], %more: f32[b]", "; the runtime gives token ids i64[1, t] and a position"),
    ],
)  # fmt: skip
def test_what_the_runtime_cannot_call_is_reported(old: str, new: str, message: str) -> None:
    module = parse_module(TEXT.replace(old, new))
    add_stand_ins(module, drawn=True)
    Incrementalize().run(module, Context())
    problems = CpuBackend(BUILTIN).supports(module, parse_target("cpu"))
    assert any(message in problem for problem in problems), problems


def test_a_table_has_a_row_for_every_token() -> None:
    text = TEXT.replace("@table : f32[40, 32]) : f32[b, s, 32]", "@small : f32[39, 32]) : f32[b, s, 32]")
    module = parse_module(text)
    add_stand_ins(module, drawn=True)
    Incrementalize().run(module, Context())
    (problem,) = CpuBackend(BUILTIN).supports(module, parse_target("cpu"))
    assert problem == "%x = embedding: f32[39, 32] has no row for some of the 40 tokens"


# --- elementwise -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("isa", ["scalar", ISAS.detect().name])
def test_an_elementwise_expression_is_a_kernel(isa: str, tmp_path: Path) -> None:
    module = model(
        "%gate = slice(%r) {axis = 2, start = 0, stop = 27, step = 1} : f32[b, s, 27]",
        "%part = squash(%gate) {offset = 0.5} : f32[b, s, 27]",  # 27 fills no whole number of vectors
        "%scale = sum(%part) {axis = 2, keep = true} : f32[b, s, 1]",
        f"%c = squash(%r, %scale) {{offset = 0.25}} : {WIDE}",  # one number a row
        f"%d = squash(%c, weight @norm : f32[32]) {{offset = -0.5}} : {WIDE}",
        "%h = reshape(%d) {shape = [b, s, 4, 8]} : f32[b, s, 4, 8]",
        "%p = permute(%h) {axes = [0, 3, 1, 2]} : f32[b, 8, s, 4]",  # no contiguous last axis
        "%q2 = squash(%p) {offset = 0.0} : f32[b, 8, s, 4]",
        "%u = permute(%q2) {axes = [0, 2, 3, 1]} : f32[b, s, 4, 8]",
        f"%g = reshape(%u) {{shape = [b, s, 32]}} : {WIDE}",
    )
    program = check(module, offers(), tmp_path / "artifact", f"cpu:isa={isa},chunk=4")
    assert len(set(re.findall(r"  (squash_each_\w+)\(", program))) == 4


def test_an_elementwise_kernel_is_of_f32(tmp_path: Path) -> None:
    module = model(
        "%low = lt(%r, %o) : bool[b, s, 32]",
        "%g2 = squash(%low) {offset = 0.0} : bool[b, s, 32]",
        f'%g = cast(%g2) {{element = "f32"}} : {WIDE}',
    )
    (problem,) = CpuBackend(offers()).supports(module, parse_target("cpu"))
    assert problem.startswith("%g2 = squash: an elementwise kernel is of f32, got %low: bool")


# --- expansions -----------------------------------------------------------------------------------------------------
def test_an_op_may_be_lowered_as_other_ops() -> None:
    text = f"%y = squash(%x) {{offset = 0.5}} : {WIDE}"
    check_op(acme.SPECS[0], text, lowerings={"tvm:squash": acme.expand_squash})  # its own first expansion is a squash


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("expand_forever", "_squash = squash: the lowering tests.backends.acme:expand_forever, offered by acme "
         "(tests), expands into itself"),
        ("expand_narrow", "%g = squash: its expansion gives f32[1, t, 1], expected f32[1, t, 32]"),
        ("expand_badly", "%g = squash: the lowering tests.backends.acme:expand_badly, offered by acme (tests), raised "
         "ZeroDivisionError"),
    ],
)  # fmt: skip
def test_a_broken_expansion_is_named(place: str, message: str) -> None:
    module = model(f"%g = squash(%r) {{offset = 0.0}} : {WIDE}")
    with pytest.raises(InputError, match=re.escape(message)):
        CpuBackend(offers({"tvm:squash": f"tests.backends.acme:{place}"})).supports(module, parse_target("cpu"))


@pytest.mark.parametrize("keep", ["true", "false"])
@pytest.mark.parametrize("axis", [2, 3])
def test_primitives_without_a_kernel_are_expanded(axis: int, keep: str) -> None:
    shape = [4, 8]
    shape[axis - 2] = 1
    kept = ", ".join(map(str, shape)) if keep == "true" else str(max(shape))
    check_op([], f"""
        %h = reshape(%x) {{shape = [b, s, 4, 8]}} : f32[b, s, 4, 8]
        %p = softmax(%h) {{axis = {axis}}} : f32[b, s, 4, 8]
        %m = mean(%p) {{axis = {axis}, keep = {keep}}} : f32[b, s, {kept}]
        %k = reshape(%m) {{shape = [b, s, {", ".join(map(str, shape))}]}} : f32[b, s, {", ".join(map(str, shape))}]
        %d = sub(%p, %k) : f32[b, s, 4, 8]
        %y = reshape(%d) {{shape = [b, s, 32]}} : {WIDE}
    """, targets=["cpu:chunk=4"])  # fmt: skip


def test_primitives_compute_on_weights_too() -> None:
    check_op([], """
        %p = permute(weight @w : f32[5, 32]) {axes = [1, 0]} : f32[32, 5]
        %q = slice(%p) {axis = 1, start = 1, stop = 2, step = 1} : f32[32, 1]
        %column = reshape(%q) {shape = [32]} : f32[32]
        %row = reshape(weight @v : f32[4, 8]) {shape = [32]} : f32[32]
        %s = sum(weight @w : f32[5, 32]) {axis = 0, keep = false} : f32[32]
        %m = mean(weight @w : f32[5, 32]) {axis = 0, keep = false} : f32[32]
        %e = expand(weight @u : f32[1]) {shape = [32]} : f32[32]
        %a = add(%column, %row) : f32[32]
        %b = add(%a, %s) : f32[32]
        %c = sub(%b, %m) : f32[32]
        %d = add(%c, %e) : f32[32]
        %y = add(%x, %d) : f32[b, s, 32]
    """)


# --- states ----------------------------------------------------------------------------------------------------------
def test_an_op_with_a_state_of_its_own_updates_it_in_place(tmp_path: Path) -> None:
    program = check(model(f"%g = decayed_sum(%r) {{decay = 0.5}} : {WIDE}"), offers(), tmp_path / "artifact")
    assert "  acme_decayed_sum_" in program


def test_a_step_of_primitives_needs_no_kernel(tmp_path: Path) -> None:
    module = model(f"%e = shift_tokens(%r) : {WIDE}", f"%g = shift_tokens(%e) : {WIDE}")
    assert CpuBackend(BUILTIN).supports(module, parse_target("cpu")) == []
    check(module, BUILTIN, tmp_path / "artifact")


def test_states_that_hand_on_to_each_other(tmp_path: Path) -> None:
    """The step's second state becomes what the first one was, its first one the ids' embedding."""
    module = parse_module(TEXT)
    add_stand_ins(module, drawn=True)
    module.graphs["step"] = parse_module("""
module @toy {
  graph @step(%ids: i64[b, t], %position: i64[], state %one: f32[b, 1, 32], state %two: f32[b, 1, 32]) {
    %x = embedding(%ids, weight @table : f32[40, 32]) : f32[b, t, 32]
    %last = slice(%x) {axis = 1, start = t - 1, stop = t, step = 1} : f32[b, 1, 32]
    %sum = add(%one, %two) : f32[b, 1, 32]
    %y = add(%x, %sum) : f32[b, t, 32]
    %logits = linear(%y, weight @table : f32[40, 32]) {activation = none, act = none} : f32[b, t, 40]
    return %logits, %last, %one
  }
}
""").graphs["step"]
    ids = torch.tensor([IDS])
    expected = step_through(module, ids, [2, 1, 3, 3])[0].numpy()
    path = CpuBackend(BUILTIN).build(module, parse_target("cpu"), tmp_path / "artifact")
    with slmopt.runtime.open(path) as opened, opened.session(threads=2) as session:
        found = [session.logits(IDS[start:stop]) for start, stop in ((0, 2), (2, 3), (3, 6), (6, 9))]
    agree(np.concatenate(found), expected)


# --- only rows that need logits --------------------------------------------------------------------------------------
def test_after_the_last_op_that_mixes_only_rows_that_need_logits_are_computed() -> None:
    module = model(
        f"%e = squash(%r) {{offset = 0.0}} : {WIDE}",
        f"%f = decayed_sum(%e) {{decay = 0.5}} : {WIDE}",
        f"%g = squash(%f) {{offset = 1.0}} : {WIDE}",
    )
    lowering = lower(module, offers())
    assert lowering.problems == []
    tails = {call.comment.split(" (")[0]: call.tail for call in lowering.calls}
    assert not tails["%x = embedding"] and not tails["%a = attention"]
    assert not tails["%r = add"] and not tails["%e = squash"]  # the sum reads every row of them
    assert not tails["%f, %f_last_next = decayed_sum_step"]
    assert tails["%g = squash"] and tails["%logits = linear"]


def test_attention_and_ops_of_rows_are_computed_for_those_rows_alone() -> None:
    lowering = lower(model(f"%g = squash(%r) {{offset = 0.0}} : {WIDE}"), offers())
    tails = {call.comment.split(" (")[0]: call.tail for call in lowering.calls}
    assert tails["%a = attention"] and tails["%r = add"] and tails["%g = squash"] and tails["%logits = linear"]
    assert not any(tail for comment, tail in tails.items() if "cache_update" in comment)


# --- instruction sets ------------------------------------------------------------------------------------------------
def own_isa(path: Path, **fields: Any) -> Path:
    """The host's best instruction set as another one."""
    text = BUILTIN.isas[ISAS.detect().name].file().read_text()
    for name, value in fields.items():
        text = re.sub(rf"^{name} = .*$", f"{name} = {value}", text, flags=re.MULTILINE)
    path.write_text(text)
    return path


def test_an_instruction_set_replaces_ours(tmp_path: Path) -> None:
    name = ISAS.detect().name
    path = own_isa(tmp_path / "mine.toml", prefetch=0, summary='"mine"')
    backend = CpuBackend(offers(isas={name: replaces(path)}))
    assert backend.isas.detect().summary == "mine" and backend.isas.detect().prefetch == 0
    check(model(GLU), offers(isas={name: replaces(path)}), tmp_path / "artifact")


def test_a_better_instruction_set_becomes_the_default_with_its_own_kernel(tmp_path: Path) -> None:
    path = own_isa(tmp_path / "mine.toml", rank=1000, token_tile=1)
    offered = offers({"tvm:glu@acme-1": f"{acme.__name__}:lower_glu"}, {"acme-1": path})
    assert "  acme_glu_32(" in check(model(GLU), offered, tmp_path / "artifact")
    assert '"target": "cpu:isa=acme-1"' in (tmp_path / "artifact" / "manifest.json").read_text()


def test_an_instruction_set_may_be_a_file_of_the_users(tmp_path: Path) -> None:
    path = own_isa(tmp_path / "mine.toml", streams=1)
    check(model(GLU), BUILTIN, tmp_path / "artifact", f"cpu:isa={path}")
    assert '"target": "cpu:isa=mine"' in (tmp_path / "artifact" / "manifest.json").read_text()
