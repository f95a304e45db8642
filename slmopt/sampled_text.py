"""Text that a model samples itself: for calibration and distillation where no text is at hand.

A model's own samples stand in for its training data (Liu et al. 2023, LLM-QAT, arXiv 2305.17888, section 3.1): each
document begins with the token that begins every text, the rest is drawn from the model's distribution.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from slmopt.calibrate import Calibration
from slmopt.errors import InputError, UnsupportedError
from slmopt.interpreter import initial_states, run
from slmopt.ir.decoding import derive_step
from slmopt.ir.dims import Dim, symbol
from slmopt.ir.graph import Graph, Module, Weight
from slmopt.ir.step import CAPACITY
from slmopt.ir.types import DType
from slmopt.memory import keep_freed_memory

if TYPE_CHECKING:
    import torch

__all__ = ["sample_calibration"]

_MOST = 512  # documents at once: more gain nothing
_STATE_BYTES = 512 << 20  # of the states of all documents, were each of them as long as it may be
_ROOM = 64  # positions by which caches grow: a step costs what the room in them costs
_CLOSED = 1 / 8  # the share of documents that may have ended before the others go on without them


def sample_calibration(
    module: Module, tokens: int, *, seed: int, temperature: float = 1.0, context: int | None = None,
    batch: int | None = None, report: Callable[[str, float], None] = lambda what, share: None,
) -> Calibration:  # fmt: skip
    """Documents that `module` samples, `tokens` tokens in all, the last of them cut to that. The module is not touched.

    A document begins with BOS, or a random token where the model has none. It ends with an end-of-text token, before
    another BOS, or when it has `context` tokens (default and most: the model's context). Tokens are drawn from
    softmax(logits / temperature). The same arguments give the same documents; `batch`, the documents run at once,
    makes no difference but by rounding, and follows by default from the size of their states. While it runs all
    weights are in memory, as float32.

    UnsupportedError where @forward is no language model or has an op without a step rule. InputError for fewer than 2
    tokens, a temperature that is not positive, a context below 2, and a model that ends every document at once or
    gives no numbers.
    """
    if tokens < 2 or not temperature > 0:
        raise InputError("sampled text needs 2 tokens or more and a positive temperature, got "
                         f"{tokens} tokens and temperature {temperature:g}")  # fmt: skip
    sampler = _Sampler(module, _derive(module), seed, temperature, _longest(module, context))
    most = sampler.fitting() if batch is None else max(1, batch)
    documents: list[tuple[int, ...]] = []
    found = 0
    while found < tokens:
        mean = max(2, found // len(documents)) if documents else sampler.context // 2 + 1
        with keep_freed_memory():
            documents += sampler.documents(min(most, -(-(tokens - found) // mean)))
        if all(len(document) < 2 for document in documents):
            raise InputError(f"@{module.name} ends each of {len(documents)} documents at once: it gives no text")
        found = sum(map(len, documents))
        report("sample text", min(1.0, found / tokens))
    return Calibration(tuple(document for document in documents if len(document) > 1)).head(tokens)


def _longest(module: Module, context: int | None) -> int:
    """The most tokens of a document."""
    known = [int(limit) for limit in (context, module.metadata.get("context")) if limit is not None]
    if not known or min(known) < 2:
        raise InputError(f"sampled documents of @{module.name} need a context of 2 tokens or more, got "
                         f"{min(known) if known else 'none'}")  # fmt: skip
    return min(known)


def _derive(module: Module) -> Graph:
    """@step of a language model, with a float32 cache."""
    forward = module.graph("forward")
    ids = forward.inputs[0].type if len(forward.inputs) == 1 else None
    if ids is None or ids.element != DType.i64 or ids.rank != 2 or forward.outputs[0].type.rank != 3:
        raise UnsupportedError(f"@{module.name} samples no text: @forward must be (ids: i64[b, s]) -> logits[b, s, n]")
    return derive_step(forward, str(module.metadata.get("sequence", "s")), DType.f32)[0]


class _Sampler:
    """Draws documents, in order: document i uses the i-th `context` numbers of one random stream."""

    def __init__(self, module: Module, step: Graph, seed: int, temperature: float, context: int) -> None:
        import torch

        self.module, self.step, self.temperature, self.context = module, step, temperature, context
        self.begin: int | None = module.metadata.get("bos_token_id")
        self.ends = frozenset(module.metadata.get("eos_token_ids", ()))
        self.random = torch.Generator().manual_seed(seed)
        keys = {operand.key for op in self.step.walk() for operand in op.operands if isinstance(operand, Weight)}
        self.weights = {key: module.weights.float(key) for key in sorted(keys)}
        shapes = [value.shape for value in self.step.inputs[len(self.step.inputs) - self.step.states :]]
        batch = str(module.metadata.get("batch", "b"))
        self.batch_axes = [_axis_of(shape, batch) or 0 for shape in shapes]
        self.room_axes = [_axis_of(shape, CAPACITY) for shape in shapes]

    def fitting(self) -> int:
        """How many documents at once the states leave room for."""
        sizes = [state.numel() * state.element_size() for state in initial_states(self.step, 1, self.context, chunk=1)]
        return max(1, min(_MOST, _STATE_BYTES // max(sum(sizes), 1)))

    def documents(self, count: int) -> list[tuple[int, ...]]:
        """The next `count` documents."""
        import torch

        draws = torch.rand(count, self.context, generator=self.random, dtype=torch.float64)
        vocabulary = int(self.step.outputs[0].shape[-1])  # type: ignore[arg-type]
        ids = (draws[:, 0] * vocabulary).long() if self.begin is None else torch.full((count,), self.begin)
        found = [[token] for token in ids.tolist()]
        written, open_rows = list(range(count)), [True] * count  # the document of each row; which rows go on
        room = min(_ROOM, self.context)
        states = initial_states(self.step, count, room, chunk=1)
        with torch.no_grad():
            for position in range(self.context - 1):
                if position == room:
                    room = min(room + _ROOM, self.context)
                    states = [_grown(*pair, room) for pair in zip(states, self.room_axes, strict=True)]
                ids, states = self._advance(ids, position, states, draws[written, position + 1])
                for row, token in enumerate(ids.tolist()):
                    open_rows[row] = open_rows[row] and self._append(found[written[row]], token)
                if not any(open_rows):
                    break
                if open_rows.count(False) >= _CLOSED * len(open_rows):
                    kept = [row for row, is_open in enumerate(open_rows) if is_open]
                    written, open_rows, ids = [written[row] for row in kept], [True] * len(kept), ids[kept]
                    states = [s.index_select(axis, torch.tensor(kept)) for s, axis in
                              zip(states, self.batch_axes, strict=True)]  # fmt: skip
        return [tuple(document) for document in found]

    def _append(self, document: list[int], token: int) -> bool:
        """Write a token that was drawn; whether the document goes on."""
        if token == self.begin:
            return False
        document.append(token)
        return token not in self.ends

    def _advance(
        self, ids: torch.Tensor, position: int, states: list[torch.Tensor], draws: torch.Tensor
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """The tokens [n] that follow `ids`, by uniform numbers [n] of [0, 1), and the states then."""
        import torch

        inputs = [ids[:, None], torch.tensor(position), *states]
        logits, *following = run(self.module, self.step, inputs, self.weights)
        shares = (logits[:, -1].double() / self.temperature).softmax(-1).cumsum(-1)
        if not bool(torch.isfinite(shares[:, -1]).all()):
            raise InputError(f"@{self.module.name} gives logits that are not numbers: no text can be sampled from it")
        drawn = torch.searchsorted(shares, draws[:, None] * shares[:, -1:], right=True)
        return drawn[:, 0].clamp(max=shares.shape[-1] - 1), following


def _axis_of(shape: tuple[Dim, ...], name: str) -> int | None:
    """The axis of a state that a symbol gives the size of."""
    return next((axis for axis, dim in enumerate(shape) if dim == symbol(name)), None)


def _grown(state: torch.Tensor, axis: int | None, room: int) -> torch.Tensor:
    """A state with room for more positions, where it keeps them all."""
    import torch

    if axis is None:
        return state
    more = list(state.shape)
    more[axis] = room - more[axis]
    return torch.cat((state, state.new_zeros(more)), axis)
