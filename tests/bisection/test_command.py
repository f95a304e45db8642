"""`slmopt bisect`: what it prints, its exit codes and messages; checks of compiling and of texts; a trained model."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

import slmopt
from slmopt.api import measure
from slmopt.cli import main
from slmopt.ir.graph import Module
from slmopt.plugins import builtin, discovery
from slmopt.plugins.hooks import slmopt_plugin
from slmopt.target import Target
from tests.bisection.faults import Expand, Harmless, Rounds, Scales, layered_model
from tests.stories import MODEL, TEXT, needs_stories


class PickyBackend:
    """Compiles whatever has no sigmoid in layer 2."""

    name = "picky"
    summary = "a machine for tests"

    def status(self) -> dict[str, Any]:
        return {"compile": True}

    def supports(self, module: Module, target: Target) -> list[str]:
        names = [op.value(0).name for op in module.graph().walk() if op.name == "sigmoid"]
        return ["sigmoid has no kernel"] if "u2" in names else []

    def pipeline(self, module: Module, target: Target) -> list[str]:
        return []

    def build(self, module: Module, target: Target, output: Path, **others: Any) -> Path:
        output.mkdir()
        return output


@pytest.fixture
def planted(monkeypatch: pytest.MonkeyPatch) -> None:
    """The built-ins, with the passes of `faults` and a backend that is hard to please."""

    def passes() -> Mapping[str, Any]:
        names = {"harmless": "Harmless", "expand": "Expand", "rounds": "Rounds"}
        return {**builtin.slmopt_passes(), **{name: f"tests.bisection.faults:{cls}" for name, cls in names.items()}}

    hooks = SimpleNamespace(
        slmopt_passes=slmopt_plugin(passes), slmopt_recipes=builtin.slmopt_recipes,
        slmopt_metrics=builtin.slmopt_metrics, slmopt_frontends=builtin.slmopt_frontends,
        slmopt_backends=slmopt_plugin(lambda: {"picky": "tests.bisection.test_command:PickyBackend"}),
    )  # fmt: skip
    known = discovery.Registry([("tests", hooks)])
    monkeypatch.setattr(discovery, "registry", lambda: known)


@pytest.fixture
def source(tmp_path: Path) -> str:
    file = tmp_path / "layered.slm"
    file.write_text(str(layered_model()))
    return str(file)


def _tokenizer(path: Path) -> str:
    words = Tokenizer(WordLevel({f"w{number}": number for number in range(40)}, unk_token="w0"))
    words.pre_tokenizer = Whitespace()
    words.save(str(path))
    return str(path)


_WORDS = "w1 w7 w3 w9 w11 w30 w2 w8 w8 w21 " * 6


# --- the command -------------------------------------------------------------------------------------------------
_FAULT = ["-p", "harmless", "-p", "expand{wrong=[3]}", "-p", "harmless{number=1}"]


@pytest.mark.usefixtures("planted")
def test_finds_and_prints(source: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bisect", source, *_FAULT, "--check", "outputs", "--no-reproducer"]) == 0
    text = capsys.readouterr().out
    assert text.startswith("pass 2 of 3, expand{wrong=[3]}, breaks outputs\n")
    assert "    expand at @forward/%a3\n" in text
    assert "1 run of the recipe" in text


@pytest.mark.usefixtures("planted")
def test_json(source: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bisect", source, *_FAULT, "--check", "outputs", "--no-reproducer", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["found"]
    assert (found["index"], found["pass"], found["owner"]) == (1, "expand{wrong=[3]}", "tests")
    assert found["names"] == ["expand at @forward/%a3"]


@pytest.mark.usefixtures("planted")
def test_nothing_breaks(source: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = str(tmp_path / "out")
    assert main(["bisect", source, "-p", "harmless", "-p", "expand", "--check", "outputs", "-o", out]) == 1
    assert capsys.readouterr().out == "nothing breaks: outputs holds after the last pass\n"
    assert not Path(out).exists()
    assert main(["bisect", source, "-p", "harmless", "--command", "true", "--json"]) == 1
    assert json.loads(capsys.readouterr().out) == {"found": None}


def test_a_reproducer_of_a_pass_that_is_installed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Half precision is a difference of 1e-4: more than is allowed here."""
    file, out = tmp_path / "layered.slm", str(tmp_path / "out")
    file.write_text(str(layered_model(2)))
    assert main(["bisect", str(file), "-p", "cast-weights", "--check", "outputs<=1e-6", "-o", out]) == 0
    assert "fails on its own, 1 ops" in capsys.readouterr().out
    assert main(["bisect", "--replay", out]) == 1
    assert capsys.readouterr().out.startswith("it fails: outputs differ by ")
    assert main(["bisect", "--replay", out, "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["fails"] is True


@pytest.mark.parametrize(("arguments", "words"), [
    (["--check", "outputs"], "needs the passes"),
    (["-p", "fuse"], "needs a property"),
    (["-p", "fuse", "--check", "outptus"], "did you mean 'outputs'"),
    (["-p", "fues", "--check", "outputs"], "did you mean 'fuse'"),
    (["-p", "fuse", "--check", "perplexity<=+3%"], "needs a text"),
    (["-p", "fuse", "--check", "compiles", "-t", "cup"], "did you mean 'cpu'"),
    (["-p", "fuse", "--command", "exit 1"], "the original itself breaks"),
    (["-p", "fuse", "--command", "no-such-program-here"], "exits with 127"),
    (["-p", "fuse", "--check", "outputs", "-o", "."], "is there already"),
])  # fmt: skip
def test_wrong_use(source: str, arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bisect", source, *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ") and words in captured.err


def test_no_model_and_no_reproducer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bisect", "--check", "outputs"]) == 2
    assert "needs a model" in capsys.readouterr().err
    assert main(["bisect", "--replay", str(tmp_path)]) == 2
    assert "cannot read" in capsys.readouterr().err


# --- other checks ------------------------------------------------------------------------------------------------
@pytest.mark.usefixtures("planted")
def test_compiles(tmp_path: Path) -> None:
    found = slmopt.bisect(layered_model(), [Harmless(), Expand(), Harmless(1)], "compiles", target="picky")
    assert found is not None
    assert (found.index, found.names) == (1, ("expand at @forward/%a2",))
    assert "sigmoid has no kernel" in found.after.words
    assert found.before.words == "it compiles for picky"


@pytest.mark.parametrize("name", ["perplexity", "metric:perplexity", "bits-per-byte"])
def test_metrics_of_a_text(tmp_path: Path, name: str) -> None:
    """Between what it is before and after the pass lies a bound that breaks."""
    module, passes = layered_model(3), [Harmless(), Scales(1), Harmless(1)]
    module.metadata["tokenizer"] = _tokenizer(tmp_path / "tokenizer.json")
    metric = name.removeprefix("metric:")
    last = slmopt.optimize(module, passes, verify=False)
    before, after = (measure(one, _WORDS, [metric])[metric] for one in (module, last))
    assert before != after
    check = f"{name}{'<=' if before < after else '>='}{(before + after) / 2}"
    found = slmopt.bisect(module, passes, check, text=_WORDS)
    assert found is not None
    assert (found.index, found.names) == (1, ("@forward/%d1",))
    assert found.before.value == pytest.approx(before, rel=1e-4)
    assert found.after.value == pytest.approx(after, rel=1e-4)


def test_perplexity_of_a_whole_module_is_replayed_from_tokens(tmp_path: Path) -> None:
    """The pass needs calibration text, so no part of the model will do."""
    module = layered_model(2)
    module.metadata["tokenizer"] = _tokenizer(tmp_path / "tokenizer.json")
    found = slmopt.bisect(
        module, [Harmless(), Calibrated()], "perplexity<=+0.1%", text=_WORDS, reproducer=tmp_path / "out"
    )
    assert found is not None and found.index == 1
    assert found.reproducer is not None and found.reproducer.fails, found.reproducer
    assert "tokenizer" not in slmopt.load(tmp_path / "out" / "before.slm").metadata
    told = json.loads((tmp_path / "out" / "tokens.json").read_text())
    assert sum(map(len, told["calibration"])) == 60


class Calibrated(Rounds):
    """Rounds coarsely, and needs a text for it."""

    name = "calibrated"
    calibrated = True

    def run(self, module: Module, context: Any) -> dict[str, int]:
        if context.calibration is None:
            raise ValueError("no text")
        return Rounds((0, 1)).run(module, context)


@pytest.mark.slow
@needs_stories
def test_the_trained_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of 36 matrices, some few in 4 bits cost 3% of perplexity; they are found, and none of them can be left out."""
    out = tmp_path / "out"
    arguments = ["--check", "perplexity<=+3%", "--text", str(TEXT), "--text-tokens", "256", "-o", str(out), "--json"]
    assert main(["bisect", str(MODEL), "-r", "w4", *arguments]) == 0
    found = json.loads(capsys.readouterr().out)["found"]
    assert found["pass"].startswith("quantize") and found["means"] == "rewrites"
    assert found["candidates"] == 36 and 1 <= len(found["names"]) < 12
    assert found["pipeline_runs"] == 1
    assert found["before"]["value"] * 1.03 < found["isolated"]["value"]
    assert found["reproducer"]["fails"] is True
    assert "cannot be measured on a part" in found["reproducer"]["why"]
