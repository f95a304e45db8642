"""The C ABI of slm.h as seen from Python. ctypes lets go of the interpreter's lock during every call."""

from __future__ import annotations

import ctypes
import threading
from ctypes import POINTER, c_char_p, c_float, c_int32, c_uint32, c_uint64, c_void_p
from dataclasses import dataclass
from pathlib import Path

from slmopt.errors import ArtifactError, InputError, SlmError

__all__ = ["Library", "Sampling"]

ABI_VERSION = 1  # SLM_ABI_VERSION


_loaded: dict[Path, list[tuple[int, int]]] = {}  # the files that were loaded from a path, the oldest first
_loading = threading.Lock()


def _spell(path: Path) -> str:
    """`path`, spelt so that no other file was loaded under that name.

    The loader compares names first: where an artifact was compiled again, it would give the library of the old one,
    which stays loaded. The inode of a loaded file is in use, and no other file's.
    """
    status = path.stat()
    with _loading:
        known = _loaded.setdefault(path, [])
        if (status.st_dev, status.st_ino) not in known:
            known.append((status.st_dev, status.st_ino))
        return f"{path.parent}{'/.' * known.index((status.st_dev, status.st_ino))}/{path.name}"


class _Sampling(ctypes.Structure):
    _fields_ = [
        ("temperature", c_float),
        ("top_k", c_int32),
        ("top_p", c_float),
        ("min_p", c_float),
        ("repetition_penalty", c_float),
        ("seed", c_uint64),
    ]


@dataclass(frozen=True)
class Sampling:
    """How to choose a token; the filters apply in the order of repetition penalty, temperature, top_k, top_p, min_p.

    temperature: 0 takes the most likely token. top_k: keep the k most likely, 0 all. top_p in (0, 1]: keep the most
    likely that together reach this share. min_p in [0, 1]: drop those less likely than this times the most likely one.
    repetition_penalty > 1 makes tokens that the session has taken less likely. seed: of the generator, 0 to 2**64 - 1.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int = 0

    def structure(self) -> ctypes.Structure:
        """The slm_sampling of C. InputError where a number does not fit its field."""
        if not 0 <= self.seed < 2**64:
            raise InputError(f"seed is {self.seed}; it must lie in 0 .. 2**64 - 1")
        if not 0 <= self.top_k < 2**31:
            raise InputError(f"top_k is {self.top_k}; it must lie in 0 (all tokens) .. 2**31 - 1")
        return _Sampling(self.temperature, self.top_k, self.top_p, self.min_p, self.repetition_penalty, self.seed)


class Library:
    """A loaded library of an artifact; its attributes are the functions of slm.h without their prefix."""

    def __init__(self, path: Path) -> None:
        if not path.is_file():
            raise ArtifactError(f"{path} is missing: the artifact is not whole; compile the model again")
        try:
            self._library = ctypes.CDLL(_spell(path.resolve()))
        except OSError as error:
            raise ArtifactError(
                f"{path} cannot be loaded here; was it compiled for another machine? ({error}) "
                "`slmopt verify --runner` checks it under an emulator"
            ) from error
        self.path = path
        try:
            self._declare()
        except AttributeError as error:
            raise ArtifactError(f"{path} is not a library of slmopt: {error}") from error
        version = self.abi_version()
        if version != ABI_VERSION:
            raise ArtifactError(
                f"{path} speaks version {version} of slm.h, this slmopt {ABI_VERSION}; compile it again"
            )

    def _declare(self) -> None:
        ids, logits, sampling = POINTER(c_int32), c_void_p, POINTER(_Sampling)
        library = self._library
        self.abi_version = library.slm_abi_version
        self.abi_version.restype = c_uint32
        self._last_error = library.slm_last_error
        self._last_error.restype = c_char_p
        self.open = library.slm_open
        self.open.argtypes, self.open.restype = [c_char_p], c_void_p
        self.close = library.slm_close
        self.close.argtypes, self.close.restype = [c_void_p], None
        self.vocab_size = library.slm_vocab_size
        self.vocab_size.argtypes, self.vocab_size.restype = [c_void_p], c_int32
        self.context_length = library.slm_context_length
        self.context_length.argtypes, self.context_length.restype = [c_void_p], c_int32
        self.session_open = library.slm_session_open
        self.session_open.argtypes, self.session_open.restype = [c_void_p, c_int32], c_void_p
        self.session_close = library.slm_session_close
        self.session_close.argtypes, self.session_close.restype = [c_void_p], None
        self.position = library.slm_position
        self.position.argtypes, self.position.restype = [c_void_p], c_int32
        self.thread_count = library.slm_thread_count
        self.thread_count.argtypes, self.thread_count.restype = [c_void_p], c_int32
        self.prefill = library.slm_prefill
        self.prefill.argtypes, self.prefill.restype = [c_void_p, ids, c_int32, logits], c_int32
        self.logits = library.slm_logits
        self.logits.argtypes, self.logits.restype = [c_void_p, ids, c_int32, logits], c_int32
        self.reset = library.slm_reset
        self.reset.argtypes, self.reset.restype = [c_void_p], c_int32
        self.sample = library.slm_sample
        self.sample.argtypes, self.sample.restype = [c_void_p, logits, sampling], c_int32

    def error(self, kind: type[SlmError]) -> SlmError:
        """The error that the call which just failed in this thread left."""
        return kind(self._last_error().decode(errors="replace"))
