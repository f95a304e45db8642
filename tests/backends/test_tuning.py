"""What was measured for single shapes: read and written as TOML, used by the kernel of that shape; results stay."""

from __future__ import annotations

import os
import re
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import slmopt
from slmopt.backends.tvm import isa as isa_module
from slmopt.backends.tvm import tuning
from slmopt.backends.tvm.blocking import Blocking, choose_blocking, default_blocking
from slmopt.backends.tvm.build import build_object
from slmopt.backends.tvm.isa import Isa, read_isa
from slmopt.backends.tvm.linear import linear
from slmopt.backends.tvm.tuning_table import TunedLinear, write_entries
from slmopt.cli import main
from slmopt.errors import InputError
from slmopt.ir.graph import Module
from slmopt.ir.text import parse_module
from slmopt.ir.types import parse_element
from tests.architectures import save_tiny
from tests.backends.native import ISAS, host_isas
from tests.backends.test_linear_kernels import make

ENTRY = TunedLinear("q4g32", 64, 32, streams=3, tokens=5, blocks=2, prefetch=1024)
TYPES = ("q4g32", "q8g32a", "f32")
SIZE, TOKENS = (150, 64), 13


def described(isa: Isa, entries: str) -> str:
    """An instruction set without entries of its own, and these."""
    return tuning.write_isa(replace(isa, linear=()), []) + entries


# --- the description -------------------------------------------------------------------------------------------------
@given(
    st.lists(
        st.builds(
            TunedLinear, st.sampled_from(["q4g32", "q8c", "q4g64a", "f32", "bf16"]), st.integers(1, 1 << 20),
            st.integers(1, 1 << 20), st.integers(1, 16), st.integers(1, 32), st.integers(1, 8), st.integers(0, 1 << 20),
        ), unique_by=lambda entry: (entry.element, entry.rows, entry.columns),
    )
)  # fmt: skip
def test_what_is_written_is_read_again(tmp_path_factory: pytest.TempPathFactory, entries: list[TunedLinear]) -> None:
    path = tmp_path_factory.mktemp("isa") / "mine.toml"
    for name in ISAS.names():
        isa = replace(ISAS.load(name), linear=())
        path.write_text(tuning.write_isa(isa, entries))
        found = read_isa(path, name)
        assert set(found.linear) == set(entries) and replace(found, linear=()) == isa


def test_an_entry_of_a_shape_replaces_the_one_before() -> None:
    other = replace(ENTRY, rows=80)
    isa = replace(ISAS.load("avx2"), linear=(ENTRY, other))
    text = tuning.write_isa(isa, [replace(ENTRY, tokens=7)])
    assert text.count("{") == 2 and "rows = 64, columns = 32, streams = 3, tokens = 7" in text and "rows = 80" in text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("linear = 3", "linear must be a list of tables, got 3"),
        ("linear = [1]", "linear must be a list of tables, got [1]"),
        (("tokens = 5, ", ""), "linear, entry 1 lacks tokens; its fields are element, rows"),
        (("tokens", "token"), "linear, entry 1 lacks tokens"),
        (("prefetch", "token = 5, prefetch"), "entry 1 has unknown fields token; did you mean 'tokens'?; its fields"),
        (("5", '"5"'), "linear, entry 1: tokens must be a whole number from 1 to 32, got '5'"),
        (("5", "true"), "tokens must be a whole number from 1 to 32, got True"),
        (("5", "33"), "tokens must be a whole number from 1 to 32, got 33"),
        (("= 2,", "= 9,"), "blocks must be a whole number from 1 to 8, got 9"),
        (("= 3,", "= 0,"), "streams must be a whole number from 1 to 16, got 0"),
        (("1024", "-1"), "prefetch must be a whole number of at least 0, got -1"),
        (("64", "0"), "rows must be a whole number of at least 1, got 0"),
        (('"q4g32"', "4"), "element must be text such as 'q4g32', got 4"),
        (("q4g32", "q4h32"), "linear, entry 1: unknown element type 'q4h32'"),
        (("q4g32", "i64"), "element must be a type of weights, got 'i64'"),
        (("]", write_entries((ENTRY,))[10:]), "linear, entry 2: there already is one for q4g32 [64, 32]"),
    ],
)
def test_what_is_wrong_with_an_entry_is_said(tmp_path: Path, change: str | tuple[str, str], message: str) -> None:
    entries = write_entries((ENTRY,))
    path = tmp_path / "wrong.toml"
    path.write_text(described(ISAS.load("avx2"), change if isinstance(change, str) else entries.replace(*change)))
    with pytest.raises(InputError, match=rf"instruction set {re.escape(str(path))}: .*{re.escape(message)}"):
        read_isa(path)


# --- kernels ---------------------------------------------------------------------------------------------------------
def test_the_kernel_of_exactly_that_shape_and_type_is_another() -> None:
    isa = replace(host_isas()[0], linear=())
    tuned = replace(isa, linear=(ENTRY,))
    for name, rows, columns in [("q4g32", 64, 32), ("q4g32", 32, 64), ("q8g32", 64, 32), ("q4g32a", 64, 32)]:
        element = parse_element(name)
        chosen = choose_blocking(tuned, element, rows, columns)
        hit = (name, rows, columns) == ("q4g32", 64, 32)
        assert chosen == (Blocking(3, 5, 2, 1024) if hit else default_blocking(isa, element))
    plain, other = (build_object([linear(one, parse_element("q4g32"), 64, 32)], one) for one in (isa, tuned))
    assert plain != other


