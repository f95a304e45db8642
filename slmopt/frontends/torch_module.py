"""A torch.nn.Module that maps token ids [b, s] to logits [b, s, vocab], to a Module."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slmopt.errors import InputError
from slmopt.ir.graph import Module
from slmopt.ir.weights import WeightStore

if TYPE_CHECKING:
    import torch

__all__ = ["load"]


def load(
    model: torch.nn.Module, *, name: str = "model", context: int | None = None, bos_token_id: int | None = None,
    eos_token_ids: Sequence[int] = (), tokenizer: str | Path | None = None,
) -> Module:  # fmt: skip
    """Trace `model(ids: i64[b, s]) -> logits` (a tensor, a result with `.logits`, or a tuple that begins with them).

    Parameters are held, not copied. Attention written as torch.nn.functional.scaled_dot_product_attention becomes one
    op, its mask a structure (causal, window, chunk) where it is one. `context` is the longest sequence; where it is
    not given, it is what tracing shows (such as the rows of a table that is sliced), or none. Raises InputError for a
    module in training mode or without numbers, UnsupportedError for what has no form in the IR.
    """
    from slmopt.frontends.convert import convert
    from slmopt.frontends.export import WRAPPER, export_forward, sequence_limit
    from slmopt.frontends.parameters import canonical_names, held, weights_on_demand

    _check_ready(model, name)
    source = _in_float32(model)
    device = next((str(parameter.device) for parameter in source.parameters()), "cpu")
    takes_cache = "use_cache" in inspect.signature(source.forward).parameters
    with _attention_of(source):
        program = export_forward(source, name, device, **({"use_cache": False} if takes_cache else {}))
    canonical = canonical_names(source)
    constants = {key.removeprefix(f"{WRAPPER}."): value for key, value in program.constants.items()}
    tensors = {**constants, **dict(source.named_parameters()), **dict(source.named_buffers())}
    sources = {key: held(value, "in memory") for key, value in tensors.items()}
    store = WeightStore()
    graph = convert(
        program, weights_on_demand(store, sources, canonical, WRAPPER), store, wrapper=WRAPPER,
        strip=getattr(source, "base_model_prefix", ""),
    )  # fmt: skip
    logits = graph.outputs[0]
    vocabulary = logits.shape[-1] if logits.type.rank == 3 else None
    if not isinstance(vocabulary, int):
        raise InputError(f"{name} returns {logits.type}, expected logits [b, s, vocabulary]")
    metadata = {
        "name": name, "vocab": vocabulary, "context": sequence_limit(program) if context is None else context,
        "bos_token_id": bos_token_id, "eos_token_ids": list(eos_token_ids),
        "tokenizer": None if tokenizer is None else str(tokenizer), "batch": "b", "sequence": "s", "source": None,
    }  # fmt: skip
    return Module(name, [graph], store, metadata)


def _check_ready(model: torch.nn.Module, name: str) -> None:
    if model.training:
        raise InputError(
            f"{name} is in training mode, which would make dropout part of the program: call .eval() first"
        )
    empty = next((key for key, value in model.named_parameters() if value.is_meta), None)
    if empty is not None:
        raise InputError(
            f"{name}: parameter {empty} is on the meta device and holds no numbers: load its weights first"
        )


def _in_float32(model: torch.nn.Module) -> torch.nn.Module:
    """The module itself where it computes in float32, else a copy that does."""
    import torch

    floats = (value for value in [*model.parameters(), *model.buffers()] if value.is_floating_point())
    return model if all(value.dtype == torch.float32 for value in floats) else copy.deepcopy(model).float()


@contextmanager
def _attention_of(model: Any) -> Iterator[None]:
    """A model of transformers, which lets its attention be chosen, is traced with the captured one."""
    if not hasattr(model, "set_attn_implementation"):
        yield
        return
    from slmopt.frontends.capture import IMPLEMENTATION, captured_attention

    chosen = model.config._attn_implementation
    with captured_attention():
        model.set_attn_implementation(IMPLEMENTATION)
        try:
            yield
        finally:
            model.set_attn_implementation(chosen)
