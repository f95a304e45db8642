"""The artifact directory: written aside, renamed when whole, byte for byte the same for the same inputs.

libNAME.so  weights.bin  slm.h  NAME.pc  tokenizer.json  module.slm  ledger.json  manifest.json
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import hashlib
import json
import os
import re
import secrets
import shutil
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, BinaryIO, Self, cast

from slmopt.errors import ArtifactError, InputError
from slmopt.link import link_library, write_development_files

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from typing_extensions import Buffer

__all__ = [
    "ArtifactWriter",
    "WeightsWriter",
    "check_output",
    "link_library",
    "read_manifest",
    "read_weights_header",
    "verify_weights",
    "write_development_files",
]

MANIFEST = "manifest.json"
WEIGHTS = "weights.bin"
WEIGHTS_HEADER = 4096  # bytes before the data; SLM_WEIGHTS_HEADER of runtime/c/program.h
WEIGHTS_VERSION = 1
_HEADER = struct.Struct("<4sIQ64s")  # magic, version, size of the file, sha256 of the data in hex
_PIECE = 4 << 20  # bytes of one write: a page cache that has huge pages fills them, and the runtime maps them as such
_RENAME_EXCHANGE = 2  # linux/fs.h
_AT_FDCWD = -100


def check_output(path: str | os.PathLike[str]) -> None:
    """InputError where no artifact can be written to `path`: found out before a compile rather than after it."""
    with suppress(_NothingToWrite), ArtifactWriter(path):
        raise _NothingToWrite


class _NothingToWrite(Exception):  # noqa: N818 - no error: it makes a writer leave without publishing
    pass


class ArtifactWriter:
    """Writes an artifact into a temporary directory beside `path` and renames it into place on a clean exit.

    An older artifact at `path` is replaced in one step and stays whole until then; any exception removes the temporary
    and leaves the old one. A killed writer leaves its temporary behind, which the next one to the same path removes.

        with ArtifactWriter("build/stories") as artifact:
            with artifact.weights() as weights:
                offset = weights.append(packed)
            artifact.write_json("manifest.json", manifest)

    Raises InputError on entry where `path` cannot be written, or holds something that is not an artifact.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(os.path.realpath(path))
        self.directory = self.path  # the temporary, from entry to exit
        self._lock: int | None = None

    def __enter__(self) -> Self:
        with _writing(self.path):
            _check_replaceable(self.path)
            self.path.parent.mkdir(parents=True, exist_ok=True)
            _recover(self.path)
            _remove_stale(self.path)
            self.directory, self._lock = _create_temporary(self.path)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._publish()
        finally:
            shutil.rmtree(self.directory, ignore_errors=True)  # what failed, or the artifact that was replaced
            self.directory = self.path
            if self._lock is not None:
                os.close(self._lock)
                self._lock = None

    def file(self, name: str) -> Path:
        """Where the artifact's file `name` is being written."""
        if name != os.path.basename(name) or name in ("", ".", ".."):
            raise ArtifactError(f"an artifact holds plain files, and {name!r} is not a file name")
        return self.directory / name

    def write(self, name: str, content: str | Buffer) -> None:
        """Writes one whole file; text is UTF-8."""
        with _writing(self.path):
            self.file(name).write_bytes(content.encode() if isinstance(content, str) else content)

    def write_json(self, name: str, value: Mapping[str, Any]) -> None:
        """Writes JSON with sorted keys, so that equal values are equal files."""
        self.write(name, json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n")

    def copy(self, source: str | os.PathLike[str], name: str | None = None) -> None:
        """Copies a file's content, not its times."""
        with _writing(self.path):
            shutil.copyfile(source, self.file(name or os.path.basename(source)))

    def weights(self) -> WeightsWriter:
        """The writer of weights.bin, itself a context manager."""
        return WeightsWriter(self.file(WEIGHTS))

    def _publish(self) -> None:
        if not self.file(MANIFEST).is_file():
            raise ArtifactError(f"the artifact for {self.path} is not whole: {MANIFEST} was not written")
        with _writing(self.path):
            _check_replaceable(self.path)
            for entry in sorted(self.directory.iterdir()):
                _sync(entry)
            _sync(self.directory)
            _replace(self.directory, self.path)
            _sync(self.path.parent)


class WeightsWriter:
    """Streams weights.bin: a header page, then aligned tensors, hashed on the way. Memory: one tensor, a few MB."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._sha = hashlib.sha256()
        self._file: BinaryIO | None = None
        self._pending = bytearray()  # what is not written yet: whole pieces go to the file
        self.size = 0  # bytes of data so far, the header not counted; final after exit: `weights_bytes` of the program
        self.hash = ""  # sha256 of the data, hex; known after exit: `weights_hash` of the program

    def __enter__(self) -> Self:
        with _writing(self._path):
            self._file = open(self._path, "wb")
        self._pending += bytes(WEIGHTS_HEADER)
        return self

    def append(self, data: Buffer | NDArray[Any], align: int = 64) -> int:
        """Adds C-contiguous `data` at the next multiple of `align`; returns its offset from the frame's `weights`."""
        if align < 1 or align & (align - 1) or align > WEIGHTS_HEADER:
            raise ArtifactError(f"weights can be aligned to a power of two up to {WEIGHTS_HEADER}, not to {align}")
        self._write(bytes(-self.size % align))
        offset = self.size
        view = memoryview(cast("Buffer", data))
        self._write(view.cast("B") if view.nbytes else b"")
        return offset

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._file is None:
            return
        try:
            if kind is None:
                self._write(bytes(-self.size % WEIGHTS_HEADER))  # whole pages: a kernel may read to the end of a vector
                self.hash = self._sha.hexdigest()
                with _writing(self._path):
                    self._file.write(self._pending)
                    self._file.seek(0)
                    header = _HEADER.pack(b"SLMW", WEIGHTS_VERSION, WEIGHTS_HEADER + self.size, self.hash.encode())
                    self._file.write(header)
                    self._file.flush()
        finally:
            with suppress(OSError):  # closing writes what is left of a file that is given up
                self._file.close()
            self._file = None

    def _write(self, data: bytes | memoryview) -> None:
        if self._file is None:
            raise ArtifactError("weights are appended inside `with artifact.weights() as weights:`")
        self._sha.update(data)
        self.size += len(data)
        start = 0
        while len(self._pending) + len(data) - start >= _PIECE:
            stop = start + _PIECE - len(self._pending)
            self._pending += data[start:stop]
            with _writing(self._path):
                self._file.write(self._pending)
            self._pending.clear()
            start = stop
        self._pending += data[start:]


def read_manifest(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The manifest of the artifact at `path`. InputError where there is none, ArtifactError where it is damaged."""
    directory = Path(path)
    if not directory.is_dir():
        raise InputError(
            f"there is no artifact at {directory}: {'a file' if directory.exists() else 'nothing'} is there"
        )
    file = directory / MANIFEST
    if not file.is_file():
        raise InputError(f"{directory} is not an artifact: it has no {MANIFEST}; `slmopt compile` makes one")
    try:
        manifest = json.loads(file.read_bytes())
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{file} cannot be read: {error}; compile the model again") from error
    if not isinstance(manifest, dict):
        raise ArtifactError(f"{file} is damaged: a JSON object was expected; compile the model again")
    return manifest


def verify_weights(path: str | os.PathLike[str]) -> str:
    """Reads all of weights.bin and compares it with the hash in its header; returns the hash. ArtifactError if damaged.

    Opening an artifact does not do this: it maps the file and reads nothing.
    """
    file = Path(path) / WEIGHTS
    expected = read_weights_header(path)
    with open(file, "rb") as stream:
        stream.seek(WEIGHTS_HEADER)
        actual = hashlib.file_digest(stream, "sha256").hexdigest()
    if expected != actual:
        raise ArtifactError(f"{file} is damaged: its content does not match the hash in its header; compile again")
    return actual


def read_weights_header(path: str | os.PathLike[str]) -> str:
    """The hash that the header of weights.bin gives of its data. ArtifactError where the file cannot be whole."""
    file = Path(path) / WEIGHTS
    try:
        with open(file, "rb") as stream:
            header = stream.read(WEIGHTS_HEADER)
            length = os.fstat(stream.fileno()).st_size
    except OSError as error:
        raise ArtifactError(f"{file} cannot be read: {error.strerror}") from error
    if len(header) < WEIGHTS_HEADER or header[:4] != b"SLMW":
        raise ArtifactError(f"{file} is not a weights file of slmopt")
    _, version, size, digest = _HEADER.unpack_from(header)
    if version != WEIGHTS_VERSION:
        raise ArtifactError(f"{file} has format version {version}, expected {WEIGHTS_VERSION}")
    if size != length:
        raise ArtifactError(f"{file} is damaged: it has {length} bytes and should have {size}; compile again")
    return str(digest.decode(errors="replace"))


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Turns the system's refusals (permissions, a full disk, ...) into an error that names what was being written."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise InputError(f"cannot write an artifact to {path}: {reason}; make room or choose another output") from error


def _check_replaceable(path: Path) -> None:
    """What lies at `path` is nothing, an empty directory or an artifact: nobody loses anything else to a compile."""
    if not os.path.lexists(path):
        return
    if not path.is_dir():
        raise InputError(f"cannot write an artifact to {path}: a file is there; choose another output")
    if any(path.iterdir()) and not (path / MANIFEST).is_file():
        raise InputError(f"{path} holds files and is not an artifact (no {MANIFEST}); choose another output")


def _create_temporary(path: Path) -> tuple[Path, int | None]:
    """A fresh directory beside `path`, with the lock that says its writer lives."""
    while True:
        temporary = path.parent / f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}.partial"
        temporary.mkdir()
        try:
            descriptor = os.open(temporary, os.O_RDONLY | os.O_DIRECTORY)
        except FileNotFoundError:
            continue  # another writer took it for stale before it was locked
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)  # the same, right now
            continue
        except OSError:
            os.close(descriptor)  # a file system without locks: nobody will take the directory for stale either
            return temporary, None
        if temporary.exists():
            return temporary, descriptor
        os.close(descriptor)


def _remove_stale(path: Path) -> None:
    """Removes temporaries of writers to `path` that died: whoever can lock one knows that its writer is gone."""
    pattern = re.compile(rf"\.{re.escape(path.name)}\.\d+\.[0-9a-f]{{8}}\.partial")
    for entry in list(path.parent.iterdir()):
        if not pattern.fullmatch(entry.name):
            continue
        try:
            descriptor = os.open(entry, os.O_RDONLY | os.O_DIRECTORY)
        except OSError:
            continue  # gone meanwhile, or not ours
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(entry, ignore_errors=True)
        except OSError:
            pass  # its writer lives
        finally:
            os.close(descriptor)


def _aside(path: Path) -> Path:
    return path.parent / f".{path.name}.old"


def _recover(path: Path) -> None:
    """Finishes a replacement without RENAME_EXCHANGE that was killed between its two renames."""
    aside = _aside(path)
    if aside.is_dir():
        if path.exists():
            shutil.rmtree(aside, ignore_errors=True)
        else:
            os.rename(aside, path)


def _replace(new: Path, path: Path) -> None:
    """Puts the directory `new` at `path`; the old one, if any, ends up removed."""
    try:
        os.rename(new, path)  # succeeds where nothing or an empty directory is
        return
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
    if not _exchange(new, path):
        os.rename(path, _aside(path))
        os.rename(new, path)
        shutil.rmtree(_aside(path), ignore_errors=True)


def _exchange(first: Path, second: Path) -> bool:
    """Swaps two directories in one step (renameat2); False where the system or the file system cannot."""
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if renameat2 is None:
        return False
    if renameat2(_AT_FDCWD, os.fsencode(first), _AT_FDCWD, os.fsencode(second), _RENAME_EXCHANGE) == 0:
        return True
    code = ctypes.get_errno()
    if code in (errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP):
        return False
    raise OSError(code, os.strerror(code), str(second))


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
