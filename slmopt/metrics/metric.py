"""What a metric is, and what it sees: documents of tokens, and what a model predicts at each of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["Document", "Metric", "Prediction", "Subject"]


@dataclass(frozen=True)
class Document:
    """Token ids, begun by BOS where the model has one and cut at its context.

    bytes: the UTF-8 bytes of text that the predicted tokens (all but the first) stand for.
    """

    ids: tuple[int, ...]
    bytes: int


@dataclass(frozen=True)
class Prediction:
    """What a model says of n consecutive tokens of a document.

    logits: float32 [n, vocab], computed from the tokens before. targets: int64 [n], the tokens that do follow.
    """

    logits: NDArray[np.float32]
    targets: NDArray[np.int64]

    def log_probabilities(self) -> NDArray[np.float64]:
        """log p of every token of the vocabulary, in float64 [n, vocab]."""
        import numpy as np

        shifted = self.logits.astype(np.float64)
        shifted -= shifted.max(axis=1, keepdims=True)
        shifted -= np.log(np.exp(shifted).sum(axis=1, keepdims=True))
        return shifted

    def target_log_probabilities(self) -> NDArray[np.float64]:
        """log p of the tokens that do follow, in float64 [n]."""
        import numpy as np

        shifted = self.logits.astype(np.float64)
        shifted -= shifted.max(axis=1, keepdims=True)
        chosen: NDArray[np.float64] = shifted[np.arange(len(self.targets)), self.targets]
        chosen = chosen - np.log(np.exp(shifted).sum(axis=1))
        return chosen


class Subject(Protocol):
    """A language model that is measured: a module in the interpreter or a compiled model, which a metric cannot tell.

    vocab: size of the vocabulary. context: most tokens of a document.
    """

    name: str
    vocab: int
    context: int

    def predict(self, ids: Sequence[int]) -> Iterator[Prediction]:
        """What the model says of every token of a document but the first, from an empty context, a part at a time.

        Parts come in order and have a few million logits at most.
        """


class Metric(Protocol):
    """A number that says how well a model does on a text. Made without arguments.

    name: how `--metric` calls it. unit: of the number, "" where it has none. lower_is_better: which way is good.
    """

    name: str
    summary: str
    unit: str
    lower_is_better: bool

    def measure(self, subject: Subject, documents: Sequence[Document]) -> float:
        """The number, over all documents, each of two tokens or more."""
