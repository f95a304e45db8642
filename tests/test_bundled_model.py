"""The bundled model is whole, small, and has visibly learned Python."""

import ast
import hashlib
import json
import math
import sysconfig
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from slmopt.models.pycode import train

FOLDER = Path(train.__file__).parent


@pytest.fixture(scope="module")
def loaded() -> tuple[Any, Any]:
    return train.load(FOLDER)


@pytest.fixture(scope="module")
def held_out() -> dict[str, Any]:
    record: dict[str, Any] = json.loads((FOLDER / "heldout.json").read_text(encoding="utf-8"))
    return record


def greedy(loaded: tuple[Any, Any], prompt: str, tokens: int = 48) -> str:
    model, tokenizer = loaded
    row = torch.tensor([tokenizer(prompt).input_ids])
    out = model.generate(row, max_new_tokens=tokens, do_sample=False)[0, row.shape[1] :]
    return str(tokenizer.decode(out, skip_special_tokens=True))


def test_everything_is_there_and_small() -> None:
    files = {path.name: path.stat().st_size for path in FOLDER.iterdir() if path.is_file()}
    assert {"config.json", "generation_config.json", "tokenizer_config.json", "README.md", "loss.csv"} <= files.keys()
    assert sum(files.values()) <= 6_000_000


def test_weights_are_float16_and_match_the_config(loaded: tuple[Any, Any]) -> None:
    from transformers import AutoModelForCausalLM

    with safe_open(FOLDER / "model.safetensors", framework="pt") as file:
        stored = {key: file.get_slice(key).get_dtype() for key in list(file.keys())}
    assert set(stored.values()) == {"F16"}
    assert "lm_head.weight" not in stored  # tied: stored once
    model, info = AutoModelForCausalLM.from_pretrained(FOLDER, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    assert model.get_input_embeddings().weight is model.get_output_embeddings().weight
    count = sum(p.numel() for p in model.parameters())
    assert 2_500_000 <= count <= 2_900_000
    assert count == json.loads((FOLDER / "training.json").read_text(encoding="utf-8"))["parameters"]
    assert all(bool(torch.isfinite(p).all()) for p in loaded[0].parameters())


def test_tokenizer_starts_with_begin_and_loses_nothing(loaded: tuple[Any, Any]) -> None:
    model, tokenizer = loaded
    for text in ("def f(x):\n\treturn  x\n\n\n", "naïve — 数 🐍\x00\r\n", "", " leading", '"""Doc."""\n'):
        ids = tokenizer(text).input_ids
        assert ids[0] == tokenizer.bos_token_id == model.config.bos_token_id
        assert max(ids) < model.config.vocab_size
        assert tokenizer.decode(ids[1:]) == text
    assert len(tokenizer) == model.config.vocab_size


def test_bits_are_the_loss_of_the_whole_text(loaded: tuple[Any, Any]) -> None:
    model, tokenizer = loaded
    text = "import os\n\n\ndef exists(path):\n    return os.path.exists(path)\n"
    ids = torch.tensor([tokenizer(text).input_ids])
    loss = float(model(input_ids=ids, labels=ids).loss.detach())
    assert train.bits_of(model, tokenizer, text) == pytest.approx(loss * (ids.shape[1] - 1) / math.log(2), rel=1e-4)


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("class Point:\n    def __init__(self, x, y):", "self."),
        ("class Parser:\n    def __init__(self, name, value):\n        self.name", " = name"),
        ("try:\n    import foo\n", "except"),
        ("for i in range", "("),
        ("if __name__", " == "),
        ("    def __len__(self):\n       ", "return"),
        ("        raise ValueError", "("),
    ],
)
def test_completes_an_idiom(loaded: tuple[Any, Any], prompt: str, expected: str) -> None:
    assert expected in greedy(loaded, prompt, tokens=24)


def parses(source: str) -> bool:
    try:
        ast.parse(source)
    except SyntaxError:
        return False
    return True


