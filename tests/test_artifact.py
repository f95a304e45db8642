"""Writing artifacts: whole or not at all, the same bytes for the same input, and nothing of anyone else's lost."""

from __future__ import annotations

import errno
import filecmp
import hashlib
import os
import random
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import slmopt.artifact
from slmopt.artifact import WEIGHTS_HEADER, ArtifactWriter, read_manifest, verify_weights
from slmopt.errors import ArtifactError, InputError
from slmopt.link import c_compiler, link_library, write_development_files


def write(path: Path, mark: str = "new") -> None:
    with ArtifactWriter(path) as artifact:
        artifact.write("mark", mark)
        artifact.write_json("manifest.json", {"name": mark, "b": 1, "a": [2, "é"]})


def contents(directory: Path) -> list[str]:
    return sorted(entry.name for entry in directory.iterdir())


def test_an_artifact_appears_whole(tmp_path: Path) -> None:
    path = tmp_path / "build" / "stories"
    with ArtifactWriter(path) as artifact:
        assert not path.exists() and artifact.directory.parent == path.parent
        artifact.write("bytes", b"\0\1")
        artifact.write_json("manifest.json", {"name": "stories", "b": 1, "a": [2, "é"]})
        artifact.copy(__file__, "copied.py")
    assert artifact.directory == path and contents(path.parent) == ["stories"]
    assert contents(path) == ["bytes", "copied.py", "manifest.json"]
    assert filecmp.cmp(path / "copied.py", __file__, shallow=False)
    assert (path / "manifest.json").read_text().splitlines()[1] == '  "a": ['
    assert read_manifest(path) == {"name": "stories", "b": 1, "a": [2, "é"]}
    assert path.stat().st_mode & 0o777 == tmp_path.joinpath("build").stat().st_mode & 0o777


def test_an_old_artifact_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "stories"
    write(path, "old")
    (path / "extra").write_text("of the old one")
    with ArtifactWriter(path) as artifact:
        artifact.write("mark", "new")
        artifact.write_json("manifest.json", {})
        assert (path / "mark").read_text() == "old"
    assert contents(tmp_path) == ["stories"] and contents(path) == ["manifest.json", "mark"]
    assert (path / "mark").read_text() == "new"


def test_an_old_artifact_is_replaced_without_exchange(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slmopt.artifact, "_exchange", lambda first, second: False)
    write(tmp_path / "stories", "old")
    write(tmp_path / "stories", "new")
    assert contents(tmp_path) == ["stories"] and (tmp_path / "stories" / "mark").read_text() == "new"
    os.rename(tmp_path / "stories", tmp_path / ".stories.old")  # killed between the two renames
    with pytest.raises(KeyError), ArtifactWriter(tmp_path / "stories"):
        raise KeyError
    assert (tmp_path / "stories" / "mark").read_text() == "new" and contents(tmp_path) == ["stories"]


def test_an_exception_leaves_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "stories"
    for expected in ([], ["stories"]):
        with pytest.raises(KeyboardInterrupt), ArtifactWriter(path) as artifact:
            artifact.write("mark", "half")
            raise KeyboardInterrupt
        assert contents(tmp_path) == expected
        write(path, "old")
    assert (path / "mark").read_text() == "old"
    with pytest.raises(ArtifactError, match=r"not whole: manifest\.json"), ArtifactWriter(path) as artifact:
        artifact.write("mark", "new")
    assert (path / "mark").read_text() == "old" and contents(tmp_path) == ["stories"]


def test_what_is_no_artifact_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "letter").write_text("mine")
    (tmp_path / "empty").mkdir()
    for name, message in (("file", "a file is there"), ("home", "holds files and is not an artifact")):
        with pytest.raises(InputError, match=message):
            write(tmp_path / name)
    write(tmp_path / "empty")
    assert contents(tmp_path) == ["empty", "file", "home"] and contents(tmp_path / "home") == ["letter"]
    with pytest.raises(InputError, match="holds files"), ArtifactWriter(tmp_path / "late") as artifact:
        artifact.write_json("manifest.json", {})
        (tmp_path / "late").mkdir()
        (tmp_path / "late" / "letter").write_text("mine")  # appeared while the compiler ran
    assert contents(tmp_path / "late") == ["letter"]


def test_a_link_is_written_through(tmp_path: Path) -> None:
    write(tmp_path / "real", "old")
    (tmp_path / "link").symlink_to("real")
    write(tmp_path / "link", "new")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "real" / "mark").read_text() == "new"


