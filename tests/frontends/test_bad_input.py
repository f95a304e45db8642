"""Directories that cannot be read: each refused with a message that says what is wrong and what to do."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from slmopt.errors import InputError, SlmError, UnsupportedError
from slmopt.frontends import huggingface
from tests.architectures import save_tiny

WEIGHTS, CONFIG = "model.safetensors", "config.json"


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model directory, whole (`model`) and in shards (`shards`)."""
    path = tmp_path_factory.mktemp("sound")
    save_tiny(path / "model", "llama").save_pretrained(path / "shards", max_shard_size="40KB")
    return path


@pytest.fixture
def directory(sound: Path, tmp_path: Path) -> Path:
    """A sound model directory, to be spoilt."""
    return Path(shutil.copytree(sound / "model", tmp_path / "model"))


def refused(directory: Path, *said: str, error: type[SlmError] = InputError) -> str:
    """The message, which says all of `said`."""
    with pytest.raises(error) as caught:
        huggingface.load(directory)
    message = str(caught.value)
    for part in said:
        assert part in message, message
    assert caught.value.exit_code == (2 if error is InputError else 1)
    return message


def change_config(directory: Path, **changes: Any) -> None:
    config = {**json.loads((directory / CONFIG).read_text()), **changes}
    (directory / CONFIG).write_text(json.dumps({name: value for name, value in config.items() if value is not None}))


def change_weights(directory: Path, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> None:
    save_file(change(load_file(directory / WEIGHTS)), directory / WEIGHTS)


def test_missing_directory(tmp_path: Path) -> None:
    refused(tmp_path / "nowhere", "nowhere is no directory", "config.json")


def test_a_name_on_the_hub_is_a_missing_directory() -> None:
    refused(Path("some-organisation/some-model"), "is no directory")


def test_no_config(directory: Path) -> None:
    (directory / CONFIG).unlink()
    refused(directory, "has no config.json")


def test_config_that_is_no_json(directory: Path) -> None:
    (directory / CONFIG).write_text("{'single': quotes}")
    refused(directory, CONFIG, "no JSON")


def test_config_that_is_a_list(directory: Path) -> None:
    (directory / CONFIG).write_text("[1]")
    refused(directory, CONFIG, "no JSON object")


def test_unknown_model_type_suggests_the_nearest(directory: Path) -> None:
    change_config(directory, model_type="lama")
    refused(directory, "no model type 'lama'", "did you mean")


def test_no_model_type(directory: Path) -> None:
    change_config(directory, model_type=None)
    refused(directory, "no model type None")


def test_remote_code_is_never_run(directory: Path) -> None:
    change_config(directory, model_type="my_own", auto_map={"AutoModelForCausalLM": "modeling.Mine"})
    (directory / "modeling.py").write_text(f"open({str(directory / 'ran')!r}, 'w')\nclass Mine: pass\n")
    refused(directory, "trust_remote_code", "never runs code", "my_own")
    assert not (directory / "ran").exists()


def test_known_type_with_remote_code_uses_what_transformers_has(directory: Path) -> None:
    change_config(directory, auto_map={"AutoModelForCausalLM": "modeling.Mine", "AutoConfig": "modeling.Config"})
    (directory / "modeling.py").write_text(f"open({str(directory / 'ran')!r}, 'w')\n")
    huggingface.load(directory)
    assert not (directory / "ran").exists()


def test_config_that_describes_no_model(directory: Path) -> None:
    change_config(directory, hidden_act="no_such_activation")
    refused(directory, CONFIG, "no_such_activation")


def test_config_with_a_wrong_type(directory: Path) -> None:
    change_config(directory, hidden_size="wide")
    refused(directory, CONFIG)


def test_model_that_is_no_causal_language_model(directory: Path) -> None:
    (directory / CONFIG).write_text(json.dumps({"model_type": "vit"}))
    refused(directory, CONFIG, "describes no model")


def test_quantized_checkpoint(directory: Path) -> None:
    change_config(directory, quantization_config={"quant_method": "gptq", "bits": 4})
    refused(directory, "quantized by 'gptq'", "f32, f16 or bf16")


# --- weights -----------------------------------------------------------------------------------------------------
def test_no_weights(directory: Path) -> None:
    (directory / WEIGHTS).unlink()
    refused(directory, "has no weights", WEIGHTS)


def test_weights_under_another_name(directory: Path) -> None:
    (directory / WEIGHTS).rename(directory / "consolidated.safetensors")
    refused(directory, "has no weights", "it has consolidated.safetensors")


class _Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return (pytest.fail, ("the pickle was opened",))


def test_pickles_are_never_opened(directory: Path) -> None:
    (directory / WEIGHTS).unlink()
    (directory / "pytorch_model.bin").write_bytes(pickle.dumps(_Bomb()))
    refused(directory, "pickle only", "pytorch_model.bin", "safetensors")


@pytest.mark.parametrize("kept", [0, 4, 8, 100, -1, -1000])
def test_truncated_weights(directory: Path, kept: int) -> None:
    data = (directory / WEIGHTS).read_bytes()
    (directory / WEIGHTS).write_bytes(data[:kept])
    refused(directory, WEIGHTS, "truncated")


def test_bytes_after_the_weights(directory: Path) -> None:
    with (directory / WEIGHTS).open("ab") as file:
        file.write(b"more")
    refused(directory, WEIGHTS, "corrupt", "4 bytes follow")


def rewrite_header(directory: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    data = (directory / WEIGHTS).read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.dumps(change(json.loads(data[8 : 8 + length]))).encode()
    (directory / WEIGHTS).write_bytes(len(header).to_bytes(8, "little") + header + data[8 + length :])


NORM = "model.norm.weight"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda header: [header], "no table"),
        (lambda header: {**header, NORM: {"dtype": "F32"}}, NORM),
        (lambda header: {**header, NORM: {**header[NORM], "shape": [-48]}}, NORM),
        (lambda header: {**header, NORM: {**header[NORM], "shape": [47]}}, "does not fill"),
        (lambda header: {**header, NORM: {**header[NORM], "data_offsets": [8, 4]}}, "does not fill"),
        (lambda header: {**header, NORM: {**header[NORM], "data_offsets": "all"}}, NORM),
        (lambda header: {**header, NORM: {**header[NORM], "data_offsets": [10**9, 10**9 + 192]}}, "truncated"),
        (lambda header: {**header, NORM: {**header[NORM], "dtype": "F8_E4M3"}}, "stored as F8_E4M3"),
    ],
)
def test_corrupt_header(directory: Path, change: Callable[[dict[str, Any]], Any], said: str) -> None:
    rewrite_header(directory, change)
    refused(directory, WEIGHTS, said)


