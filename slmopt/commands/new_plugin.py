"""Write an installable package with a pass of its own, its tests and all that makes it a plugin of slmopt.

slmopt-foo becomes the package slmopt_foo with the pass foo, in the directory slmopt-foo.
"""

from __future__ import annotations

import argparse
import keyword
import re
import sys
import tempfile
from importlib.machinery import PathFinder
from importlib.resources import files
from pathlib import Path
from string import Template

from slmopt.errors import InputError

__all__ = ["add_arguments", "run"]

_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?\Z")  # of a distribution: PEP 508
_PASS = re.compile(r"[a-z][a-z0-9-]*\Z")
_FILES = {  # template -> file
    "pyproject.toml": "pyproject.toml",
    "README.md": "README.md",
    "gitignore": ".gitignore",
    "init.py": "$package/__init__.py",
    "plugin.py": "$package/plugin.py",
    "passes.py": "$package/passes.py",
    "test_passes.py": "tests/test_passes.py",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", help="name of the package, such as slmopt-foo")
    parser.add_argument("-o", "--output", metavar="DIR", help="where to write it; default: ./NAME")


def run(arguments: argparse.Namespace) -> int:
    names = _names(arguments.name)
    output = Path(arguments.output or names["distribution"])
    _check_free(output)
    _write({_fill(name, names): text for name, text in _texts(names).items()}, output)
    print(f"{output}: the package {names['package']} with the pass {names['pass_name']}. Next:")
    print(f"  pip install -e '{output}[test]'\n  pytest {output}\n  slmopt passes {names['pass_name']}")
    return 0


def _names(name: str) -> dict[str, str]:
    """What the template's blanks are filled with; InputError where the name cannot be that of a plugin."""
    if not _NAME.match(name):
        raise InputError(f"{name!r} is no name for a package: expected letters, digits, '-', '_' and '.', inside alone")
    distribution = re.sub(r"[-_.]+", "-", name).lower()  # PEP 503
    package, pass_name = distribution.replace("-", "_"), distribution.removeprefix("slmopt-")
    if not _PASS.match(pass_name):
        raise InputError(f"{name!r} gives a pass named {pass_name!r}: the name of a pass begins with a letter")
    _check_package(name, package)
    _check_pass(name, pass_name)
    class_name = "".join(part.capitalize() for part in pass_name.split("-"))
    blank = {"distribution": "", "package": "", "pass_name": "", "class_name": ""}
    used = set(re.findall(r"\w+", _fill(_template("passes.py") + _template("test_passes.py"), blank)))
    if keyword.iskeyword(class_name) or class_name in used:
        raise InputError(f"{name!r} gives a class named {class_name}, which means something else: choose another name")
    return {"distribution": distribution, "package": package, "pass_name": pass_name, "class_name": class_name}


def _check_package(name: str, package: str) -> None:
    if keyword.iskeyword(package) or not package.isidentifier():
        raise InputError(f"{name!r} gives a package {package!r}, which Python cannot import: choose another name")
    if package == "slmopt" or package in sys.stdlib_module_names:
        raise InputError(
            f"{name!r} is the name of a package that exists: choose another, such as slmopt-{name.lower()}"
        )
    found = PathFinder.find_spec(package)
    if found is not None and found.origin is not None:
        raise InputError(f"a package {package!r} is installed already, in {found.origin}: choose another name")


def _check_pass(name: str, pass_name: str) -> None:
    from slmopt.plugins.discovery import registry

    known = registry().passes
    if pass_name in known:
        owner = known[pass_name].owner
        raise InputError(f"{name!r} gives a pass named {pass_name!r}, which {owner} has already: choose another name")


def _template(name: str) -> str:
    return (files("slmopt.plugins") / "template" / f"{name}.template").read_text(encoding="utf-8")


def _fill(text: str, names: dict[str, str]) -> str:
    return Template(text).substitute(names)


def _texts(names: dict[str, str]) -> dict[str, str]:
    texts = {path: _fill(_template(name), names) for name, path in _FILES.items()}
    return {**texts, "$package/py.typed": ""}


def _check_free(output: Path) -> None:
    if output.is_symlink() or (output.exists() and (not output.is_dir() or any(output.iterdir()))):
        raise InputError(f"{output} exists and is not an empty directory: name another with -o")


def _write(texts: dict[str, str], output: Path) -> None:
    """All files or none: they are written beside the output, which is then renamed."""
    try:
        output.absolute().parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=output.absolute().parent, prefix=".new-plugin-") as beside:
            whole = Path(beside) / "plugin"
            for name, text in texts.items():
                path = whole / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(text, encoding="utf-8")
            whole.rename(output)
    except OSError as error:
        raise InputError(f"cannot write {output}: {error.strerror}") from error
