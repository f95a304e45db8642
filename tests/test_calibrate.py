"""Texts, documents of tokens, and perplexity by the interpreter."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from slmopt.calibrate import Calibration, from_documents, read_text, tokenize_documents
from slmopt.errors import InputError
from slmopt.evaluate import measure_perplexity
from slmopt.interpreter import forward
from tests.toy_model import toy_model


def tokenizer(path: Path) -> str:
    """A tokenizer of whitespace-separated words w0 ... w9."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    made = Tokenizer(models.WordLevel({f"w{index}": index for index in range(10)}, unk_token="w0"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made.save(str(path))
    return str(path)


def test_documents_begin_with_bos_and_end_at_the_context(tmp_path: Path) -> None:
    metadata = {"tokenizer": tokenizer(tmp_path / "t.json"), "bos_token_id": 1, "context": 4, "vocab": 10}
    found = tokenize_documents(metadata, " w2 w3 \n<|endoftext|>\n<|endoftext|>w1 w4 w5 w6 w7")
    assert found.documents == ((1, 2, 3), (1, 4, 5, 6)) and found.tokens == 7
    without = tokenize_documents({**metadata, "bos_token_id": None, "context": None}, "w2 w3 | w4", "|")
    assert without.documents == ((2, 3),)  # one token predicts nothing


def test_head_cuts_at_a_number_of_tokens() -> None:
    whole = Calibration(((1, 2, 3, 4), (5, 6, 7), (8, 9)))
    assert whole.head(100) == whole
    assert whole.head(6).documents == ((1, 2, 3, 4), (5, 6))
    assert whole.head(5).documents == ((1, 2, 3, 4),)
    assert whole.head(3).documents == ((1, 2, 3),)


def test_what_is_wrong_is_said(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"the text .*none\.txt cannot be read"):
        read_text(tmp_path / "none.txt")
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="cannot be read"):
        read_text(tmp_path / "binary")
    with pytest.raises(InputError, match="the model has no tokenizer"):
        tokenize_documents({"tokenizer": None}, "x")
    (tmp_path / "bad.json").write_text("{}")
    with pytest.raises(InputError, match="cannot be read as a tokenizer"):
        tokenize_documents({"tokenizer": str(tmp_path / "bad.json")}, "x")
    with pytest.raises(InputError, match="no token to predict"):
        from_documents({}, [[1], []])
    with pytest.raises(InputError, match="token 7 is out of range: the vocabulary has 7"):
        from_documents({"vocab": 7}, [[1, 7]])


def test_perplexity_is_exp_of_the_mean_over_all_documents(monkeypatch: pytest.MonkeyPatch) -> None:
    from slmopt import evaluate

    module = toy_model()
    documents = ((3, 1, 4, 1, 5), (9, 2), (6, 5, 3))
    total = 0.0
    for document in documents:
        probabilities = forward(module, torch.tensor([document]))[0].double().softmax(-1)
        total -= sum(math.log(float(probabilities[i, following])) for i, following in enumerate(document[1:]))
    shares: list[float] = []
    found = measure_perplexity(module, Calibration(documents), lambda what, share: shares.append(share))
    assert found == pytest.approx(math.exp(total / 7), rel=1e-6)
    assert shares == pytest.approx([1 / 3, 2 / 3, 1])
    monkeypatch.setattr(evaluate, "_LOGITS_AT_ONCE", 80)  # two rows at a time
    assert measure_perplexity(module, Calibration(documents)) == pytest.approx(found, rel=1e-12)


def test_perplexity_of_a_uniform_model_is_the_vocabulary() -> None:
    module = toy_model()
    graph = module.graph()
    zero = graph.add("constant", [], {"value": 0.0, "element": "f32"}).result
    graph.set_outputs([graph.add("mul", [graph.outputs[0], zero]).result])
    assert measure_perplexity(module, Calibration(((1, 2, 3),))) == pytest.approx(40)


def test_text_without_a_token_to_predict_is_told() -> None:
    with pytest.raises(InputError, match="the text has no tokens"):
        Calibration(())
    with pytest.raises(InputError, match="the text has no tokens"):
        Calibration(((1, 2, 3),)).head(1)
    with pytest.raises(InputError, match="no token to predict"):
        measure_perplexity(toy_model(), Calibration(((1,), (2,))))
