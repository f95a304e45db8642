"""Metrics by hand-counted examples, on modules and compiled models alike."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

import slmopt
from slmopt import api
from slmopt.calibrate import tokenize_documents
from slmopt.cli import main
from slmopt.errors import InputError
from slmopt.evaluate import measure_perplexity, open_subject
from slmopt.ir.graph import Module
from slmopt.ir.text import parse_module
from slmopt.metrics import CompiledSubject, Document, ModuleSubject, Prediction, Subject, read_documents, subject
from slmopt.metrics.accuracy import Accuracy
from slmopt.metrics.likelihood import BitsPerByte, Perplexity
from slmopt.plugins import builtin, discovery
from slmopt.plugins.hooks import slmopt_plugin
from tests.runtime.stand_in import write_stand_in
from tests.toy_model import TEXT, toy_model

STORIES = "the cat sat<|endoftext|> \n <|endoftext|>on the mat, the cat<|endoftext|>mat"
WORDS = ["<s>", "the", "cat", "sat", "on", "mat", ",", "é"]


class Fixed:
    """A model of four tokens that says the same whatever it read."""

    name, vocab, context = "fixed", 4, 8
    probabilities = (0.5, 0.25, 0.125, 0.125)

    def predict(self, ids: Sequence[int]) -> Iterator[Prediction]:
        for target in ids[1:]:
            yield Prediction(np.log([self.probabilities]).astype(np.float32), np.asarray([target]))


class Broken:
    """A metric that fails."""

    name, summary, unit, lower_is_better = "broken", "", "", True

    def measure(self, subject: Subject, documents: Sequence[Document]) -> float:
        raise ZeroDivisionError("nothing there")


@pytest.fixture
def tokenizer(tmp_path: Path) -> Path:
    """Words and commas, ids as in WORDS."""
    made = Tokenizer(models.WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token="<s>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.save(str(tmp_path / "tokenizer.json"))
    return tmp_path / "tokenizer.json"


@pytest.fixture
def module(tokenizer: Path) -> Module:
    """The toy model with a tokenizer."""
    found = toy_model()
    found.metadata.update(tokenizer=str(tokenizer), bos_token_id=0)
    return found


def test_the_numbers_are_those_of_pencil_and_paper() -> None:
    documents = (Document((3, 0, 1), 2), Document((2, 2), 6))  # log2 p: -1 and -2, then -3
    assert Perplexity().measure(Fixed(), documents) == pytest.approx(2 ** (6 / 3), rel=1e-7)
    assert BitsPerByte().measure(Fixed(), documents) == pytest.approx(6 / 8, rel=1e-7)
    assert Accuracy().measure(Fixed(), documents) == pytest.approx(100 / 3)


def test_log_probabilities_add_up_and_agree() -> None:
    logits = np.random.default_rng(0).normal(scale=30, size=(5, 7)).astype(np.float32) + 1000
    part = Prediction(logits, np.arange(5))
    assert np.exp(part.log_probabilities()).sum(axis=1) == pytest.approx(1, rel=1e-12)
    assert part.target_log_probabilities() == pytest.approx(part.log_probabilities()[np.arange(5), np.arange(5)])


def test_a_model_that_gives_no_number_is_infinitely_perplexed() -> None:
    class Nothing(Fixed):
        probabilities = (math.nan,) * 4

    assert Perplexity().measure(Nothing(), [Document((1, 1), 1)]) == math.inf


def test_documents_begin_with_bos_are_cut_at_the_context_and_know_their_bytes(module: Module) -> None:
    documents = read_documents(ModuleSubject(module), STORIES)
    assert documents == (
        Document((0, 1, 2, 3), 11), Document((0, 4, 1, 5, 6, 1, 2), 19), Document((0, 5), 3),
    )  # fmt: skip
    module.metadata["context"] = 4
    assert read_documents(ModuleSubject(module), STORIES)[1] == Document((0, 4, 1, 5), len("on the mat"))
    module.metadata["bos_token_id"] = None
    shorter = read_documents(ModuleSubject(module), STORIES)
    assert shorter == (Document((1, 2, 3), len(" cat sat")), Document((4, 1, 5, 6), len(" the mat,")))
    assert read_documents(ModuleSubject(module), "é cat", "|") == (Document((7, 2), len(" cat")),)


def test_what_is_no_text_to_measure_is_refused(module: Module) -> None:
    with pytest.raises(InputError, match="no token to predict"):
        read_documents(ModuleSubject(module), " <|endoftext|> ")
    with pytest.raises(InputError, match="separator of documents must not be empty"):
        read_documents(ModuleSubject(module), STORIES, "")
    with pytest.raises(InputError, match="token 40 at index 1 is out of range: the vocabulary has 40"):
        next(ModuleSubject(module).predict([3, 40]))
    with pytest.raises(InputError, match="has no tokenizer"):
        slmopt.api.measure(toy_model(), STORIES)
    with pytest.raises(InputError, match=r"@toy has no weights .*IR text alone cannot be measured"):
        api.measure(parse_module(TEXT), STORIES)


def test_perplexity_of_a_module_is_that_of_the_pipeline(module: Module) -> None:
    expected = measure_perplexity(module, tokenize_documents(module.metadata, STORIES))
    assert api.measure(module, STORIES) == {"perplexity": pytest.approx(expected, rel=1e-6)}


def test_parts_of_predictions_change_nothing(module: Module, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ["perplexity", "accuracy", "bits-per-byte"]
    whole = api.measure(module, STORIES, names)
    monkeypatch.setattr(subject, "_LOGITS_AT_ONCE", 80)  # two rows at a time
    assert api.measure(module, STORIES, names) == pytest.approx(whole, rel=1e-12)
    assert list(whole) == names


def test_a_compiled_model_is_measured_by_what_its_library_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_stand_in(tmp_path / "model")
    monkeypatch.setattr(subject, "_LOGITS_AT_ONCE", 512)
    with slmopt.open(tmp_path / "model") as model:
        text = "once upon a time there was a hen<|endoftext|>and so on"
        found = api.measure(model, text, ["perplexity", "accuracy"])
        assert found["perplexity"] == pytest.approx(model.perplexity(text).perplexity, rel=1e-9)
        documents = read_documents(CompiledSubject(model), text)
        hits = [
            int(model.logits(document.ids[: index + 1])[-1].argmax() == target)
            for document in documents for index, target in enumerate(document.ids[1:])
        ]  # fmt: skip
        assert found["accuracy"] == pytest.approx(100 * sum(hits) / len(hits))
    with open_subject(tmp_path / "model") as opened:
        assert isinstance(opened, CompiledSubject)


def test_eval_prints_the_metrics_that_are_named(
    tmp_path: Path, module: Module, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = tmp_path / "text"
    text.write_text(STORIES)
    write_stand_in(tmp_path / "model")
    command = ["eval", str(tmp_path / "model"), "--text", str(text), "--metric", "accuracy", "--metric", "perplexity"]
    assert main([*command, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [row["name"] for row in found["metrics"]] == ["accuracy", "perplexity"]
    accuracy, perplexity = found["metrics"]
    assert accuracy["unit"] == "%" and not accuracy["lower_is_better"] and accuracy["owner"] == "slmopt"
    assert main(command) == 0
    assert capsys.readouterr().out == f"accuracy {accuracy['value']:.4f} %\nperplexity {perplexity['value']:.4f}\n"
    assert main([*command, "--at-most", str(perplexity["value"] / 2)]) == 1
    assert "is above" in capsys.readouterr().err
    assert main([*command[:-2], "--at-most", "3"]) == 2
    assert "--at-most limits the perplexity, which is not measured" in capsys.readouterr().err
    assert main([*command, "--metric", "acuracy"]) == 2
    assert "unknown metric 'acuracy'; did you mean 'accuracy'?" in capsys.readouterr().err
    monkeypatch.setattr(api, "load", lambda source: module)
    assert main(["eval", "some/directory", "--text", str(text), "--json"]) == 0
    found, expected = json.loads(capsys.readouterr().out), api.measure(module, STORIES, ["perplexity", "bits-per-byte"])
    assert found["perplexity"] == pytest.approx(expected["perplexity"]) and found["tokens"] == 10
    assert found["bits_per_byte"] == pytest.approx(expected["bits-per-byte"])
    assert found["nats"] == pytest.approx(10 * math.log(found["perplexity"]))


def test_a_metric_that_fails_is_named_with_its_owner(monkeypatch: pytest.MonkeyPatch, module: Module) -> None:
    places = {"broken": f"{__name__}:Broken", "other": f"{__name__}:Broken", "none": f"{__name__}:WORDS"}
    mine = SimpleNamespace(slmopt_metrics=slmopt_plugin(lambda: places))
    known = discovery.Registry([("slmopt", builtin), ("mine", mine)])
    monkeypatch.setattr(discovery, "registry", lambda: known)
    message = "metric 'broken', offered by mine, failed: ZeroDivisionError: nothing there"
    with pytest.raises(InputError, match=message):
        api.measure(module, STORIES, ["broken"])
    with pytest.raises(InputError, match=r"metric 'other', offered by mine: .* makes no Metric with name = 'other'"):
        api.measure(module, STORIES, ["other"])
    with pytest.raises(InputError, match=r"metric 'none', offered by mine: .* cannot be made"):
        api.measure(module, STORIES, ["none"])


def test_every_built_in_metric_describes_itself() -> None:
    known = discovery.registry()
    for name in known.metrics:
        found: Any = known.find_metric(name)
        assert found.summary and isinstance(found.unit, str) and isinstance(found.lower_is_better, bool)
