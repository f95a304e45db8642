"""Who knows whom: imports point down, no pass names an architecture, no file of the core a pass or a target."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

from slmopt.plugins import builtin

ROOT = Path(__file__).resolve().parent.parent
PASSES = sorted((ROOT / "passes").rglob("*.py"))
BACKENDS = sorted((ROOT / "backends").rglob("*.py"))
LINKS = ("passes", "backends", "plugins")  # of the folders beside the package
CORE = sorted(
    path for path in (ROOT / "slmopt").rglob("*.py") if path.relative_to(ROOT / "slmopt").parts[0] not in LINKS
)
TORCH_DEVICE = {"cpu"}  # the name of torch's own device, and of a target
EVERYDAY = {"align", "bit", "clip", "codegen", "opt"}  # architectures whose names are words that code has to use


def words(path: Path) -> Iterator[tuple[int, str]]:
    """Every name and string of a file with its line; not its comments and docstrings, which may name anything."""
    tree = ast.parse(path.read_text())
    documentation = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        and node.body and isinstance(node.body[0], ast.Expr)
    }  # fmt: skip
    for node in ast.walk(tree):
        line = getattr(node, "lineno", 0)
        match node:
            case ast.Constant(value=str(text)) if id(node) not in documentation:
                yield line, text
            case ast.Name(id=name) | ast.Attribute(attr=name) | ast.alias(name=name) | ast.arg(arg=name):
                yield line, name
            case ast.FunctionDef(name=name) | ast.ClassDef(name=name):
                yield line, name


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """The modules of slmopt that a file imports, those inside functions too."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            yield node.lineno, node.module
        elif isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)


def architectures_named(path: Path) -> list[str]:
    """The model types of transformers that a file's code names, alone or as a part of a name."""
    found = []
    for line, text in words(path):
        parts = {text.lower(), *re.split(r"[^a-z0-9]+", text.lower())} - EVERYDAY
        found += [f"{path.name}:{line} {text!r} names {part}" for part in parts if part in CONFIG_MAPPING_NAMES]
    return found


@pytest.mark.parametrize("path", PASSES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_pass_names_an_architecture(path: Path) -> None:
    assert architectures_named(path) == []


@pytest.mark.parametrize("path", BACKENDS, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_backend_names_an_architecture(path: Path) -> None:
    assert architectures_named(path) == []


def test_no_file_of_the_core_names_a_pass_or_a_target() -> None:
    passes, targets = set(builtin.slmopt_passes()), set(builtin.slmopt_backends())
    found = []
    for path in CORE:
        uses_torch = path.parent.name == "frontends" or any(name.split(".")[0] == "torch" for _, name in imports(path))
        for line, text in words(path):
            if text in passes or text in targets - (TORCH_DEVICE if uses_torch else set()):
                found.append(f"{path.relative_to(ROOT)}:{line} {text!r}")
    assert found == []


def test_the_core_imports_no_pass_and_no_backend() -> None:
    above = ("slmopt.passes", "slmopt.backends", "slmopt.plugins.builtin")
    found = [f"{path.relative_to(ROOT)}:{line} {name}" for path in CORE for line, name in imports(path)
             if name.startswith(above)]  # fmt: skip
    assert found == []


def test_passes_and_backends_do_not_know_each_other_nor_the_plugins() -> None:
    found = []
    for paths, above in (
        (PASSES, ("slmopt.backends", "slmopt.plugins", "slmopt.commands", "slmopt.cli", "slmopt.api")),
        (BACKENDS, ("slmopt.passes", "slmopt.plugins", "slmopt.commands", "slmopt.cli", "slmopt.api")),
    ):
        found += [f"{path.relative_to(ROOT)}:{line} {name}" for path in paths for line, name in imports(path)
                  if name.startswith(above)]  # fmt: skip
    assert found == []


def test_the_ir_stands_on_nothing_above_it() -> None:
    """The IR knows only errors and itself; rewriting, the interpreter and calibration know only the IR."""
    ground = ("slmopt.ir", "slmopt.errors")
    found = [f"{path.relative_to(ROOT)}:{line} {name}" for path in sorted((ROOT / "slmopt" / "ir").rglob("*.py"))
             for line, name in imports(path) if name.startswith("slmopt") and not name.startswith(ground)]  # fmt: skip
    assert found == []


def test_an_architecture_that_is_named_is_found(tmp_path: Path) -> None:
    path = tmp_path / "pass.py"
    path.write_text('"""Of llama."""\nif model_type == "gpt2":  # or bloom\n    llama_norm()\n')
    assert len(architectures_named(path)) == 2
