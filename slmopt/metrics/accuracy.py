"""The metric `accuracy`: how often the model's first choice is the token that follows."""

from __future__ import annotations

from collections.abc import Sequence

from slmopt.metrics.metric import Document, Subject

__all__ = ["Accuracy"]


class Accuracy:
    """The share of tokens that the model finds most probable; of equal logits the first counts."""

    name = "accuracy"
    summary = "share of the text's tokens that are the model's first choice"
    unit = "%"
    lower_is_better = False

    def measure(self, subject: Subject, documents: Sequence[Document]) -> float:
        """0 to 100."""
        hits, tokens = 0, 0
        for document in documents:
            for part in subject.predict(document.ids):
                hits += int((part.logits.argmax(axis=1) == part.targets).sum())
                tokens += len(part.targets)
        return 100 * hits / tokens
