"""How far a student's predictions are from a teacher's, and the gradient of that, some positions at a time."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

__all__ = ["LOSSES", "add_gradients", "divergence"]

LOSSES = ("kl", "reverse-kl", "js")

_NUMBERS = 1 << 22  # logits that become probabilities at a time
_FLOOR = -100.0  # of a log probability: exp(-100) is nothing in float32, and -inf - -inf is no number


def divergence(loss: str, teacher: torch.Tensor, student: torch.Tensor, temperature: float) -> torch.Tensor:
    """Of each row of logits [n, vocab] the divergence in nats, [n]; with p the teacher's and q the student's softmax:

    kl: KL(p || q) = sum p log(p / q). reverse-kl: KL(q || p). js: (KL(p || m) + KL(q || m)) / 2, m = (p + q) / 2.

    Logits are divided by `temperature` and the result is multiplied by its square, so that gradients keep their size
    (Hinton, Vinyals, Dean 2015, section 2).
    """
    import torch

    p, q = ((logits / temperature).log_softmax(-1).clamp(min=_FLOOR) for logits in (teacher, student))
    if loss == "kl":
        found = p.exp() * (p - q)
    elif loss == "reverse-kl":
        found = q.exp() * (q - p)
    else:
        mean = torch.logaddexp(p, q) - math.log(2)
        found = (p.exp() * (p - mean) + q.exp() * (q - mean)) / 2
    return found.sum(-1) * temperature**2


def add_gradients(
    loss: str, teacher: torch.Tensor, student: torch.Tensor, kept: torch.Tensor, temperature: float, weight: float
) -> float:
    """Add to the gradients of what `student` was computed from those of `weight` times the divergence, summed over the
    positions `kept`; returns that sum, without the weight.

    Logits are [b, s, vocab], kept bool [b, s]. Beside them there is one more such tensor, the gradient.
    """
    import torch

    total, vocabulary = 0.0, student.shape[-1]
    gradient = torch.zeros_like(student)
    rows = kept.flatten().nonzero()[:, 0]
    flat_teacher, flat_student = teacher.flatten(0, 1), student.detach().flatten(0, 1)
    count = max(1, _NUMBERS // vocabulary)
    for start in range(0, len(rows), count):
        part = rows[start : start + count]
        piece = flat_student[part].requires_grad_()
        found = divergence(loss, flat_teacher[part], piece, temperature).sum()
        (slope,) = torch.autograd.grad(found * weight, piece)
        gradient.view(-1, vocabulary)[part] = slope
        total += float(found.detach())
    student.backward(gradient)  # type: ignore[no-untyped-call]
    return total
