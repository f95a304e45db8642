"""A Hugging Face model directory to a Module: config, weights by name, tokenizer; traced without loading a weight."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from slmopt.cache import keep
from slmopt.errors import InputError
from slmopt.frontends.safetensors_files import StoredTensor, read_checkpoint, read_json
from slmopt.frontends.traces import SeenTensors, file_source, pack_trace, trace_inputs, unpack_trace
from slmopt.ir.graph import Module
from slmopt.ir.weights import WeightSource, WeightStore

__all__ = ["load"]


def load(path: str | Path) -> Module:
    """Trace the causal language model in a directory into @forward(ids: i64[b, s]) -> logits f32[b, s, vocab].

    Computation is float32 whatever the weights are stored as; they are read from the files when first needed.
    Never runs code from the directory, never opens a pickle, never asks the network. Raises InputError where the
    directory cannot be read and UnsupportedError where the model asks for something that has no form in the IR.

    A trace is kept (`slmopt.cache`) and used again for a directory of the same configuration and tensor shapes.
    """
    directory = Path(path)
    _check_directory(directory)
    stored = read_checkpoint(directory)
    seen = SeenTensors(stored)
    trace = keep("trace", trace_inputs(directory, stored), lambda: _trace(directory, seen), seen.unchanged)
    module = unpack_trace(trace, stored)
    tokenizer = directory / "tokenizer.json"
    module.name = module.metadata["name"] = _module_name(directory)
    module.metadata["tokenizer"] = str(tokenizer) if tokenizer.is_file() else None
    return module


def _check_directory(directory: Path) -> None:
    if not directory.is_dir():
        raise InputError(f"{directory} is no directory: expected a model directory (config.json, model.safetensors)")
    if not (directory / "config.json").is_file():
        raise InputError(f"{directory} has no config.json: expected a Hugging Face model directory")


def _trace(directory: Path, seen: SeenTensors) -> bytes:
    """What `unpack_trace` makes a module of."""
    from slmopt.frontends.capture import captured_attention
    from slmopt.frontends.checkpoint_names import match_names, untie_unequal
    from slmopt.frontends.convert import convert
    from slmopt.frontends.export import WRAPPER, export_forward, sequence_limit
    from slmopt.frontends.parameters import canonical_names, weights_on_demand
    from slmopt.frontends.skeleton import build_skeleton, put_on_cpu, read_config

    stored = seen.tensors
    config = read_config(directory)
    with captured_attention():
        model = build_skeleton(config, directory)
        untie_unequal(model, stored)
        names = match_names(model, stored, directory)
        put_on_cpu(model)
        program = export_forward(model, str(directory), "cpu", use_cache=False)
    store = WeightStore()
    computed = {name.removeprefix(f"{WRAPPER}."): value for name, value in program.constants.items()}
    sources = _sources(names, {**dict(model.named_buffers()), **computed})
    weight_of = weights_on_demand(store, sources, canonical_names(model), WRAPPER)
    graph = convert(program, weight_of, store, wrapper=WRAPPER, strip=model.base_model_prefix)
    metadata = _metadata(directory, config, graph.outputs[0].shape[-1], stored)
    limits = [limit for limit in (metadata["context"], sequence_limit(program)) if limit is not None]
    metadata["context"] = min(limits, default=None)
    return pack_trace(Module(metadata["name"], [graph], store, metadata), names, seen)


def _sources(stored: Mapping[str, StoredTensor], computed: Mapping[str, Any]) -> dict[str, WeightSource]:
    """Where each named tensor comes from: a file, or the config."""
    from slmopt.frontends.parameters import held

    sources = {name: held(value, "computed from the config") for name, value in computed.items()}
    return sources | {name: file_source(tensor) for name, tensor in stored.items()}


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
    """Ids that begin and end a text: generation_config.json says, else config.json.

    No id begins a text whose tokenizer is told not to add one: many configs name a token that training never put there.
    """
    generation = directory / "generation_config.json"
    said = read_json(generation) if generation.is_file() else {}
    begin, end = (said.get(f"{which}_token_id") for which in ("bos", "eos"))
    begin = getattr(config, "bos_token_id", None) if begin is None else begin
    end = getattr(config, "eos_token_id", None) if end is None else end
    options = directory / "tokenizer_config.json"
    told = read_json(options) if options.is_file() else {}
    if told.get("add_bos_token") is False or told.get("bos_token", "") is None:
        begin = None
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
