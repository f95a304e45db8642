"""What the options of a target say of sizes, for every backend that generates code."""

from __future__ import annotations

from collections.abc import Sequence

from slmopt.errors import InputError, nearest
from slmopt.ir.graph import Module
from slmopt.target import Target

__all__ = ["DEFAULT_CONTEXT", "check_options", "read_sizes"]

DEFAULT_CONTEXT = 2048  # positions, where neither the model nor the target says


def check_options(target: Target, known: Sequence[str]) -> None:
    """InputError where the target has an option that its backend does not take."""
    for name in target.options:
        if name not in known:
            hint = nearest(name, known)
            raise InputError(f"target {target}: unknown option {name!r}{hint}; {target.backend} takes "
                             f"{', '.join(sorted(known))}")  # fmt: skip


def read_sizes(target: Target, module: Module, chunk: int) -> tuple[int, int]:
    """(positions of context, most tokens of one step: `chunk` where the target does not say).

    InputError where they are no positive numbers, or the context is longer than what the model was made for.
    """
    trained = module.metadata.get("context")
    context = _number(target, "context", int(trained) if trained else DEFAULT_CONTEXT)
    if trained and context > int(trained):
        raise InputError(f"target {target}: context {context} is longer than the {trained} the model was made for")
    return context, min(_number(target, "chunk", chunk), context)


def _number(target: Target, name: str, default: int) -> int:
    text = target.options.get(name)
    if text is None:
        return default
    if not text.isdecimal() or int(text) < 1:
        raise InputError(f"target {target}: {name} must be a positive number, got {text!r}")
    return int(text)
