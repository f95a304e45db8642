"""`slmopt opt`: what passes changed, the IR before and after them, where the time went."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from slmopt.cli import main
from slmopt.ir.diff import diff_text
from slmopt.ir.text import parse_module
from tests.toy_model import TEXT

PASSES = ("-p", "canonicalize", "-p", "quantize{embedding=false}", "-p", "fuse-qkv", "--check")


@pytest.fixture
def source(tmp_path: Path) -> str:
    path = tmp_path / "toy.slm"
    path.write_text(TEXT)
    return str(path)


def test_print_changed_shows_a_diff_for_each_pass(source: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["opt", source, *PASSES, "--print-changed"]) == 0
    shown = capsys.readouterr()
    assert parse_module(shown.out).graph().value("q_k").op is not None
    assert shown.err == """\
// canonicalize changed nothing
// quantize{embedding=false} changed
graph @forward
@@ -2,6 +2,6 @@
     %x = embedding(%ids, weight @table : f32[40, 32]) : f32[b, s, 32]
     %n = rms_norm(%x, weight @norm : f32[32]) {eps = 1e-05, output = "f32"} : f32[b, s, 32]
-    %q = linear(%n, weight @wq : f32[32, 32]) {activation = none, act = none} : f32[b, s, 32]
-    %k = linear(%n, weight @wk : f32[32, 32]) {activation = none, act = none} : f32[b, s, 32]
+    %q = linear(%n, weight @wq.q4g32 : q4g32[32, 32]) {activation = none, act = "q8"} : f32[b, s, 32]
+    %k = linear(%n, weight @wk.q4g32 : q4g32[32, 32]) {activation = none, act = "q8"} : f32[b, s, 32]
     %qr = reshape(%q) {shape = [b, s, 2, 16]} : f32[b, s, 2, 16]
     %kr = reshape(%k) {shape = [b, s, 2, 16]} : f32[b, s, 2, 16]

// fuse-qkv changed
graph @forward
@@ -2,6 +2,7 @@
     %x = embedding(%ids, weight @table : f32[40, 32]) : f32[b, s, 32]
     %n = rms_norm(%x, weight @norm : f32[32]) {eps = 1e-05, output = "f32"} : f32[b, s, 32]
-    %q = linear(%n, weight @wq.q4g32 : q4g32[32, 32]) {activation = none, act = "q8"} : f32[b, s, 32]
-    %k = linear(%n, weight @wk.q4g32 : q4g32[32, 32]) {activation = none, act = "q8"} : f32[b, s, 32]
+    %q_k = linear(%n, weight @wq_wk.q4g32 : q4g32[64, 32]) {activation = none, act = "q8"} : f32[b, s, 64]
+    %q = slice(%q_k) {axis = -1, start = 0, stop = 32, step = 1} : f32[b, s, 32]
+    %k = slice(%q_k) {axis = -1, start = 32, stop = 64, step = 1} : f32[b, s, 32]
     %qr = reshape(%q) {shape = [b, s, 2, 16]} : f32[b, s, 2, 16]
     %kr = reshape(%k) {shape = [b, s, 2, 16]} : f32[b, s, 2, 16]

"""


def test_print_before_and_after_a_pass(source: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["opt", source, *PASSES, "--print-before", "quantize", "--print-after", "fuse-qkv"]) == 0
    shown = capsys.readouterr()
    before, after = shown.err.removeprefix("// before quantize{embedding=false}\n").split("// after fuse-qkv\n")
    assert parse_module(before).graphs == parse_module(TEXT).graphs
    assert parse_module(after) == parse_module(shown.out)


def test_the_name_of_a_pass_that_did_not_run_is_an_error(source: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["opt", source, *PASSES, "--print-after", "fuse-qvk"]) == 2
    message = "no pass 'fuse-qvk' ran; did you mean 'fuse-qkv'?; those that ran: canonicalize, quantize, fuse-qkv"
    assert message in capsys.readouterr().err


def test_time_passes_shows_passes_and_their_rewrites(source: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["opt", source, *PASSES, "--time-passes"]) == 0
    lines = [line.split() for line in capsys.readouterr().err.splitlines()]
    assert lines[0] == ["pass", "rewrites", "ms", "verify", "ms"]
    assert [line[0] for line in lines[1:]] == [
        "original", "canonicalize", "quantize{embedding=false}", "round", "fuse-qkv", "merged", "total",
    ]  # fmt: skip
    assert lines[4][1] == "2" and lines[6][1] == "1"
    assert float(lines[-1][1]) == pytest.approx(sum(float(lines[i][1]) for i in (1, 2, 3, 5)), abs=0.3)


def test_json_has_the_module_and_the_ledger_with_times(
    source: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["opt", source, *PASSES, "--json", "-o", str(tmp_path / "out.slm")]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["module"] == (tmp_path / "out.slm").read_text()
    row = shown["ledger"]["rows"][2]
    assert row["name"] == "quantize{embedding=false}" and row["changed"] == {"linear": 2}
    assert row["rewrites"]["round"]["count"] == 2 and row["rewrites"]["round"]["seconds"] > 0
    assert row["graphs"] == ["forward"] and row["seconds"] > 0


def test_a_broken_contract_is_a_failed_check(source: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["opt", source, "-p", "fuse-act-quant", "-p", "quantize"]) == 1
    assert capsys.readouterr().err.startswith(
        "error: pass fuse-act-quant is to follow 'quantized', which quantize ensures: put quantize before "
        "fuse-act-quant; an order that holds: quantize, fuse-act-quant"
    )


def test_print_changed_shows_what_a_pass_that_failed_had_done(
    source: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from slmopt.passes.quantize.round_to_nearest import Quantize
    from slmopt.pipeline import Exact

    monkeypatch.setattr(Quantize, "contract", Exact(1e-6))
    assert main(["opt", source, *PASSES]) == 1
    assert "had done" not in capsys.readouterr().err
    assert main(["opt", source, *PASSES, "--print-changed"]) == 1
    shown = capsys.readouterr().err
    assert "// what the pass quantize had done, before it was undone:\ngraph @forward\n@@ -2,6 +2,6 @@" in shown
    assert "+    %q = linear(%n, weight @wq.q4g32 : q4g32[32, 32])" in shown
    assert "error: pass quantize is exact but changes the logits" in shown


def test_diff_text_shows_graphs_that_come_and_go() -> None:
    assert diff_text({"a": "x\ny"}, {"a": "x\ny"}) == ""
    assert diff_text({"a": "x"}, {"b": "y"}) == "graph @a\n@@ -1 +0,0 @@\n-x\ngraph @b\n@@ -0,0 +1 @@\n+y\n"