def test_unwritable_output_is_refused_before_any_work(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file" / "stories", Path("/proc/stories"), tmp_path / ("x" * 300)):
        with pytest.raises(InputError, match="cannot write an artifact to"), ArtifactWriter(path):
            pytest.fail("work began")


def test_a_full_disk_is_told_and_leaves_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "stories"
    write(path, "old")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, before[1]))  # no file grows further
    try:
        for size in (60_000, 40_000):  # fails while appending, and fits
            with pytest.raises(InputError, match="File too large; make room"), ArtifactWriter(path) as artifact:
                with artifact.weights() as weights:
                    weights.append(bytes(size))
                artifact.write("large", bytes(60_000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert contents(tmp_path) == ["stories"] and (path / "mark").read_text() == "old"


@pytest.mark.parametrize("name", ["../x", "a/b", "", "..", "/x"])
def test_files_stay_in_the_artifact(tmp_path: Path, name: str) -> None:
    with pytest.raises(ArtifactError, match="not a file name"), ArtifactWriter(tmp_path / "stories") as artifact:
        artifact.write(name, "")


def test_temporaries_of_the_dead_are_removed_and_those_of_the_living_kept(tmp_path: Path) -> None:
    path = tmp_path / "stories"
    (tmp_path / ".stories.123.0123abcd.partial").mkdir()
    (tmp_path / ".stories.123.0123abcd.partial" / "weights.bin").write_text("half")
    (tmp_path / ".other.123.0123abcd.partial").mkdir()
    with ArtifactWriter(path) as first:
        first.write("mark", "first")
        write(path, "second")
        assert (first.directory / "mark").exists()
        first.write_json("manifest.json", {})
    assert contents(tmp_path) == [".other.123.0123abcd.partial", "stories"]
    assert (path / "mark").read_text() == "first"


WRITER = """
import sys
from slmopt.artifact import ArtifactWriter
print("ready", flush=True)
for number in range(10**9):
    with ArtifactWriter(sys.argv[1]) as artifact:
        with artifact.weights() as weights:
            for part in range(20):
                weights.append(bytes([number % 256]) * 20000)
        artifact.write("mark", str(number % 256))
        artifact.write_json("manifest.json", {"hash": weights.hash})
"""


def test_a_killed_writer_leaves_a_whole_artifact_or_none(tmp_path: Path) -> None:
    path = tmp_path / "stories"
    dice = random.Random(7)
    seen = 0
    for _ in range(12):
        command = [sys.executable, "-c", WRITER, str(path)]
        writer = subprocess.Popen(
            command, stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        )
        assert writer.stdout is not None
        assert writer.stdout.readline() == b"ready\n"
        time.sleep(dice.random() * 0.05)
        writer.send_signal(signal.SIGKILL)
        writer.wait()
        writer.stdout.close()
        if path.exists():
            seen += 1
            assert contents(path) == ["manifest.json", "mark", "weights.bin"]
            assert read_manifest(path)["hash"] == verify_weights(path)
            assert (path / "weights.bin").read_bytes()[WEIGHTS_HEADER] == int((path / "mark").read_text())
    assert seen > 0
    write(path)
    assert contents(tmp_path) == ["stories"]


def test_weights_are_aligned_hashed_and_found_again(tmp_path: Path) -> None:
    arrays: list[NDArray[Any]] = [
        np.arange(10, dtype=np.int8),
        np.ones((3, 5), np.float32),
        np.zeros((0, 4), np.float32),
        np.arange(7),
    ]
    with ArtifactWriter(tmp_path / "a") as artifact:
        with artifact.weights() as weights:
            offsets = [weights.append(array) for array in arrays]
            page = weights.append(b"page", align=4096)
        artifact.write_json("manifest.json", {})
    assert page == 4096 and [offset % 64 for offset in offsets] == [0] * 4
    content = (tmp_path / "a" / "weights.bin").read_bytes()
    data = content[WEIGHTS_HEADER:]
    for offset, array in zip(offsets, arrays, strict=True):
        assert data[offset : offset + array.nbytes] == array.tobytes()
    assert weights.size == len(data) == 8192
    assert weights.hash == hashlib.sha256(data).hexdigest() == verify_weights(tmp_path / "a")
    assert content[:4] == b"SLMW" and content[80:WEIGHTS_HEADER] == bytes(WEIGHTS_HEADER - 80)
    assert int.from_bytes(content[8:16], "little") == len(content)


@pytest.mark.parametrize("align", [0, 3, 8192])
def test_odd_alignments_are_refused(tmp_path: Path, align: int) -> None:
    with pytest.raises(ArtifactError, match="power of two"), ArtifactWriter(tmp_path / "a") as artifact:
        artifact.weights().append(b"x", align)


def test_damaged_weights_are_found(tmp_path: Path) -> None:
    write(tmp_path / "a")
    with pytest.raises(ArtifactError, match="cannot be read: No such file"):
        verify_weights(tmp_path / "a")
    file = tmp_path / "a" / "weights.bin"
    with slmopt.artifact.WeightsWriter(file) as weights:
        weights.append(bytes(10000))
    whole = file.read_bytes()
    for content, message in (
        (whole[:100], "not a weights file"),
        (b"x" + whole[1:], "not a weights file"),
        (whole[:4] + b"\2" + whole[5:], "format version 2"),
        (whole[:-1], "is damaged"),
        (whole[:9000] + b"x" + whole[9001:], "is damaged"),
    ):
        file.write_bytes(content)
        with pytest.raises(ArtifactError, match=message):
            verify_weights(tmp_path / "a")


PROGRAM = Path(__file__).parent / "runtime" / "program.c"
FLAGS = [f'-DWEIGHTS_HASH="{"0" * 64}"', "-DWEIGHTS_BYTES=4096"]


def test_libraries_are_reproducible(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "extra.c").write_text("int extra(void); int extra(void) { return 1; }\n")
    object_file = tmp_path / "kernels.o"
    compile_extra = [*c_compiler(), "-fPIC", "-c", str(tmp_path / "extra.c"), "-o", str(object_file)]
    subprocess.run(compile_extra, check=True)
    flags = [*FLAGS, "-g"]
    shim = tmp_path / "shim.c"
    shim.write_text("int shim(void);\nint shim(void) { return 2; }\n")
    first = link_library([object_file], PROGRAM, tmp_path / "first.so", "stories", flags=flags, sources=[shim])
    with pytest.raises(ArtifactError, match=r"two files to link are called shim\.c"):
        link_library([], PROGRAM, tmp_path / "twice.so", "stories", flags=flags, sources=[shim, shim])
    (tmp_path / "elsewhere").mkdir()
    moved = tmp_path / "elsewhere" / "renamed.o"
    moved.write_bytes(object_file.read_bytes())
    monkeypatch.chdir(tmp_path / "elsewhere")
    second = link_library(["renamed.o"], PROGRAM, "second.so", "stories", flags=flags, sources=[shim])
    assert first.read_bytes() == second.read_bytes()
    assert str(tmp_path).encode() not in first.read_bytes() and b"slmopt-link-" not in first.read_bytes()
    symbols = subprocess.run(["nm", "-D", "--defined-only", str(first)], check=True, capture_output=True, text=True)
    assert all(line.split()[-1].startswith("slm_") for line in symbols.stdout.splitlines())


def test_compiler_trouble_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = tmp_path / "program.c"
    broken.write_text("#error no program here\n")
    with pytest.raises(ArtifactError, match=r"(?s)compiler failed \(exit 1\).*no program here"):
        link_library([], broken, tmp_path / "x.so", "stories")
    broken.write_text('#include "program.h"\nconst int unused = 1;\n')
    with pytest.raises(ArtifactError, match="slm_this_program"):  # at the link, not when the library is opened
        link_library([], broken, tmp_path / "x.so", "stories")
    assert not (tmp_path / "x.so").exists()
    monkeypatch.setenv("CC", "no-such-compiler -m64")
    with pytest.raises(InputError, match="'no-such-compiler' was not found; install gcc or clang"):
        link_library([], PROGRAM, tmp_path / "x.so", "stories", flags=FLAGS)
    with pytest.raises(InputError, match="cannot be run"):
        link_library([], PROGRAM, tmp_path / "x.so", "stories", flags=FLAGS, compiler=["no-such-compiler"])
    monkeypatch.setenv("CC", "gcc -DEXTRA")
    assert c_compiler() == ["gcc", "-DEXTRA"]
    for name in ("", "a/b", "-x", "a b"):
        with pytest.raises(InputError, match="cannot name a library"):
            write_development_files(tmp_path, name)


def test_a_failed_exchange_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(first: Path, second: Path) -> bool:
        raise OSError(errno.EACCES, os.strerror(errno.EACCES), str(second))

    write(tmp_path / "stories", "old")
    monkeypatch.setattr(slmopt.artifact, "_exchange", refuse)
    with pytest.raises(InputError, match="Permission denied"):
        write(tmp_path / "stories", "new")
    assert (tmp_path / "stories" / "mark").read_text() == "old" and contents(tmp_path) == ["stories"]
