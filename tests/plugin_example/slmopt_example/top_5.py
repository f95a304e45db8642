"""The metric `top-5`."""

from __future__ import annotations

from collections.abc import Sequence

from slmopt.metrics import Document, Subject

__all__ = ["Top5"]


class Top5:
    """The share of tokens that are among the model's five first choices."""

    name = "top-5"
    summary = "share of the text's tokens that are among the model's five first choices"
    unit = "%"
    lower_is_better = False

    def measure(self, subject: Subject, documents: Sequence[Document]) -> float:
        hits, tokens = 0, 0
        for document in documents:
            for part in subject.predict(document.ids):
                first = part.logits.argsort(axis=1)[:, -5:]
                hits += int((first == part.targets[:, None]).any(axis=1).sum())
                tokens += len(part.targets)
        return 100 * hits / tokens
