"""What is kept on disk: equal inputs are made once, damage is made good, and a cache is never needed."""

from __future__ import annotations

from pathlib import Path

import pytest

from slmopt.cache import cache_directory, keep, keep_file
from slmopt.native import native_library


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SLMOPT_CACHE", str(tmp_path / "kept"))
    return tmp_path / "kept"


def test_equal_inputs_are_made_once(directory: Path) -> None:
    made: list[bytes] = []

    def make() -> bytes:
        made.append(b"")
        return b"result %d" % len(made)

    assert keep("kind", b"a", make) == keep("kind", b"a", make) == b"result 1"
    assert keep("kind", b"b", make) == b"result 2"
    assert keep("other kind", b"a", make) == b"result 3"


@pytest.mark.parametrize("damage", [b"", b"short", b"x" * 100])
def test_a_damaged_file_is_made_again(directory: Path, damage: bytes) -> None:
    keep("kind", b"a", lambda: b"right")
    (path,) = (entry for entry in directory.rglob("*") if entry.is_file())
    path.write_bytes(damage)
    assert keep("kind", b"a", lambda: b"again") == b"again"
    assert keep("kind", b"a", lambda: b"never") == b"again"


def test_off_and_a_directory_that_cannot_be_written_keep_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    for place in ("off", str(tmp_path / "file")):
        monkeypatch.setenv("SLMOPT_CACHE", place)
        assert keep("kind", b"a", lambda: b"1") == b"1"
        assert keep("kind", b"a", lambda: b"2") == b"2"
        assert keep_file("kind", b"a", lambda path: None) is None


def test_the_default_is_the_users_cache_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SLMOPT_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_directory() == tmp_path / "slmopt"


def test_a_c_routine_is_built_with_and_without_a_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "twice.c"
    source.write_text("int twice(int x) { return 2 * x; }\n")
    for place in (str(tmp_path / "kept"), "off"):
        monkeypatch.setenv("SLMOPT_CACHE", place)
        native_library.cache_clear()
        library = native_library(source)
        assert library is not None and library.twice(21) == 42


def test_without_a_compiler_or_with_wrong_c_there_is_no_routine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "wrong.c"
    source.write_text("this is no C\n")
    assert native_library(source) is None
    monkeypatch.setenv("CC", "no-such-compiler")
    native_library.cache_clear()
    assert native_library(source) is None
    native_library.cache_clear()
