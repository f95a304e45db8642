"""The built-in frontends as `slmopt.load` tries them: each says what it accepts before anything is imported."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slmopt.errors import InputError, IRError

if TYPE_CHECKING:
    from slmopt.ir.graph import Module

__all__ = ["HuggingFaceDirectory", "IRText", "TorchModule"]


class HuggingFaceDirectory:
    """A directory with config.json and safetensors."""

    summary = "a Hugging Face model directory"

    def accepts(self, source: Any) -> bool:
        """Every path that is not IR text: what is wrong with it, `load` says."""
        return isinstance(source, str | os.PathLike) and not _is_text(source)

    def load(self, source: Any, **options: Any) -> Module:
        """Trace the model in the directory."""
        from slmopt.artifact import MANIFEST
        from slmopt.frontends import huggingface

        directory = Path(source)
        if (directory / MANIFEST).is_file() and not (directory / "config.json").is_file():
            raise InputError(f"{directory} is a compiled artifact, not a model: run it with `slmopt run`")
        return huggingface.load(directory, **options)


class IRText:
    """A file of IR text, with the weights of a file of its name that ends in .safetensors, where there is one."""

    summary = "IR text (.slm), with weights where a .safetensors file of its name lies beside it"

    def accepts(self, source: Any) -> bool:
        """Whether the path ends in .slm."""
        return isinstance(source, str | os.PathLike) and _is_text(source)

    def load(self, source: Any) -> Module:
        """Parse the file; InputError where the weights beside it are not those that it names."""
        from slmopt.calibrate import read_text
        from slmopt.ir.text import parse_module
        from slmopt.module_files import add_stored_weights, weights_file

        text = read_text(source)
        try:
            module = parse_module(text)
        except IRError as error:
            raise InputError(f"{source}: {error}") from error
        if (stored := weights_file(source)).is_file():
            add_stored_weights(module, stored)
        return module


class TorchModule:
    """A torch.nn.Module that maps token ids to logits."""

    summary = "a torch.nn.Module in Python"

    def accepts(self, source: Any) -> bool:
        """Whether it is an nn.Module; torch is loaded already where one exists."""
        torch = sys.modules.get("torch")
        return torch is not None and isinstance(source, torch.nn.Module)

    def load(self, source: Any, **options: Any) -> Module:
        """Trace the module."""
        from slmopt.frontends import torch_module

        return torch_module.load(source, **options)


def _is_text(source: str | os.PathLike[str]) -> bool:
    return os.fspath(source).endswith(".slm")
