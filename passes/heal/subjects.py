"""Who learns from whom: whether a module can learn from a teacher, and whether there is anything to learn."""

from __future__ import annotations

from slmopt.errors import InputError, UnsupportedError
from slmopt.ir.dims import Dim
from slmopt.ir.graph import Graph, Module
from slmopt.ir.text import print_graph
from slmopt.ir.types import DType

__all__ = ["check_subjects", "same_numbers"]


def check_subjects(teacher: Module, student: Module) -> None:
    """Both must be @forward(ids: i64[b, s]) -> logits f32[b, s, vocab], of one vocabulary.

    UnsupportedError where the student is none, InputError where the teacher does not fit it.
    """
    found = _vocabulary(student.graph())
    if found is None:
        shown = ", ".join(f"{value.type}" for value in student.graph().inputs)
        raise UnsupportedError(f"heal is for language models, @forward(ids: i64[b, s]) -> f32[b, s, vocab]; that of "
                               f"@{student.name} is ({shown}) -> {student.graph().outputs[0].type}")  # fmt: skip
    other = _vocabulary(teacher.graph())
    if other is None or other != found:
        what = "is no language model" if other is None else f"has a vocabulary of {other}"
        raise InputError(f"heal: the teacher @{teacher.name} {what}, the module @{student.name} one of {found}: "
                         "name the model it was made from")  # fmt: skip


def _vocabulary(graph: Graph) -> Dim | None:
    """The size of the vocabulary; None where the graph is no language model's."""
    ids, logits = [value.type for value in graph.inputs], graph.outputs[0].type
    if len(ids) != 1 or ids[0].element not in (DType.i64, DType.i32) or ids[0].rank != 2:
        return None
    fits = logits.element == DType.f32 and logits.rank == 3 and logits.shape[:2] == ids[0].shape
    return logits.shape[2] if fits else None


def same_numbers(teacher: Module, student: Module) -> bool:
    """Whether both are one graph with the same stored weights."""
    if print_graph(teacher.graph()) != print_graph(student.graph()):
        return False
    keys = Module("m", [student.graph()]).weight_types()
    return all(teacher.weights.source(key) is student.weights.source(key) for key in keys)