def test_header_that_is_no_json(directory: Path) -> None:
    data = bytearray((directory / WEIGHTS).read_bytes())
    data[8:12] = b"\xff\xfe{{"
    (directory / WEIGHTS).write_bytes(data)
    refused(directory, WEIGHTS, "corrupt", "no JSON")


def test_shape_that_disagrees_with_the_config(directory: Path) -> None:
    change_config(directory, intermediate_size=80)
    refused(directory, "layers.0.mlp", "has shape", "76", "80", CONFIG)


def test_missing_weights(directory: Path) -> None:
    change_weights(directory, lambda tensors: {name: t for name, t in tensors.items() if "layers.1.mlp" not in name})
    refused(directory, "lacks weights", "model.layers.1.mlp.down_proj.weight", "incomplete")


def test_unexpected_weights(directory: Path) -> None:
    change_weights(directory, lambda tensors: {**tensors, "model.vision.weight": torch.zeros(3)})
    refused(directory, "does not have", "model.vision.weight")


def test_config_with_fewer_layers_than_the_weights(directory: Path) -> None:
    change_config(directory, num_hidden_layers=1)
    message = refused(directory, "does not have", "layers.1", "more")
    assert len(message) < 700


def test_weights_cut_off_after_loading(directory: Path) -> None:
    module = huggingface.load(directory)
    (directory / WEIGHTS).write_bytes((directory / WEIGHTS).read_bytes()[:5000])
    with pytest.raises(InputError, match="shorter"):
        for key in module.weights:
            module.weights.load(key)


# --- shards ------------------------------------------------------------------------------------------------------
@pytest.fixture
def shards(sound: Path, tmp_path: Path) -> Path:
    """A sound model directory in shards, to be spoilt."""
    return Path(shutil.copytree(sound / "shards", tmp_path / "shards"))


INDEX = "model.safetensors.index.json"


def test_missing_shard(shards: Path) -> None:
    gone = sorted(shards.glob("*.safetensors"))[1]
    gone.unlink()
    refused(shards, INDEX, gone.name, "missing")


def change_map(directory: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    index = json.loads((directory / INDEX).read_text())
    (directory / INDEX).write_text(json.dumps({**index, "weight_map": change(index["weight_map"])}))


def test_index_that_places_a_tensor_in_the_wrong_shard(shards: Path) -> None:
    first, last = (path.name for path in sorted(shards.glob("*.safetensors"))[:: len(list(shards.glob("*.s*rs"))) - 1])
    change_map(shards, lambda places: {name: last if place == first else place for name, place in places.items()})
    refused(shards, INDEX, last, "does not hold it")


@pytest.mark.parametrize("broken", [None, ["a"], {"a": 1}])
def test_index_without_a_map(shards: Path, broken: Any) -> None:
    change_map(shards, lambda places: broken)
    refused(shards, INDEX, "weight_map")


def test_index_that_leaves_the_directory(shards: Path) -> None:
    change_map(shards, lambda places: dict.fromkeys(places, "../model/model.safetensors"))
    refused(shards, INDEX, "outside the directory")


# --- what the model asks for -------------------------------------------------------------------------------------
def test_unsupported_model_says_what_it_needs(tmp_path: Path) -> None:
    """A mixture of experts, whose stored experts transformers merges: the tensor and where it should go are named."""
    save_tiny(tmp_path, "llama")
    from transformers import AutoConfig, AutoModelForCausalLM

    sizes = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "vocab_size": 97,
    }
    config = AutoConfig.for_model("mixtral", **sizes, num_key_value_heads=2, num_local_experts=2)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    refused(tmp_path, "layers.0", "merged or split into", "experts.gate_up_proj", error=UnsupportedError)
