"""The training of a student: batches, optimizer, schedule, the best weights so far, and going on after a kill."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from slmopt.errors import ContractError
from slmopt.interpreter import run
from slmopt.ir.graph import Graph, Module, Weight
from slmopt.passes.heal.attention import SUBSTITUTES
from slmopt.passes.heal.checkpoint import Checkpoint, Progress
from slmopt.passes.heal.losses import add_gradients, divergence
from slmopt.passes.heal.parameters import predicting
from slmopt.passes.heal.texts import Document, predicted

if TYPE_CHECKING:
    import torch

__all__ = ["Healed", "Runner", "Schedule", "Training"]

_LOGITS = 1 << 26  # numbers of logits that are computed at a time, of teacher and student each
_POSITIONS = 2048  # positions that are computed at a time: the numbers of more do not stay in a cache
_ROWS = 1024  # positions that are measured at a time
_SAVED_EVERY = 20.0  # seconds
_CHECKS = 10  # how often the loss on held-out text is measured
_NOTHING = 1e-7  # nats a token: two ways to compute the same differ by more
_BETAS = (0.9, 0.99)


@dataclass(frozen=True)
class Schedule:
    """The learning rate rises over the first `warm_up` steps and falls as a cosine to 0 at the last of `steps`."""

    rate: float
    steps: int
    warm_up: int

    def at(self, step: int) -> float:
        """The learning rate of a step, the first of which is 0."""
        if step < self.warm_up:
            return self.rate * (step + 1) / self.warm_up
        done = (step - self.warm_up) / max(self.steps - self.warm_up, 1)
        return self.rate * (1 + math.cos(math.pi * done)) / 2


class Runner:
    """Runs @forward of a module on batches. Weights are loaded once and kept as they are stored."""

    def __init__(self, module: Module) -> None:
        self.graph: Graph = predicting(module.graph())
        self.module = Module(module.name, [self.graph], module.weights, module.metadata)
        self.weights: dict[str, Any] = {key: module.weights.stored(key) for key in self.module.weight_types()}

    def logits(self, ids: torch.Tensor, parameters: Mapping[str, torch.Tensor] | None = None) -> torch.Tensor:
        """Logits [b, s, vocab] of ids [b, s], with other numbers for some weights."""
        weights = {**self.weights, **(parameters or {})}
        return run(self.module, self.graph, [ids], weights, substitutes=SUBSTITUTES)[0]


def pad(batch: Sequence[Document]) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids [b, s], shorter documents filled up behind their end, and bool [b, s]: which positions predict a token.

    No document sees another one, and nothing sees what is behind its own end where attention is causal.
    """
    import torch

    length = max(map(len, batch))
    ids = torch.zeros(len(batch), length, dtype=torch.int64)
    kept = torch.zeros(len(batch), length, dtype=torch.bool)
    for row, document in enumerate(batch):
        ids[row, : len(document)] = torch.tensor(document)
        kept[row, : len(document) - 1] = True
    return ids, kept


@dataclass(frozen=True)
class Healed:
    """The best weights, by key: those that differ from the start. Losses on held-out text, nats a token."""

    values: dict[str, torch.Tensor]
    before: float
    after: float
    step: int