@pytest.mark.parametrize("prompt", ["class Point:\n    def __init__(self, x, y):", "def main():", "def read(path):"])
def test_completion_parses(loaded: tuple[Any, Any], prompt: str) -> None:
    """Cut after some whole line of the body, prompt and completion parse."""
    lines = (prompt + greedy(loaded, prompt)).split("\n")[:-1]
    longest = max(count for count in range(len(lines) + 1) if parses("\n".join(lines[:count])))
    assert longest >= prompt.count("\n") + 2


def test_held_out_record_is_of_these_weights_and_beats_the_compressors(held_out: dict[str, Any]) -> None:
    weights = hashlib.sha256((FOLDER / "model.safetensors").read_bytes()).hexdigest()
    assert held_out["weights_sha256"] == weights
    bits = held_out["bits_per_byte"]
    assert bits["model"] < 0.7 * bits["xz -9e"] < 0.7 * bits["gzip -9"]
    row = f"| {bits['model']} | {bits['xz -9e']} | {bits['gzip -9']} |"
    assert row in (FOLDER / "README.md").read_text(encoding="utf-8")
    total = sum(file["bytes"] * file["bits_per_byte"] for file in held_out["files"].values())
    assert total / held_out["held_out_bytes"] == pytest.approx(bits["model"], abs=2e-4)
    assert all(train.is_held_out(name) for name in held_out["files"])


@pytest.mark.parametrize("name", ["py_compile.py", "pty.py", "operator.py"])
def test_held_out_bits_reproduce(loaded: tuple[Any, Any], held_out: dict[str, Any], name: str) -> None:
    """Exactly where this Python has the recorded text; within a quarter where the file was edited since."""
    text = (Path(sysconfig.get_path("stdlib")) / name).read_text(encoding="utf-8").replace("\r\n", "\n")
    found = train.bits_of(*loaded, text) / len(text.encode())
    recorded = held_out["files"][name]
    same = hashlib.sha256(text.encode()).hexdigest() == recorded["sha256"]
    assert found == pytest.approx(recorded["bits_per_byte"], rel=1e-3 if same else 0.25)


def test_split_and_table_rule() -> None:
    training, kept_back = train.read_corpus()
    assert not set(training) & set(kept_back)
    assert "argparse.py" in training and "operator.py" in kept_back
    for name in ("test/test_ast.py", "encodings/cp1252.py", "pydoc_data/topics.py"):
        assert name not in training and name not in kept_back
    assert 0.02 < sum(map(len, kept_back.values())) / sum(map(len, training.values())) < 0.09


def test_rate_warms_up_and_ends_at_zero() -> None:
    rates = [train.rate_at(i / 1000, 0.02) for i in range(1001)]
    assert max(rates) == pytest.approx(1.0) and rates[0] > 0 and rates[-1] == pytest.approx(0.0, abs=1e-9)
    assert rates[20:] == sorted(rates[20:], reverse=True) and rates[:20] == sorted(rates[:20])


def test_windows_depend_on_seed_and_step_alone(loaded: tuple[Any, Any]) -> None:
    texts = [f"def f{i}(x):\n    return x + {i}\n\n\n" for i in range(200)]
    tokenizer = train.train_tokenizer(texts, 300)
    first, again = train.Windows(texts, tokenizer, 7), train.Windows(texts, tokenizer, 7)
    assert (first.draw(3, 4, 32) == again.draw(3, 4, 32)).all()
    assert (first.draw(3, 4, 32) != first.draw(4, 4, 32)).any()
    drawn = first.draw(0, 64, 32)
    assert drawn.shape == (64, 33) and (drawn[:, 0] == tokenizer.token_to_id(train.BEGIN)).all()
    at_line = [tokenizer.decode(row[1:4].tolist()).startswith("def") for row in drawn]
    assert sum(at_line) >= 16  # half the windows start at a line without indentation
