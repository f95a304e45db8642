"""What is slow to make and depends on nothing but its inputs, kept on disk by a hash of them.

The environment's SLMOPT_CACHE names the directory, `off` keeps nothing; by default it is `slmopt` in the user's cache
directory. Nothing in it is ever needed: it may be deleted at any time.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

__all__ = ["cache_directory", "cache_path", "keep", "keep_file", "write_file"]

_DIGEST = hashlib.sha256().digest_size


def cache_directory() -> Path | None:
    """Where results are kept, or None."""
    named = os.environ.get("SLMOPT_CACHE", "")
    if named == "off":
        return None
    if named:
        return Path(named)
    base = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(base) if base else Path.home() / ".cache") / "slmopt"


def keep(
    kind: str, inputs: bytes, make: Callable[[], bytes], holds: Callable[[bytes], bool] = lambda data: True
) -> bytes:
    """What `make` gives, or gave before for equal `inputs`. A file that is damaged is made again.

    `inputs` must hold everything that `make` depends on, versions included; what it cannot know before goes into the
    result, and `holds` says whether it is still so. That the directory cannot be written is no error.
    """
    path = cache_path(kind, inputs)
    if path is None:
        return make()
    try:
        stored = path.read_bytes()
    except OSError:
        stored = b""
    digest, data = stored[:_DIGEST], stored[_DIGEST:]
    if len(digest) == _DIGEST and hashlib.sha256(data).digest() == digest and holds(data):
        return data
    data = make()
    write_file(path, hashlib.sha256(data).digest() + data)
    return data


def keep_file(kind: str, inputs: bytes, make: Callable[[Path], None]) -> Path | None:
    """A file that `make` writes, or wrote before for equal `inputs`; None where no file can be kept."""
    path = cache_path(kind, inputs)
    if path is None:
        return None
    if path.is_file():
        return path
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as directory:
            made = Path(directory) / path.name
            make(made)
            made.replace(path)
    except OSError:
        return None
    return path


def cache_path(kind: str, inputs: bytes) -> Path | None:
    """Where a file for these `inputs` lies, for those that write it themselves; None where nothing is kept."""
    directory = cache_directory()
    name = hashlib.sha256(kind.encode() + b"\0" + inputs).hexdigest()
    return None if directory is None else directory / kind / name[:2] / name


def write_file(path: Path, data: bytes) -> None:
    """Replace a kept file at once: a reader sees all of it or nothing. Nothing is left where it cannot be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as directory:
            written = Path(directory) / path.name
            written.write_bytes(data)
            written.replace(path)
    except OSError:
        return