class Training:
    """Trains `values` in place so that the student says what the teacher says."""

    def __init__(
        self, teacher: Runner, student: Runner, values: dict[str, torch.Tensor], *, loss: str, temperature: float,
        schedule: Schedule, clip: float, report: Callable[[str, float], None],
    ) -> None:  # fmt: skip
        import torch

        self.teacher, self.student, self.loss, self.temperature = teacher, student, loss, temperature
        self.schedule, self.clip, self.report = schedule, clip, report
        self.every = max(1, schedule.steps // _CHECKS)
        self.start = {key: value.clone() for key, value in values.items()}
        self.values = {key: value.requires_grad_() for key, value in values.items()}
        self.optimizer = torch.optim.AdamW(self.values.values(), lr=schedule.rate, betas=_BETAS, weight_decay=0.0)
        self.best_values: dict[str, torch.Tensor] = {}
        self.best = self.before = math.inf
        self.step = self.best_step = 0

    # --- measuring -------------------------------------------------------------------------------------------------
    def measure(self, batches: Sequence[Sequence[Document]]) -> float:
        """The mean divergence per predicted token, of weights as they would be stored."""
        import torch

        total, tokens = 0.0, 0
        values = self.stored()
        for batch in batches:
            for part in self._parts(batch):
                ids, kept = pad(part)
                with torch.no_grad():
                    teacher, student = self.teacher.logits(ids), self.student.logits(ids, values)
                    total += float(self._divergence(teacher[kept], student[kept]))
            tokens += predicted(batch)
        return total / max(tokens, 1)

    def _divergence(self, teacher: torch.Tensor, student: torch.Tensor) -> float:
        total = 0.0
        for start in range(0, len(teacher), _ROWS):
            part = slice(start, start + _ROWS)
            found = divergence(self.loss, teacher[part], student[part], self.temperature)
            total += float(found.double().sum())
        return total

    def stored(self) -> dict[str, torch.Tensor]:
        """The weights in the types they are stored in."""
        from slmopt.ir.torch_types import torch_dtype

        types = {
            operand.key: operand.type.element
            for op in self.student.graph.walk() for operand in op.operands if isinstance(operand, Weight)
        }  # fmt: skip
        return {key: value.detach().to(torch_dtype(types[key])) for key, value in self.values.items()}

    # --- training --------------------------------------------------------------------------------------------------
    def run(
        self, batches: Sequence[Sequence[Document]], held_out: Sequence[Sequence[Document]], checkpoint: Checkpoint
    ) -> Healed:  # fmt: skip
        """Train on every batch once; the result is the best of the weights that were measured, the start included."""
        self.before = self.measure(held_out)
        self.best = self.before
        if not math.isfinite(self.before):
            raise ContractError("heal: predictions of the module or its teacher are no finite numbers")
        if self.before < _NOTHING:
            return Healed({}, self.before, self.before, 0)
        progress = checkpoint.read()
        if progress is not None:
            self._restore(progress)
        begin, saved, first = time.monotonic(), time.monotonic(), self.step
        recent = self.before
        while self.step < len(batches):
            now = self._train(batches[self.step])
            recent = now if self.step == 0 else 0.9 * recent + 0.1 * now
            self.step += 1
            if self.step % self.every == 0 or self.step == len(batches):
                self._keep_best(held_out)
            passed = time.monotonic() - begin
            left = passed / (self.step - first) * (len(batches) - self.step)
            self.report(f"loss {recent:.4f}, held out {self.before:.4f} -> {self.best:.4f}, {_clock(left)} left",
                        self.step / len(batches))  # fmt: skip
            if not math.isfinite(now):
                break
            if time.monotonic() - saved > _SAVED_EVERY:
                checkpoint.write(self.progress())
                saved = time.monotonic()
        checkpoint.remove()
        return Healed(self.best_values, self.before, self.best, self.best_step)

    def _train(self, batch: Sequence[Document]) -> float:
        """One step; returns the mean loss of the batch."""
        import torch

        for group in self.optimizer.param_groups:
            group["lr"] = self.schedule.at(self.step)
        self.optimizer.zero_grad(set_to_none=True)
        count, total = predicted(batch), 0.0
        for part in self._parts(batch):
            ids, kept = pad(part)
            with torch.no_grad():
                teacher = self.teacher.logits(ids)
            with torch.enable_grad():
                student = self.student.logits(ids, self.values)
                total += add_gradients(self.loss, teacher, student, kept, self.temperature, 1 / count)
        torch.nn.utils.clip_grad_norm_(self.values.values(), self.clip)
        self.optimizer.step()
        return total / count

    def _parts(self, batch: Sequence[Document]) -> Sequence[Sequence[Document]]:
        """The batch in parts whose numbers are not too many to be held."""
        vocabulary, length = self.student.graph.outputs[0].shape[-1], max(map(len, batch))
        positions = min(_POSITIONS, _LOGITS // (vocabulary if isinstance(vocabulary, int) else 1))
        rows = max(1, positions // length)
        return [batch[start : start + rows] for start in range(0, len(batch), rows)]

    def _keep_best(self, held_out: Sequence[Sequence[Document]]) -> None:
        found = self.measure(held_out)
        if found < self.best:  # not where it is no number
            import torch

            values = {key: value.clone() for key, value in self.stored().items()}
            self.best, self.best_step = found, self.step
            self.best_values = {k: v for k, v in values.items() if not torch.equal(v.float(), self.start[k])}

    # --- going on --------------------------------------------------------------------------------------------------
    def progress(self) -> Progress:
        """Where the training stands, between two steps."""
        tensors = {f"value:{key}": value.detach() for key, value in self.values.items()}
        tensors.update({f"best:{key}": value for key, value in self.best_values.items()})
        for key, value in self.values.items():
            for name, part in self.optimizer.state[value].items():
                tensors[f"{name}:{key}"] = part
        return Progress(self.step, self.best, self.best_step, tensors)

    def _restore(self, progress: Progress) -> None:
        import torch

        self.step, self.best, self.best_step = progress.step, progress.best, progress.best_step
        with torch.no_grad():
            for name, tensor in progress.tensors.items():
                group, key = name.split(":", 1)
                if group == "value":
                    self.values[key].copy_(tensor)
                elif group == "best":
                    self.best_values[key] = tensor
                else:
                    self.optimizer.state[self.values[key]][group] = tensor


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02}"
