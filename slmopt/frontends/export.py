"""Tracing with torch.export: token ids [b, s] in, logits out, batch and sequence symbolic."""

from __future__ import annotations

import logging
import operator
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.export import Dim, ExportedProgram

from slmopt.errors import SlmError, UnsupportedError
from slmopt.frontends.aten import IGNORED, find_rule

__all__ = ["WRAPPER", "export_forward", "sequence_limit"]

WRAPPER = "model"
_EXAMPLE = (3, 7)  # batch and sequence while tracing: unlike each other and unlike 0 and 1, which torch makes constants


class _Forward(torch.nn.Module):
    """ids -> logits, whatever else the model takes and returns."""

    def __init__(self, model: torch.nn.Module, options: dict[str, Any]) -> None:
        super().__init__()
        self.model = model
        self.options = options

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        found = self.model(ids, **self.options)
        if isinstance(found, torch.Tensor):
            return found
        logits = getattr(found, "logits", None)
        if logits is None and isinstance(found, tuple | list):
            logits = found[0]
        if not isinstance(logits, torch.Tensor):
            raise UnsupportedError(
                f"the model returns {type(found).__name__}, expected logits or something that has them"
            )
        return logits


def export_forward(model: torch.nn.Module, name: str, device: str, **options: Any) -> ExportedProgram:
    """The traced program in functional ATen. `options` are passed to the model's forward.

    Raises UnsupportedError with torch's reason where the model cannot be traced for every batch and sequence length.
    """
    ids = torch.zeros(_EXAMPLE, dtype=torch.int64, device=device)
    shapes = ({0: Dim.DYNAMIC, 1: Dim.DYNAMIC},)
    try:
        with torch.no_grad(), _quiet():
            program = torch.export.export(_Forward(model, options), (ids,), dynamic_shapes=shapes, strict=False)
            return program if _is_convertible(program) else _functional(program)
    except SlmError:
        raise
    except Exception as error:
        raise UnsupportedError(
            f"{name} cannot be traced with symbolic batch and sequence length: {_reason(error)}"
        ) from error


def sequence_limit(program: ExportedProgram) -> int | None:
    """The longest sequence the traced program holds for, such as the rows of a position table; None for no limit.

    Raises UnsupportedError where it holds only for some batches, or not for short sequences.
    """
    ids = next(node for node in program.graph.nodes if node.name in program.graph_signature.user_inputs)
    batch, sequence = (program.range_constraints.get(size.node.expr) for size in ids.meta["val"].shape)
    for what, found in (("batch", batch), ("sequence length", sequence)):
        if found is not None and found.lower > 2:  # torch never looks at 0 and 1 while it traces symbolic sizes
            raise UnsupportedError(f"the model runs only where the {what} is at least {found.lower}")
    if batch is not None and batch.upper.is_Integer:
        raise UnsupportedError(f"the model runs only where the batch is at most {batch.upper}")
    return int(sequence.upper) if sequence is not None and sequence.upper.is_Integer else None


def _is_convertible(program: ExportedProgram) -> bool:
    """Whether every op that has a use writes nothing in place and has a rule: most models are traced so at once."""
    program.graph_module.graph.eliminate_dead_code()
    for node in program.graph.nodes:
        if node.op != "call_function" or node.target is operator.getitem:
            continue
        if not isinstance(node.target, torch._ops.OpOverload):
            if not isinstance(node.meta.get("val"), torch.SymInt | int):
                return False
            continue
        schema = node.target._schema
        namespace, name = schema.name.split("::")
        known = name in IGNORED or find_rule(namespace, name, schema.overload_name) is not None
        if schema.is_mutable or not (known or isinstance(node.meta.get("val"), torch.SymInt | int)):
            return False
    return True


def _functional(program: ExportedProgram) -> ExportedProgram:
    """Without writes in place and composite ops. It traces once more, which takes longer than the first time."""
    found: ExportedProgram = program.run_decompositions({})
    return found


def _reason(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {' '.join(lines[:3])}" if lines else type(error).__name__


@contextmanager
def _quiet() -> Iterator[None]:
    """Tracing logs and warns about its own internals, which says nothing about the model."""
    disabled = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
