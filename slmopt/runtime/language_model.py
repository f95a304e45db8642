"""An opened artifact: text in, text out."""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Literal, Self, TypedDict, Unpack, overload

from slmopt.artifact import read_manifest
from slmopt.errors import ArtifactError, InputError
from slmopt.runtime.detokenize import Detokenizer, cut_at_stop
from slmopt.runtime.library import Sampling
from slmopt.runtime.program import Program, file_name, open_program
from slmopt.runtime.session import Session

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from tokenizers import Tokenizer

__all__ = ["LanguageModel", "Perplexity", "SamplingOptions", "open"]

_LOGITS_AT_ONCE = 1 << 22  # numbers: perplexity takes as many positions at a time as have so many logits


@dataclass(frozen=True)
class Perplexity:
    """How well a model predicts a text: exp(nats / tokens)."""

    nats: float  # sum of -log p over the predicted tokens, in float64
    tokens: int  # predicted tokens: all but the first of each document

    @property
    def perplexity(self) -> float:
        return math.exp(self.nats / self.tokens)


class SamplingOptions(TypedDict, total=False):
    """The fields of Sampling, as keywords."""

    temperature: float
    top_k: int
    top_p: float
    min_p: float
    repetition_penalty: float
    seed: int


def open(path: str | os.PathLike[str], threads: int = 0) -> LanguageModel:
    """Opens the artifact at `path`. `threads` is for the model's own calls; 0 means one for each usable core.

    Maps the weights, reads nothing else of them. InputError where `path` is no artifact, ArtifactError where it is
    damaged or made for another machine.
    """
    return LanguageModel(path, threads)


