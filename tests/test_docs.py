"""The examples of docs/*.md run as they are printed: Python blocks of a page one after the other, `slmopt` commands."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted((ROOT / "docs").glob("*.md"))
KINDS = {"python", "sh", "text", "toml", "c", "json", "mermaid", ""}  # of these, python and sh are run
TEXT = "def add(a, b):\n    return a + b\n\n\nclass Stack:\n    def push(self, item):\n        self.all.append(item)\n"


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, the number of its first line, and its text."""

    kind: str
    line: int
    text: str


def blocks_of(page: Path) -> Iterator[Block]:
    text = page.read_text(encoding="utf-8")
    for found in re.finditer(r"(?ms)^```(\w*)\n(.*?)^```$", text):
        yield Block(found[1], text.count("\n", 0, found.start(2)) + 1, found[2])


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder with a model and a text, as the pages name them."""
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "pycode").symlink_to(ROOT / "slmopt" / "models" / "pycode")
    (tmp_path / "text.txt").write_text(TEXT)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_pages_have_blocks_of_known_kinds() -> None:
    assert PAGES
    for page in PAGES:
        assert page.read_text(encoding="utf-8").count("\n```") % 2 == 0, f"{page.name}: a block is not closed"
        unknown = [f"{page.name}:{block.line} {block.kind}" for block in blocks_of(page) if block.kind not in KINDS]
        assert not unknown


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_python_runs_as_it_is_printed(page: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = type(sys)(f"docs_{page.stem.replace('-', '_')}")  # dataclasses look their module up
    monkeypatch.setitem(sys.modules, module.__name__, module)
    names: dict[str, Any] = module.__dict__
    for block in blocks_of(page):
        if block.kind == "python":
            source = "\n" * (block.line - 1) + block.text  # tracebacks give the page's line
            exec(compile(source, str(page), "exec"), names)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_commands_run_as_they_are_printed(page: Path, folder: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    for block in blocks_of(page):
        lines = block.text.replace("\\\n", "").splitlines() if block.kind == "sh" else []
        for line in (line for line in lines if line.startswith("slmopt")):
            script = f'slmopt() {{ "{sys.executable}" -m slmopt "$@"; }}\nset -o pipefail\n{line}'
            done = subprocess.run(["bash", "-c", script], cwd=folder, env=environment, capture_output=True, text=True)
            assert done.returncode == 0, f"{page.name}:{block.line}: {line}\n{done.stdout}{done.stderr}"