@pytest.mark.parametrize("isa", host_isas(), ids=lambda isa: isa.name)
@settings(max_examples=4, deadline=None)
@given(
    name=st.sampled_from(TYPES), streams=st.integers(1, 5), tokens=st.integers(1, 9), blocks=st.integers(1, 4),
    prefetch=st.sampled_from([0, 64, 4096]),
)  # fmt: skip
def test_any_blocking_gives_the_same_bytes(
    isa: Isa, name: str, streams: int, tokens: int, blocks: int, prefetch: int
) -> None:
    entry = TunedLinear(name, *SIZE, streams=streams, tokens=tokens, blocks=blocks, prefetch=prefetch)
    (plain,) = make(replace(isa, linear=()), name, [SIZE], TOKENS, bias=True)
    (tuned,) = make(replace(isa, linear=(entry,)), name, [SIZE], TOKENS, bias=True)
    for count in range(1, TOKENS + 1):
        np.testing.assert_array_equal(tuned.run(tokens=count), plain.run(tokens=count))
    np.testing.assert_array_equal(tuned.run([3, 4, 9]), plain.run())


# --- measuring -------------------------------------------------------------------------------------------------------
def logits(path: Path) -> np.ndarray:
    """After each token of a prompt, and of two that follow one at a time."""
    with slmopt.open(path) as model, model.session() as session:
        return np.concatenate([session.logits(range(1, 12)), session.logits([7]), session.logits([3])])


def test_tuning_writes_a_file_that_compiles_to_the_same_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tuning, "_MARGIN", -1.0)  # whatever is measured last is taken
    monkeypatch.setattr(tuning, "_COLD_BYTES", 1 << 16)
    monkeypatch.setattr(tuning, "_SECONDS", 0.0)
    monkeypatch.setattr(tuning, "_streams", lambda isa, best: [replace(best, streams=3)])
    monkeypatch.setattr(tuning, "_prefetches", lambda isa, best: [replace(best, prefetch=192)])
    monkeypatch.setattr(tuning, "_tiles", lambda isa, best: [replace(best, tokens=3, blocks=3)])
    save_tiny(tmp_path / "model", "llama")
    path = tmp_path / "mine.toml"
    command = ["tune", str(tmp_path / "model"), "--recipe", "w4", "--rounds", "1", "-o", str(path)]
    assert main(command) == 0
    assert f"compile with --target cpu:isa={path}" in capsys.readouterr().out
    isa = read_isa(path)
    kept = {entry for entry in isa.linear if entry not in ISAS.detect().linear}
    assert kept and all(asdict(entry)["element"].startswith("q4") or entry.element == "q8g32" for entry in kept)
    plain = slmopt.compile(tmp_path / "model", "cpu", tmp_path / "plain", recipe="w4", verify=False)
    tuned = slmopt.compile(tmp_path / "model", f"cpu:isa={path}", tmp_path / "tuned", recipe="w4", verify=False)
    np.testing.assert_array_equal(logits(tuned), logits(plain))


def test_an_instruction_set_that_the_host_has_not_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(isa_module, "_CPU_INFO", Path(os.devnull))
    with pytest.raises(InputError, match=r"avx2 cannot be measured here: .* no avx2, bmi2, f16c, fma; tune on one"):
        tuning.tune(Module("m"), ISAS.load("avx2"), 1, lambda *said: None)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["-o", "mine.txt"], "mine.txt: an instruction set is a file that ends in .toml"),
        (["-o", "mine.toml", "-t", "cpu:isa=avx-2"], "did you mean 'avx2'"),
    ],
)
def test_wrong_use_is_an_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    save_tiny(tmp_path, "llama")
    assert main(["tune", str(tmp_path), *options]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("isa", host_isas(), ids=lambda isa: isa.name)
def test_what_rounds_its_inputs_is_measured_as_it_runs(isa: Isa, monkeypatch: pytest.MonkeyPatch) -> None:
    body = 'linear(%x, weight @w : bf16[40, 31]) {activation = none, act = "bf16"} : f32[b, 40]'
    module = parse_module(f"module @m {{ graph @step(%x: f32[b, 31]) {{ %y = {body} return %y }} }}")
    (shape,) = tuning.find_shapes(module)
    assert (shape, shape.has_pairs(isa)) == (tuning.Shape("bf16", 40, 31, rounded=True), bool(isa.bf16_dot))
    monkeypatch.setattr(tuning, "_MARGIN", -1.0)
    monkeypatch.setattr(tuning, "_COLD_BYTES", 1 << 14)
    monkeypatch.setattr(tuning, "_SECONDS", 0.0)
    monkeypatch.setattr(tuning, "_streams", lambda isa, best: [replace(best, streams=3)])
    monkeypatch.setattr(tuning, "_prefetches", lambda isa, best: [])
    monkeypatch.setattr(tuning, "_tiles", lambda isa, best: [])
    found = tuning.tune_shape(replace(isa, linear=()), shape, 1)
    assert found is None or (found.element, found.rows, found.columns, found.streams) == ("bf16", 40, 31, 3)
