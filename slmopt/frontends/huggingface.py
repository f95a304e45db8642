"""A Hugging Face model directory to a Module: config, weights by name, tokenizer; traced without loading a weight."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from slmopt.errors import InputError
from slmopt.frontends.safetensors_files import StoredTensor, read_checkpoint, read_json
from slmopt.ir.graph import Module, Weight
from slmopt.ir.types import DType, TensorType
from slmopt.ir.weights import WeightSource, WeightStore

__all__ = ["load"]


def load(path: str | Path) -> Module:
    """Trace the causal language model in a directory into @forward(ids: i64[b, s]) -> logits f32[b, s, vocab].

    Computation is float32 whatever the weights are stored as; they are read from the files when first needed.
    Never runs code from the directory, never opens a pickle, never asks the network. Raises InputError where the
    directory cannot be read and UnsupportedError where the model asks for something that has no form in the IR.
    """
    from slmopt.frontends.capture import captured_attention
    from slmopt.frontends.checkpoint_names import match_names, untie_unequal
    from slmopt.frontends.convert import convert
    from slmopt.frontends.export import WRAPPER, export_forward
    from slmopt.frontends.skeleton import build_skeleton, detach_buffers, read_config

    directory = Path(path)
    config = read_config(directory)
    stored = read_checkpoint(directory)
    with captured_attention():
        model = build_skeleton(config, directory)
        untie_unequal(model, stored)
        names = match_names(model, stored, directory)
        buffers = detach_buffers(model)
        program = export_forward(model, str(directory), "meta", use_cache=False)
    store = WeightStore()
    constants = {name.removeprefix(f"{WRAPPER}."): value for name, value in program.constants.items()}
    weight_of = _weights(store, names, {**constants, **buffers}, _canonical_names(model))
    graph = convert(program, weight_of, wrapper=WRAPPER, strip=model.base_model_prefix)
    metadata = _metadata(directory, config, graph.outputs[0].shape[-1], stored)
    return Module(metadata["name"], [graph], store, metadata)


def _canonical_names(model: Any) -> dict[str, str]:
    """Every parameter name to the first name of the same parameter: tied weights have one key."""
    first: dict[int, str] = {}
    pairs = model.named_parameters(remove_duplicate=False)
    return {name: first.setdefault(id(parameter), name) for name, parameter in pairs}


def _weights(
    store: WeightStore, stored: Mapping[str, StoredTensor], computed: Mapping[str, Any], canonical: Mapping[str, str]
) -> Callable[[str, TensorType], Weight]:
    """Gives the weight of a traced parameter, buffer or constant, and puts it into the store on first use."""
    from slmopt.frontends.export import WRAPPER

    def weight_of(name: str, type: TensorType) -> Weight:
        key = name.removeprefix(f"{WRAPPER}.")
        key = canonical.get(key, key)
        if key not in store and key in stored:
            tensor = stored[key]
            element = DType.f32 if tensor.element.is_float else tensor.element
            source = WeightSource(TensorType(element, tensor.shape), f"file {tensor.file.name}", tensor.load_float)
            store.add(key, source)
        elif key not in store:
            if key not in computed or computed[key].is_meta:
                raise InputError(f"{key} is neither stored in the model's files nor computed from its config")
            store.add_tensor(key, computed[key], "computed from the config")
        return Weight(key, type)

    return weight_of


def _module_name(directory: Path) -> str:
    name = directory.resolve().name
    return "".join(c if c.isalnum() or c in "_-." else "_" for c in name) or "model"


def _metadata(directory: Path, config: Any, vocabulary: Any, stored: Mapping[str, StoredTensor]) -> dict[str, Any]:
    text = config.get_text_config()
    begin, ends = _special_tokens(directory, text)
    tokenizer = directory / "tokenizer.json"
    return {
        "name": _module_name(directory),
        "vocab": vocabulary,
        "context": _whole_number(getattr(text, "max_position_embeddings", None)),
        "bos_token_id": begin,
        "eos_token_ids": ends,
        "tokenizer": str(tokenizer) if tokenizer.is_file() else None,
        "batch": "b",
        "sequence": "s",
        "source": _digest(directory, stored),
    }


def _special_tokens(directory: Path, config: Any) -> tuple[int | None, list[int]]:
    """Ids that begin and end a text: generation_config.json says, else config.json."""
    generation = directory / "generation_config.json"
    said = read_json(generation) if generation.is_file() else {}
    begin, end = (said.get(f"{which}_token_id") for which in ("bos", "eos"))
    begin = getattr(config, "bos_token_id", None) if begin is None else begin
    end = getattr(config, "eos_token_id", None) if end is None else end
    ends = end if isinstance(end, list) else [end]
    return _whole_number(begin), [number for number in map(_whole_number, ends) if number is not None]


def _whole_number(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _digest(directory: Path, stored: Mapping[str, StoredTensor]) -> str:
    """A hash of the config and of what is stored where: changes when the source does in form."""
    digest = hashlib.sha256((directory / "config.json").read_bytes())
    for name, tensor in sorted(stored.items()):
        digest.update(f"{name} {tensor.element} {tensor.shape}\n".encode())
    return digest.hexdigest()
