"""The artifact as a program: a C program links it, bytes repeat, nothing half-written stays, threads do not meddle."""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

import slmopt

BUNDLED = Path(slmopt.__file__).parent / "models" / "pycode"
PROMPT = [0, 5, 9, 300, 17]


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundled model at 8 bits."""
    return slmopt.compile(BUNDLED, "cpu", tmp_path_factory.mktemp("artifact") / "pycode", recipe="w8")


def content(directory: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(directory.iterdir())}


def test_a_c_program_prints_the_tokens_that_python_gets(artifact: Path, tmp_path: Path) -> None:
    source = Path(__file__).parent / "runtime" / "generate.c"
    flags = subprocess.run(
        ["pkg-config", "--cflags", "--libs", str(artifact / "pycode.pc")], check=True, capture_output=True, text=True
    ).stdout.split()
    program = tmp_path / "generate"
    options = ["-std=c11", "-Wall", "-Wextra", "-Werror"]
    subprocess.run(["cc", *options, str(source), "-o", str(program), *flags], check=True)
    command = [str(program), str(artifact), "40", *map(str, PROMPT)]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    with slmopt.open(artifact) as model:
        assert list(map(int, printed.split())) == list(model.generate_ids(PROMPT, 40))


def test_the_library_needs_libc_and_libm_alone(artifact: Path) -> None:
    lines = subprocess.run(["ldd", str(artifact / "libpycode.so")], check=True, capture_output=True, text=True).stdout
    names = {Path(line.split()[0]).name.split(".")[0] for line in lines.splitlines()}
    assert names <= {"linux-vdso", "libm", "libc", "libpthread", "ld-linux-x86-64"}
    symbols = subprocess.run(
        ["nm", "-D", "--defined-only", str(artifact / "libpycode.so")], check=True, capture_output=True, text=True
    ).stdout
    assert all(line.split()[-1].startswith("slm_") for line in symbols.splitlines())


def test_the_same_model_gives_the_same_bytes(artifact: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "slmopt", "compile", str(BUNDLED), "--recipe", "w8", "--name", "pycode"]
    environment = {**os.environ, "PYTHONHASHSEED": "7"}
    subprocess.run([*command, "-o", str(tmp_path / "again")], check=True, capture_output=True, env=environment)
    assert content(tmp_path / "again") == content(artifact)


@pytest.mark.parametrize("seed", range(4))
def test_a_killed_compile_leaves_the_old_artifact_or_none(artifact: Path, tmp_path: Path, seed: int) -> None:
    output = tmp_path / "out" / "pycode"
    if seed % 2:
        shutil.copytree(artifact, output)
    before = content(output) if output.exists() else None
    command = [sys.executable, "-m", "slmopt", "compile", str(BUNDLED), "--recipe", "f32", "--no-verify"]
    process = subprocess.Popen([*command, "-o", str(output)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while process.poll() is None and not list(tmp_path.glob("out/.pycode.*.partial")):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    time.sleep(random.Random(seed).uniform(0, 1.5))  # somewhere inside the writing
    process.send_signal(signal.SIGKILL)
    process.wait()
    if process.returncode == 0:
        assert (output / "manifest.json").is_file()
    elif before is None:
        assert not output.exists()
    else:
        assert content(output) == before


def test_two_sessions_in_two_threads_give_what_they_give_alone(artifact: Path) -> None:
    prompts = [PROMPT, [0, 44, 12]]
    with slmopt.open(artifact) as model:
        alone = [list(model.generate_ids(prompt, 60)) for prompt in prompts]
        found: list[list[int]] = [[], []]

        def work(index: int) -> None:
            found[index] = list(model.generate_ids(prompts[index], 60))

        workers = [threading.Thread(target=work, args=(index,)) for index in range(2)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
    assert found == alone


@pytest.mark.parametrize("threads", [1, 2, 3, 8])
def test_the_number_of_threads_changes_no_bit(artifact: Path, threads: int) -> None:
    with slmopt.open(artifact) as model:
        with model.session(threads=1) as single:
            expected = single.logits(range(3, 40))
        with model.session(threads=threads) as session:
            assert (session.logits(range(3, 40)) == expected).all()