class LanguageModel:
    """A compiled model. May be used from several threads at once; a context manager closes it.

    name: of the model. context: most tokens of a conversation. vocab: size of the vocabulary. bos: token id or None.
    eos: token ids that end a generation. manifest: what was compiled, and how.
    """

    def __init__(self, path: str | os.PathLike[str], threads: int = 0) -> None:
        self.path = Path(path)
        self.manifest = read_manifest(self.path)
        self._program: Program | None = open_program(self.path, self.manifest)
        self._threads = threads
        self._lock = threading.RLock()  # reentrant: an abandoned stream is finalized wherever the collector runs
        self._process = os.getpid()
        self._idle: Session | None = None  # kept from the call before: opening one costs threads and page faults
        self._tokenizer: Tokenizer | None = None
        self.name = str(self.manifest.get("name", self.path.name))
        self.vocab, self.context = self._program.vocab, self._program.context
        self.bos: int | None = self.manifest.get("bos_token_id")
        self.eos: frozenset[int] = frozenset(self.manifest.get("eos_token_ids") or ())

    def __repr__(self) -> str:
        return f"<LanguageModel {self.name}: {self.manifest.get('target', '')}, context {self.context}>"

    @property
    def tokenizer(self) -> Tokenizer:
        """The artifact's tokenizer (package `tokenizers`)."""
        if self._tokenizer is None:
            if self.manifest.get("tokenizer") is None:
                raise InputError(f"the artifact {self.path} has no tokenizer: give token ids instead of text")
            self._tokenizer = _load_tokenizer(self.path / file_name(self.manifest, "tokenizer", self.path))
        return self._tokenizer

    def encode(self, text: str) -> list[int]:
        """The tokens of `text` with the tokenizer's special tokens, and BOS first if the model has one."""
        ids = list(self.tokenizer.encode(text).ids)
        return ids if self.bos is None or ids[:1] == [self.bos] else [self.bos, *ids]

    def session(self, threads: int | None = None) -> Session:
        """A conversation of its own. threads: None as the model's, 0 one for each usable core."""
        if self._program is None:
            raise InputError("the model is closed")
        return Session(self._program.converse(self._threads if threads is None else threads))

    @overload
    def generate(
        self,
        prompt: str | Iterable[int],
        max_tokens: int = ...,
        *,
        stream: Literal[False] = ...,
        stop: str | Sequence[str] = ...,
        **options: Unpack[SamplingOptions],
    ) -> str: ...
    @overload
    def generate(
        self,
        prompt: str | Iterable[int],
        max_tokens: int = ...,
        *,
        stream: Literal[True],
        stop: str | Sequence[str] = ...,
        **options: Unpack[SamplingOptions],
    ) -> Iterator[str]: ...
    @overload
    def generate(
        self,
        prompt: str | Iterable[int],
        max_tokens: int = ...,
        *,
        stream: bool,
        stop: str | Sequence[str] = ...,
        **options: Unpack[SamplingOptions],
    ) -> str | Iterator[str]: ...
    def generate(
        self,
        prompt: str | Iterable[int],
        max_tokens: int = 256,
        *,
        stream: bool = False,
        stop: str | Sequence[str] = (),
        **options: Unpack[SamplingOptions],
    ) -> str | Iterator[str]:
        """The text that follows `prompt`, or with stream=True an iterator of its pieces; options as for `stream`."""
        pieces = self.stream(prompt, max_tokens, stop=stop, **options)
        return pieces if stream else "".join(pieces)

    def stream(
        self,
        prompt: str | Iterable[int],
        max_tokens: int = 256,
        *,
        stop: str | Sequence[str] = (),
        **options: Unpack[SamplingOptions],
    ) -> Iterator[str]:
        """The text that follows `prompt` (text, or token ids taken as they are), piece by piece, in whole characters.

        Ends after `max_tokens`, at an end-of-sequence token, before the first stop string, or at the end of the
        context. Options are the fields of Sampling; greedy by default. InputError on bad options or a prompt that does
        not fit, before this returns.
        """
        sampling = Sampling(**options)
        stops = [stop] if isinstance(stop, str) else list(stop)
        if not all(isinstance(text, str) and text for text in stops):
            raise InputError("stop strings must be text and not empty")
        tokenizer, ids = self.tokenizer, self._prompt(prompt)
        tokens = self._tokens(ids, max_tokens, sampling)  # checks the ids, which a tokenizer does not
        return cut_at_stop(_pieces(Detokenizer(tokenizer, ids), tokens), stops)

    def generate_ids(
        self, prompt: str | Iterable[int], max_tokens: int = 256, sampling: Sampling | None = None
    ) -> Iterator[int]:
        """As `stream`, in token ids; the end-of-sequence token is left out."""
        return self._tokens(self._prompt(prompt), max_tokens, sampling or Sampling())

    def logits(self, ids: Iterable[int]) -> NDArray[np.float32]:
        """The logits that follow each of `ids`, from an empty context: float32 [len(ids), vocab]."""
        with self._borrow() as session:
            return session.logits(ids)

    def logits_in_parts(self, ids: Sequence[int], rows: int) -> Iterator[NDArray[np.float32]]:
        """As `logits`, at most `rows` of them at a time, so that a large vocabulary does not fill the memory."""
        with self._borrow() as session:
            for start in range(0, len(ids), rows):
                yield session.logits(ids[start : start + rows])

    def perplexity(
        self, text: str | Iterable[str] | Iterable[Sequence[int]], separator: str = "<|endoftext|>"
    ) -> Perplexity:
        """Perplexity over documents: a fresh context each, BOS first where the model has one, cut at the context's end.

        Text is split at `separator`; documents are stripped, and empty ones left out. Token ids are taken as they are.
        """
        documents = text.split(separator) if isinstance(text, str) else text
        nats, tokens = 0.0, 0
        with self._borrow() as session:
            for document in documents:
                if isinstance(document, str):
                    document = self.encode(document.strip()) if document.strip() else []
                ids = document[: self.context]
                if len(ids) > 1:
                    session.reset()
                    nats += self._nats(session, ids)
                    tokens += len(ids) - 1
        if tokens == 0:
            raise InputError("there is no token to predict: perplexity needs a document of two tokens or more")
        return Perplexity(nats, tokens)

    def close(self) -> None:
        """Closes the model; sessions that are open stay usable. Closing twice is fine."""
        with self._lock:
            if self._idle is not None:
                self._idle.close()
                self._idle = None
            if self._program is not None:
                self._program.close()
                self._program = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        if getattr(self, "_program", None) is not None:
            self.close()

    @contextmanager
    def _borrow(self) -> Iterator[Session]:
        """A session at position 0: the one left from before, or a new one where another call has it."""
        with self._lock:
            session, self._idle = self._idle, None
        if session is not None and self._process != os.getpid():
            session.close()  # after a fork: its threads stayed with the parent
            session = None
        self._process = os.getpid()
        if session is None:
            session = self.session()
        try:
            session.reset()
            yield session
        finally:
            with self._lock:
                if self._idle is None and self._program is not None:
                    self._idle, session = session, None
            if session is not None:
                session.close()

    def _prompt(self, prompt: str | Iterable[int]) -> list[int]:
        ids = self.encode(prompt) if isinstance(prompt, str) else [int(id) for id in prompt]
        if not ids:
            raise InputError("the prompt is empty and the model has no BOS token to begin with; give some text")
        return ids

    def _tokens(self, ids: list[int], max_tokens: int, sampling: Sampling) -> Iterator[int]:
        """Runs the prompt at once, so that what is wrong shows here, and gives the tokens as they are asked for."""
        if max_tokens < 0:
            raise InputError(f"max_tokens is {max_tokens}; it must be 0 or more")
        tokens = self._run(ids, max_tokens, sampling)
        next(tokens)
        return tokens

    def _run(self, ids: list[int], max_tokens: int, sampling: Sampling) -> Iterator[int]:
        """-1 once the prompt is in and the sampling is known to be good, then the tokens."""
        with self._borrow() as session:
            session.prefill(ids)
            id = session.sample(sampling)
            yield -1
            for left in range(max_tokens, 0, -1):
                if id in self.eos:
                    return
                yield id
                if left == 1 or session.position == self.context:
                    return
                session.decode(id)
                id = session.sample(sampling)

    def _nats(self, session: Session, ids: Sequence[int]) -> float:
        """The sum of -log p(ids[i + 1] | ids[: i + 1]), in float64."""
        import numpy as np

        if not 0 <= ids[-1] < self.vocab:  # the only one that the session does not see
            raise InputError(
                f"token {ids[-1]} at index {len(ids) - 1} is out of range: the vocabulary has {self.vocab}"
            )
        rows = max(1, _LOGITS_AT_ONCE // self.vocab)
        nats = 0.0
        for start in range(0, len(ids) - 1, rows):
            part = ids[start : min(start + rows, len(ids) - 1)]
            logits = session.logits(part).astype(np.float64)
            logits -= logits.max(axis=1, keepdims=True)
            chosen = logits[np.arange(len(part)), ids[start + 1 : start + 1 + len(part)]]
            nats += float(np.sum(np.log(np.exp(logits).sum(axis=1)) - chosen))
        return nats


def _pieces(detokenizer: Detokenizer, ids: Iterator[int]) -> Iterator[str]:
    for id in ids:
        if piece := detokenizer.push(id):
            yield piece
    if piece := detokenizer.flush():
        yield piece


def _load_tokenizer(file: Path) -> Tokenizer:
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise InputError(
            "text needs the package `tokenizers` (pip install tokenizers); token ids work without"
        ) from error
    try:
        return Tokenizer.from_file(str(file))
    except Exception as error:  # the package raises bare Exception
        raise ArtifactError(f"{file} cannot be read as a tokenizer: {error}") from error
