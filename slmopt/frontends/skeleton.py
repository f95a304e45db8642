"""The model of a Hugging Face directory as modules without weights: parameters are empty, buffers computed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from slmopt.errors import InputError, SlmError, nearest
from slmopt.frontends.capture import IMPLEMENTATION, OWN_ATTENTION
from slmopt.frontends.safetensors_files import read_json

__all__ = ["build_skeleton", "put_on_cpu", "read_config"]


def read_config(directory: Path) -> Any:
    """The transformers config of a directory. Code in the directory is never run, the network never asked."""
    from transformers import CONFIG_MAPPING, AutoConfig

    raw = read_json(directory / "config.json")
    kind = raw.get("model_type")
    if kind not in CONFIG_MAPPING:
        if "auto_map" in raw:
            raise InputError(
                f"{directory} wants its own Python code run (trust_remote_code: model type {kind!r}, auto_map"
                f" {raw['auto_map']}). slmopt never runs code from a model directory; it takes models that"
                " transformers knows"
            )
        hint = nearest(str(kind), CONFIG_MAPPING)
        raise InputError(f"{directory / 'config.json'}: transformers knows no model type {kind!r}{hint}")
    if raw.get("quantization_config"):
        method = raw["quantization_config"].get("quant_method", "unknown")
        raise InputError(
            f"{directory} holds weights quantized by {method!r}; slmopt starts from plain f32, f16 or bf16"
        )
    try:
        with _quiet():
            return AutoConfig.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
    except Exception as error:
        raise InputError(f"{directory / 'config.json'} is no valid config of a {kind}: {error}") from error


def build_skeleton(config: Any, directory: Path) -> Any:
    """The causal language model of a config, in float32 and ready to be traced; buffers are real tensors."""
    try:
        with _quiet(), _parameters_on_meta():
            try:
                return _model_of(config, IMPLEMENTATION)
            except KeyError as error:  # the model looks its attention up in a table of its own
                if error.args != (IMPLEMENTATION,):
                    raise
                return _model_of(config, OWN_ATTENTION)
    except SlmError:
        raise
    except Exception as error:
        raise InputError(f"{directory / 'config.json'} describes no model that can be built: {error}") from error


def _model_of(config: Any, attention: str) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation=attention).eval()


@contextmanager
def _quiet() -> Iterator[None]:
    """Transformers' warnings speak of training and of how it would load the model itself."""
    from transformers.utils import logging

    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)


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


def put_on_cpu(model: torch.nn.Module) -> None:
    """Give parameters memory that nobody writes or reads, so that it takes none: tracing wants them on a real device.

    On the meta device, numbers that a forward makes itself (constants, index lists) would lose their values too.
    """
    moved: dict[int, torch.nn.Parameter] = {}
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None and parameter.is_meta:
                own = moved.get(id(parameter))
                if own is None:
                    own = torch.nn.Parameter(torch.empty_like(parameter, device="cpu"), requires_grad=False)
                    moved[id(parameter)] = own
                module._parameters[name] = own
