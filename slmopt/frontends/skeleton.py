"""The model of a Hugging Face directory as modules without weights: parameters on the meta device, buffers computed."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from slmopt.errors import InputError, SlmError
from slmopt.frontends.capture import IMPLEMENTATION
from slmopt.frontends.safetensors_files import read_json

__all__ = ["build_skeleton", "detach_buffers", "read_config"]


def read_config(directory: Path) -> Any:
    """The transformers config of a directory. Code in the directory is never run, the network never asked."""
    from transformers import CONFIG_MAPPING, AutoConfig

    if not directory.is_dir():
        raise InputError(f"{directory} is no directory: expected a model directory (config.json, model.safetensors)")
    if not (directory / "config.json").is_file():
        raise InputError(f"{directory} has no config.json: expected a Hugging Face model directory")
    raw = read_json(directory / "config.json")
    kind = raw.get("model_type")
    if kind not in CONFIG_MAPPING:
        if "auto_map" in raw:
            raise InputError(
                f"{directory} wants its own Python code run (trust_remote_code: model type {kind!r}, auto_map"
                f" {raw['auto_map']}). slmopt never runs code from a model directory; it takes models that"
                " transformers knows"
            )
        near = difflib.get_close_matches(str(kind), list(CONFIG_MAPPING), 1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise InputError(f"{directory / 'config.json'}: transformers knows no model type {kind!r}{hint}")
    if raw.get("quantization_config"):
        method = raw["quantization_config"].get("quant_method", "unknown")
        raise InputError(
            f"{directory} holds weights quantized by {method!r}; slmopt starts from plain f32, f16 or bf16"
        )
    try:
        return AutoConfig.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
    except Exception as error:
        raise InputError(f"{directory / 'config.json'} is no valid config of a {kind}: {error}") from error


def build_skeleton(config: Any, directory: Path) -> Any:
    """The causal language model of a config, in float32 and ready to be traced; buffers are real tensors."""
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        with _parameters_on_meta():
            model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation=IMPLEMENTATION)
    except SlmError:
        raise
    except Exception as error:
        raise InputError(f"{directory / 'config.json'} describes no model that can be built: {error}") from error
    finally:
        logging.set_verbosity(verbosity)
    return model.eval()


@contextmanager
def _parameters_on_meta() -> Iterator[None]:
    """Every parameter goes to the meta device as soon as a module registers it: none is ever filled."""
    register = torch.nn.Module.register_parameter

    def register_on_meta(module: torch.nn.Module, name: str, parameter: torch.nn.Parameter | None) -> None:
        register(module, name, parameter)
        if parameter is not None and not parameter.is_meta:
            moved = torch.nn.Parameter(parameter.to("meta"), requires_grad=False)
            moved.__dict__.update(parameter.__dict__)
            module._parameters[name] = moved

    torch.nn.Module.register_parameter = register_on_meta  # type: ignore[assignment, method-assign]
    try:
        yield
    finally:
        torch.nn.Module.register_parameter = register  # type: ignore[method-assign]


def detach_buffers(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The buffers' values by name; in the model they go to the meta device, where all of it is traced."""
    values: dict[str, torch.Tensor] = {}
    for path, module in model.named_modules():
        for name, buffer in module._buffers.items():
            if buffer is not None and not buffer.is_meta:
                values[f"{path}.{name}" if path else name] = buffer.detach()
                module._buffers[name] = buffer.to("meta")
    return values
