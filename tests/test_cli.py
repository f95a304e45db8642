"""The command line: what each command prints, its exit code, and its messages."""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from slmopt import __version__
from slmopt.artifact import ArtifactWriter
from slmopt.cli import main
from slmopt.errors import InputError
from slmopt.ir.graph import Module
from slmopt.ir.text import parse_module
from slmopt.plugins import builtin, discovery
from slmopt.plugins.hooks import slmopt_plugin
from slmopt.target import Target
from tests.runtime.stand_in import BOS, expected_greedy, write_stand_in
from tests.toy_model import TEXT, toy_model


class ToyFrontend:
    """Any path is the toy model; `TOKENIZER` is its tokenizer."""

    summary = "the toy model"
    tokenizer: str | None = None

    def accepts(self, source: Any) -> bool:
        return not str(source).endswith(".slm")

    def load(self, source: Any) -> Module:
        module = toy_model()
        module.metadata["tokenizer"] = self.tokenizer
        return module


class ToyBackend:
    """Writes a manifest, the ledger and nothing else; cannot compile what has no @step, which it asks for."""

    name = "toy"
    summary = "a machine for tests"

    def status(self) -> dict[str, Any]:
        return {"compile": True, "run": False, "isas": ["one", "two"]}

    def supports(self, module: Module, target: Target) -> list[str]:
        return ["relu (at layers.3) has no kernel"] if "broken" in target.options else []

    def pipeline(self, module: Module, target: Target) -> list[str]:
        return [] if "step" in module.graphs else ["incrementalize"]

    def build(
        self, module: Module, target: Target, output: str | Path, *, name: str | None = None, ledger: Any = None,
        recipe: str | None = None, report: Any = None,
    ) -> Path:  # fmt: skip
        with ArtifactWriter(output) as artifact:
            report("kernels", 1, 1)
            artifact.write("module.slm", str(module))
            artifact.write_json("ledger.json", ledger)
            artifact.write_json("manifest.json", {"name": name or module.name, "target": str(target), "recipe": recipe})
        return Path(output)


@pytest.fixture
def toys(monkeypatch: pytest.MonkeyPatch) -> None:
    """The built-in passes and recipes, with the toy frontend and backend."""
    hooks = SimpleNamespace(
        slmopt_passes=slmopt_plugin(
            lambda: {**builtin.slmopt_passes(), "planted-lossy": "tests.test_pipeline:PlantedLossy"}
        ),
        slmopt_recipes=builtin.slmopt_recipes,
        slmopt_backends=slmopt_plugin(lambda: {"toy": "tests.test_cli:ToyBackend"}),
        slmopt_frontends=slmopt_plugin(
            lambda: {"toy": "tests.test_cli:ToyFrontend", "text": "slmopt.frontends.sources:IRText"}
        ),
    )
    known = discovery.Registry([("tests", hooks)])
    monkeypatch.setattr(discovery, "registry", lambda: known)


@pytest.fixture
def text_file(tmp_path: Path) -> Path:
    file = tmp_path / "toy.slm"
    file.write_text(TEXT)
    return file


@pytest.fixture(scope="module")
def stand_in(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    path = tmp_path_factory.mktemp("cli") / "stand-in"
    write_stand_in(path)
    yield path


def _wrong(arguments: list[str], capsys: pytest.CaptureFixture[str], code: int = 2) -> str:
    """Run what must fail; returns its message, which is one and no traceback."""
    assert main(arguments) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ") and "Traceback" not in captured.err
    return captured.err


# --- the program -------------------------------------------------------------------------------------------------
def test_help_names_every_command_and_the_exit_codes(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["--help"])
    assert stopped.value.code == 0
    text = capsys.readouterr().out
    for name in ("compile", "run", "opt", "inspect", "diff", "eval", "bench", "demo", "passes", "targets", "recipes"):
        assert re.search(rf"^    {name} ", text, re.MULTILINE)
    assert "0 success, 1 failed check or budget, 2 wrong use" in text


@pytest.mark.parametrize("command", ["compile", "run", "opt", "inspect", "diff", "eval", "bench", "demo", "passes"])
def test_each_command_has_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main([command, "--help"])
    assert stopped.value.code == 0
    assert f"usage: slmopt {command}" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments",
    [[], ["nonsense"], ["run"], ["compile", "m", "-r", "w4", "-p", "fuse"], ["bench", "a", "--tokens", "0"]],
)
def test_wrong_use_exits_with_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2
    assert "usage: slmopt" in capsys.readouterr().err


