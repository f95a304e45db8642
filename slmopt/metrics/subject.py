"""What is measured: a module in the interpreter, or a compiled model; and a text as documents of its tokens."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from slmopt.calibrate import SEPARATOR
from slmopt.errors import InputError
from slmopt.metrics.metric import Document, Prediction

if TYPE_CHECKING:
    from slmopt.ir.graph import Module
    from slmopt.runtime import LanguageModel

__all__ = ["CompiledSubject", "ModuleSubject", "read_documents"]

_LOGITS_AT_ONCE = 1 << 22  # numbers: a prediction has as many rows as have so many logits
_LONGEST = 2048  # tokens of a document, where the model names no context


class ModuleSubject:
    """A module with weights; @forward is run by the interpreter, each document whole."""

    def __init__(self, module: Module) -> None:
        self.module, self.name = module, module.name
        self.vocab = int(module.metadata.get("vocab") or module.graph().outputs[0].shape[-1])  # type: ignore[arg-type]
        self.context = int(module.metadata.get("context") or _LONGEST)
        self.bos: int | None = module.metadata.get("bos_token_id")

    @property
    def tokenizer(self) -> Any:
        """The tokenizer of the model's directory; InputError where there is none."""
        from slmopt.calibrate import read_tokenizer

        return read_tokenizer(self.module.metadata)

    def predict(self, ids: Sequence[int]) -> Iterator[Prediction]:
        """What the model says of ids[1:]."""
        import numpy as np
        import torch

        from slmopt.interpreter import run

        _check_ids(ids, self.vocab)
        with torch.no_grad():
            logits = run(self.module, "forward", [torch.tensor([list(ids)])])[0][0].float().numpy()
        targets, rows = np.asarray(ids[1:], np.int64), max(1, _LOGITS_AT_ONCE // self.vocab)
        for start in range(0, len(targets), rows):
            part = targets[start : start + rows]
            yield Prediction(logits[start : start + len(part)], part)


class CompiledSubject:
    """A compiled model that is open; what it says comes from its library."""

    def __init__(self, model: LanguageModel) -> None:
        self.model, self.name, self.vocab, self.context = model, model.name, model.vocab, model.context
        self.bos = model.bos

    @property
    def tokenizer(self) -> Any:
        """The artifact's tokenizer; InputError where there is none."""
        return self.model.tokenizer

    def predict(self, ids: Sequence[int]) -> Iterator[Prediction]:
        """What the model says of ids[1:]."""
        import numpy as np

        _check_ids(ids, self.vocab)
        targets, start = np.asarray(ids[1:], np.int64), 0
        for logits in self.model.logits_in_parts(ids[:-1], max(1, _LOGITS_AT_ONCE // self.vocab)):
            yield Prediction(logits, targets[start : start + len(logits)])
            start += len(logits)


def _check_ids(ids: Sequence[int], vocabulary: int) -> None:
    for index, id in enumerate(ids):
        if not 0 <= id < vocabulary:
            raise InputError(f"token {id} at index {index} is out of range: the vocabulary has {vocabulary}")


def read_documents(
    subject: ModuleSubject | CompiledSubject, text: str, separator: str = SEPARATOR
) -> tuple[Document, ...]:
    """The documents of a text, split at `separator`, stripped, tokenized by the model's own tokenizer.

    InputError where the model has no tokenizer or the text gives no token to predict.
    """
    if not separator:
        raise InputError("the separator of documents must not be empty")
    tokenizer, found = subject.tokenizer, []
    for part in text.split(separator):
        if part.strip():
            document = _document(tokenizer.encode(part.strip()), part.strip(), subject)
            if len(document.ids) > 1:
                found.append(document)
    if not found:
        raise InputError("the text has no token to predict: it needs a document of two tokens or more")
    return tuple(found)


def _document(encoding: Any, text: str, subject: ModuleSubject | CompiledSubject) -> Document:
    ids, ends = list(encoding.ids), [end for _, end in encoding.offsets]
    if subject.bos is not None and ids[:1] != [subject.bos]:
        ids, ends = [subject.bos, *ids], [0, *ends]
    ids, ends = ids[: subject.context], ends[: subject.context]
    return Document(tuple(ids), len(text[ends[0] : max(ends)].encode()) if ids else 0)