def test_the_module_runs_as_a_program() -> None:
    done = subprocess.run([sys.executable, "-m", "slmopt", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"slmopt {__version__}\n"


def test_an_error_is_a_message_and_a_code_without_traceback(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "slmopt", "run", str(tmp_path / "none"), "--prompt", "x"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr == f"error: there is no artifact at {tmp_path / 'none'}: nothing is there\n"


def test_a_fault_of_a_pass_is_a_message_that_names_the_pass_and_the_place(
    text_file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from slmopt.passes.canonicalize.canonicalize import Canonicalize

    def fail(*_: Any) -> None:
        raise KeyError("absent")

    monkeypatch.setattr(Canonicalize, "run", fail)
    assert main(["opt", str(text_file), "-p", "canonicalize"]) == 3
    message = capsys.readouterr().err
    assert "error: KeyError: 'absent'\n  at " in message and "test_cli.py:" in message
    assert "while running the pass canonicalize" in message and "Traceback" not in message
    monkeypatch.setenv("SLMOPT_TRACEBACK", "1")
    with pytest.raises(KeyError, match="absent"):
        main(["opt", str(text_file), "-p", "canonicalize"])


def test_an_interrupt_exits_with_130(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(discovery, "registry", interrupt)
    assert main(["recipes"]) == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_a_closed_pipe_is_no_error() -> None:
    command = f"{sys.executable} -m slmopt recipes | true; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True)
    assert done.stdout.strip() in ("0", "141") and done.stderr == ""


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.usefixtures("toys")
@pytest.mark.parametrize(("terminal", "options"), [(True, []), (True, ["--json"]), (False, [])])
def test_progress_shows_on_a_terminal_only(
    terminal: bool, options: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    errors = _Terminal() if terminal else io.StringIO()
    monkeypatch.setattr(sys, "stderr", errors)
    assert main(["compile", "m", "-t", "toy", "-r", "f32", "-o", str(tmp_path / "out"), *options]) == 0
    if terminal and not options:
        assert "canonicalize" in errors.getvalue() and "%" in errors.getvalue()
        assert errors.getvalue().endswith("\r")  # the bar is gone
    else:
        assert errors.getvalue() == ""


# --- lists -------------------------------------------------------------------------------------------------------
def test_passes_shows_options_and_rewrites(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["passes", "--json"]) == 0
    found = {item["name"]: item for item in json.loads(capsys.readouterr().out)}
    assert set(found) == set(builtin.slmopt_passes())
    options = {option["name"]: option for option in found["quantize"]["options"]}
    bits = {"name": "bits", "type": "integer", "default": "4", "help": "of a weight", "limits": "4 or 8"}
    assert options["bits"] == bits
    assert found["quantize"]["contract"] == "lossy" and found["fuse"]["contract"] == "exact to 0.0001"
    assert all(item["summary"] for item in found.values())
    rules = {rule["text"] for rule in found["raise-norm"]["rules"]}
    assert "norm(x) * w -> norm(x, w)" in rules
    assert main(["passes", "raise-activation"]) == 0
    assert "silu       mul(x, sigmoid(x)) -> silu(x)" in capsys.readouterr().out
    assert main(["passes", "quantize"]) == 0
    shown = capsys.readouterr().out
    assert "  bits=4  (integer; 4 or 8)\n      of a weight\n" in shown
    assert main(["passes", "incrementalize"]) == 0
    assert "cache=f32  (text)" in capsys.readouterr().out
    assert main(["passes"]) == 0
    assert "quantize{bits=4,group=32" in capsys.readouterr().out


def test_recipes_shows_passes_and_budget(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipes", "--json"]) == 0
    found = {item["name"]: item for item in json.loads(capsys.readouterr().out)}
    assert list(found) == ["f32", "f16", "w8", "w4", "w4-gptq", "w4-kv8"]
    assert found["f32"]["perplexity"] is None and found["w8"]["perplexity"] == pytest.approx(1.0)
    assert "quantize{bits=8}" in found["w8"]["passes"]
    assert main(["recipes", "w4"]) == 0
    assert "perplexity at most +12 %" in capsys.readouterr().out


@pytest.mark.usefixtures("toys")
def test_targets_shows_what_the_machine_can_do(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["targets"]) == 0
    assert capsys.readouterr().out == (
        "toy  a machine for tests\n    compile: yes\n    run: no\n    isas: one, two\n"
    )
    assert main(["targets", "--json"]) == 0
    (item,) = json.loads(capsys.readouterr().out)
    assert item["status"]["isas"] == ["one", "two"] and item["owner"] == "tests"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["passes", "quantise"], "unknown pass 'quantise'; did you mean 'quantize'?"),
        (["recipes", "w44"], "unknown recipe 'w44'; did you mean 'w4'?"),
        (["recipes", "none.toml"], "recipe none.toml cannot be read"),
    ],
)
def test_unknown_names_are_wrong_use(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert message in _wrong(arguments, capsys)


# --- opt, inspect, diff ------------------------------------------------------------------------------------------
def test_opt_without_passes_prints_the_text_it_read(text_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["opt", str(text_file)]) == 0
    assert parse_module(capsys.readouterr().out) == parse_module(TEXT)


def test_opt_runs_passes_in_order_on_text_from_standard_input(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO(TEXT))
    passes = ["-p", "quantize{bits=8,group=32}", "-p", "incrementalize{cache=f16}"]
    assert main(["opt", *passes, "--print-after-all", "--ledger"]) == 0
    captured = capsys.readouterr()
    module = parse_module(captured.out)
    assert set(module.graphs) == {"forward", "step"}
    assert str(module.weight_types()["wq.q8g32"].element) == "q8g32"
    after = re.findall("^// after (.*)$", captured.err, re.MULTILINE)
    assert after == ["quantize{bits=8}", "incrementalize{cache=f16}"]
    assert "original" in captured.err


def test_opt_checks_numbers_on_drawn_weights(
    text_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out.slm"
    assert main(["opt", str(text_file), "-p", "fuse", "--check", "--ledger", "-o", str(output)]) == 0
    assert "max err" in capsys.readouterr().err
    assert main(["diff", str(text_file), str(output)]) == 1
    assert "graph @forward: changed" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("passes", "code", "message"),
    [
        (["-p", "quantize{bit=4}"], 2, "pass quantize has no option 'bit'; did you mean 'bits'?"),
        (["-p", "quantize{bits=four}"], 2, "option bits must be integer, got four"),
        (["-p", "quantize{bits=5}"], 2, "bits must be 4 or 8, got 5"),
        (["-p", "quantize{bits=4"], 2, "is no pass"),
        (["-p", "fuze"], 2, "did you mean 'fuse'?"),
        (["-r", "w5"], 2, "unknown recipe 'w5'"),
        (["--text", "/nowhere/text"], 2, "the text /nowhere/text cannot be read"),
        (["-o", "/nowhere/out.slm"], 2, "cannot write /nowhere/out.slm"),
    ],
)
def test_opt_says_what_is_wrong(
    passes: list[str], code: int, message: str, text_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert message in _wrong(["opt", str(text_file), *passes], capsys, code)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("module @m {\n  graph oops", "line 2, column 9: expected key, found 'oops'"),
        ("module @m {\n graph @f(%x: f32[b]) {\n  %y = silu(%x) : f32[s]\n return } }", "line 3: graph @f, %y = silu"),
        ("module @m {\n graph @f(%x: f32[b]) {\n\n  %y = add(%x) : f32[b]\n return } }", "line 4: graph @f, %y = add"),
        ("\0", "line 1, column 1: unexpected character"),
    ],
)
def test_wrong_text_is_wrong_use_with_its_line(
    text: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "bad.slm"
    file.write_text(text)
    assert f"{file}: {message}" in _wrong(["opt", str(file)], capsys, 2)
    monkeypatch.setattr("sys.stdin", io.StringIO(text))
    assert f"standard input: {message}" in _wrong(["opt", "-"], capsys, 2)


def test_inspect_counts_ops_and_weights(text_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(text_file), "--json", "--weights"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["size"]["parameters"] == 40 * 32 + 32 + 2 * 32 * 32
    assert found["graphs"]["forward"]["ops"]["linear"] == 3
    assert found["weight_types"]["norm"] == "f32[32]"
    assert main(["inspect", str(text_file)]) == 0
    assert "toy: 3.36 k parameters, 13.4 kB" in capsys.readouterr().out
    assert main(["inspect", str(text_file), "--graph", "forward"]) == 0
    assert capsys.readouterr().out.startswith("  graph @forward(%ids: i64[b, s]) {")


def test_inspect_draws_graphs(text_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    starts = {"svg": "<svg xmlns=", "html": "<!DOCTYPE html>", "dot": 'digraph "forward" {'}
    for suffix, start in starts.items():
        file = tmp_path / f"picture.{suffix}"
        assert main(["inspect", str(text_file), "--graph", str(file), "--name", "forward"]) == 0
        assert file.read_text().startswith(start)
    wrong = ["inspect", str(text_file), "--graph", str(tmp_path / "picture.svg"), "--name", "step"]
    assert "has no graph @step" in _wrong(wrong, capsys, 1)
    assert "--name says which graph to draw" in _wrong(["inspect", str(text_file), "--name", "forward"], capsys, 2)
    nowhere = str(tmp_path / "nowhere" / "picture.svg")
    assert f"cannot write {nowhere}" in _wrong(["inspect", str(text_file), "--graph", nowhere], capsys, 2)


def test_inspect_of_a_graph_that_is_not_there(text_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "has no graph @step; it has forward" in _wrong(["inspect", str(text_file), "--graph", "step"], capsys, 1)


def test_diff_of_equal_modules_is_0(text_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["diff", str(text_file), str(text_file)]) == 0
    assert capsys.readouterr().out == "no difference\n"
    assert main(["diff", str(text_file), str(text_file), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["same"] is True


# --- compile -----------------------------------------------------------------------------------------------------
@pytest.mark.usefixtures("toys")
def test_compile_prints_the_ledger_and_writes_the_artifact(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "build" / "toy"
    assert main(["compile", "toy-model", "-t", "toy", "-r", "w8", "-o", str(output)]) == 0
    text = capsys.readouterr().out
    for name in ("original", "quantize{bits=8}", "incrementalize{cache=f16}", f"wrote {output}"):
        assert name in text
    ledger = json.loads((output / "ledger.json").read_text())
    assert [row["name"] for row in ledger["rows"]][-1] == "incrementalize{cache=f16}"
    assert not any("seconds" in row or "peak_bytes" in row for row in ledger["rows"])
    assert main(["inspect", str(output)]) == 0
    assert "artifact: toy, recipe raise, canonicalize, quantize{bits=8}" in capsys.readouterr().out


@pytest.mark.usefixtures("toys")
def test_compile_runs_the_passes_the_backend_wants_and_prints_json(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "toy"
    assert main(["compile", "m", "-t", "toy", "-p", "quantize", "-o", str(output), "--json", "--name", "other"]) == 0
    captured = capsys.readouterr()
    found = json.loads(captured.out)
    assert found["artifact"] == str(output) and found["bytes"] > 0 and captured.err == ""
    assert [row["name"] for row in found["ledger"]["rows"]] == ["original", "quantize", "incrementalize"]
    assert all("seconds" in row for row in found["ledger"]["rows"])
    assert json.loads((output / "manifest.json").read_text())["name"] == "other"


@pytest.mark.usefixtures("toys")
def test_two_compiles_write_the_same_bytes(tmp_path: Path) -> None:
    for name in ("one", "two"):
        assert main(["compile", "m", "-t", "toy", "-r", "w4", "-o", str(tmp_path / name)]) == 0
    for file in ("ledger.json", "module.slm", "manifest.json"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()


@pytest.mark.usefixtures("toys")
def test_a_budget_that_is_left_fails_the_compile(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.test_api import words

    monkeypatch.setattr(ToyFrontend, "tokenizer", words(tmp_path / "tokenizer.json"))
    recipe, text = tmp_path / "tight.toml", tmp_path / "text.txt"
    recipe.write_text('passes = ["planted-lossy{drift=1.0}"]\n[budget]\nperplexity = "+2%"\n')
    text.write_text(" ".join(f"w{index * 7 % 40}" for index in range(60)))
    arguments = ["compile", "m", "-t", "toy", "-r", str(recipe), "--text", str(text), "-o", str(tmp_path / "out")]
    increased = main(arguments)
    captured = capsys.readouterr()
    found = re.search(r"perplexity went from ([\d.]+) to ([\d.]+) \(\+[\d.]+%\), and \+2.00% is allowed", captured.err)
    assert increased == 1 and found is not None and float(found[2]) > float(found[1])
    assert "pass planted-lossy leaves the budget" in captured.err
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("toys")
def test_what_a_backend_cannot_do_is_listed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    message = _wrong(["compile", "m", "-t", "toy:broken=yes", "-o", str(tmp_path / "out")], capsys, 1)
    assert "target toy:broken=yes cannot compile @toy:\n  relu (at layers.3) has no kernel" in message
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("toys")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-t", "tory"], "unknown target 'tory'; did you mean 'toy'?"),
        (["-t", "toy:isa"], "'isa' is not of the form option=value"),
        (["-t", "toy", "-r", "w3"], "unknown recipe 'w3'"),
        (["-t", "toy", "-p", "quantize{bits=3}"], "bits must be 4 or 8"),
    ],
)
def test_wrong_compiles_are_found_before_the_model_is_loaded(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(self: ToyFrontend, source: Any) -> Module:
        raise InputError("the model was loaded")

    monkeypatch.setattr(ToyFrontend, "load", load)
    assert message in _wrong(["compile", "m", *arguments], capsys)


@pytest.mark.usefixtures("toys")
def test_an_output_that_cannot_be_written_is_found_before_the_model_is_loaded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ToyFrontend, "load", None)
    file = tmp_path / "file"
    file.write_text("mine")
    full = tmp_path / "full"
    full.mkdir()
    (full / "mine").write_text("mine")
    for output, message in [(file, "a file is there"), (file / "in", "cannot write"), (full, "is not an artifact")]:
        assert message in _wrong(["compile", "m", "-t", "toy", "-o", str(output)], capsys)
    assert file.read_text() == (full / "mine").read_text() == "mine"


# --- run, eval, bench --------------------------------------------------------------------------------------------
def test_run_prints_the_continuation(stand_in: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from slmopt.runtime import open as open_artifact

    with open_artifact(stand_in, 1) as model:
        ids = model.encode("the hen")
        expected = "".join(model.stream("the hen", 8))
        assert ids[0] == BOS
        assert list(model.generate_ids(ids, 8)) == expected_greedy(ids, 8)
    command = ["run", str(stand_in), "--prompt", "the hen", "-n", "8", "--threads", "1"]
    assert main(command) == 0
    assert capsys.readouterr().out == expected + "\n"
    assert main([*command, "--echo"]) == 0
    assert capsys.readouterr().out == f"the hen{expected}\n"
    assert main([*command, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"prompt": "the hen", "text": expected, "model": "standin"}


def test_run_reads_the_prompt_from_standard_input_and_samples_by_seed(
    stand_in: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = []
    for seed in ("1", "1", "2"):
        monkeypatch.setattr(sys, "stdin", io.StringIO("then"))
        assert main(["run", str(stand_in), "-n", "12", "--temperature", "1.5", "--top-k", "50", "--seed", seed]) == 0
        texts.append(capsys.readouterr().out)
    assert texts[0] == texts[1] != texts[2]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--prompt", "x" * 200], "context"),
        (["--prompt", "x", "--temperature", "-1"], "temperature"),
        (["--prompt", "x", "--top-p", "7"], "top_p"),
        (["--prompt", "x", "--seed", "-1"], "seed is -1"),
        (["--prompt", "x", "-n", "-1"], "max_tokens is -1"),
        (["--prompt", "x", "--stop", ""], "stop strings must be text"),
    ],
)
def test_run_refuses_what_does_not_fit(
    arguments: list[str], message: str, stand_in: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert message in _wrong(["run", str(stand_in), *arguments], capsys)


def test_eval_gives_the_perplexity_of_the_runtime_and_checks_a_limit(
    stand_in: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from slmopt.runtime import open as open_artifact

    text = tmp_path / "text.txt"
    text.write_text("the hen<|endoftext|>then there")
    with open_artifact(stand_in, 1) as model:
        expected = model.perplexity(text.read_text())
    assert main(["eval", str(stand_in), "--text", str(text), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["perplexity"] == pytest.approx(expected.perplexity) and found["tokens"] == expected.tokens
    limit = ["eval", str(stand_in), "--text", str(text), "--at-most"]
    assert main([*limit, str(2 * expected.perplexity)]) == 0
    assert f"perplexity {expected.perplexity:.4f}, " in capsys.readouterr().out
    assert main([*limit, str(expected.perplexity / 2)]) == 1
    assert "is above" in capsys.readouterr().err


def test_eval_of_a_text_that_is_not_there(stand_in: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "cannot be read" in _wrong(["eval", str(stand_in), "--text", "/nowhere/text"], capsys)


def test_bench_measures_prefill_and_decode(stand_in: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["bench", str(stand_in), "--prompt-tokens", "20", "--tokens", "10", "--repeat", "2", "--threads", "1"]
    assert main([*command, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["prefill_tokens_per_second"] > 0 and found["decode_tokens_per_second"] > 0
    assert (found["threads"], found["prompt_tokens"], found["tokens"], found["repeat"]) == (1, 20, 10, 2)
    assert main(command) == 0
    assert "median of 2 runs" in capsys.readouterr().out


def test_bench_beyond_the_context_is_wrong_use(stand_in: Path, capsys: pytest.CaptureFixture[str]) -> None:
    message = _wrong(["bench", str(stand_in), "--prompt-tokens", "90", "--tokens", "20"], capsys)
    assert "110 tokens do not fit the model's context of 96" in message


# --- the whole way -----------------------------------------------------------------------------------------------
@pytest.mark.slow
def test_demo_compiles_the_bundled_model_and_writes_python(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "demo"
    assert main(["demo", "-o", str(output), "-n", "40"]) == 0
    text = capsys.readouterr().out
    for part in ("original", "quantize{bits=8}", f"wrote {output}", "class Parser:"):
        assert part in text
    assert main(["run", str(output), "--prompt", "import os\n\ndef ", "-n", "20"]) == 0
    assert len(capsys.readouterr().out.strip()) > 10
