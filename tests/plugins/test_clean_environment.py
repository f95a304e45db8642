"""The example plugin in an environment of its own: installed by pip, used from both sides, uninstalled without a trace.

The environment sees the packages of the one that runs the tests, for nothing is downloaded, and has slmopt and the
example installed from copies of their folders.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.plugins.relu2 import save_relu2

ROOT = Path(__file__).resolve().parent.parent.parent
EXAMPLE = ROOT / "tests" / "plugin_example"

pytestmark = pytest.mark.skipif(
    platform.machine() not in ("x86_64", "AMD64"), reason="the compiled model runs on x86-64"
)


class Environment:
    """A virtual environment that sees the packages of this one, and a folder to work in."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(directory / "venv")], check=True)
        self.python = directory / "venv" / "bin" / "python"
        self.site = Path(self.run("-c", "import sysconfig; print(sysconfig.get_path('purelib'))").stdout.strip())
        ours = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
        (self.site / "tests.pth").write_text("".join(f"{path}\n" for path in sorted(ours)))

    def run(self, *arguments: str, code: int = 0) -> subprocess.CompletedProcess[str]:
        """Run its Python, away from the repository, and check the exit code."""
        hidden = ("PYTHONPATH", "PYTHONHOME", "SLMOPT_DISABLE_PLUGINS")
        environment: Mapping[str, str] = {
            **{name: value for name, value in os.environ.items() if name not in hidden and name[:4] != "PIP_"},
            "PYTHONDONTWRITEBYTECODE": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1", "OMP_NUM_THREADS": "1",
            "SLMOPT_CACHE": str(self.directory / "cache"),
        }  # fmt: skip
        command = [str(self.python), *arguments]
        done = subprocess.run(command, cwd=self.directory, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == code, done.stdout + done.stderr
        return done

    def slmopt(self, *arguments: str, code: int = 0) -> str:
        """Run the command line; gives what it printed, or its message where it fails."""
        done = self.run(str(self.python.parent / "slmopt"), *arguments, code=code)
        assert "Traceback" not in done.stderr and "warning" not in done.stderr
        return done.stderr if code == 2 else done.stdout

    def install(self, folder: Path) -> None:
        """`pip install` a project from its folder; nothing is downloaded."""
        options = ["--no-deps", "--no-build-isolation", "--no-index", "--quiet"]
        self.run("-m", "pip", "install", *options, str(folder))

    def files(self) -> set[str]:
        """Everything below the environment."""
        return {str(path.relative_to(self.directory)) for path in (self.directory / "venv").rglob("*")}


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """An environment with slmopt, and a model beside it."""
    made = Environment(tmp_path_factory.mktemp("clean"))
    source = made.directory / "slmopt-source"
    for name in ("slmopt", "passes", "backends", "plugins"):
        shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    made.install(source)
    left_out = shutil.ignore_patterns("__pycache__", "build", "*.egg-info")
    shutil.copytree(EXAMPLE, made.directory / "example", ignore=left_out)
    save_relu2(made.directory / "model")
    (made.directory / "text").write_text("w3 w4 w5 w6 w7 w8 w9")
    return made


SCRIPT = """
import sys
from pathlib import Path
import slmopt
assert Path(slmopt.__file__).is_relative_to(sys.prefix), slmopt.__file__
module = slmopt.optimize(slmopt.load("model"), ["raise", "zero-small{share=0.2}"])
ops = [op.name for op in module.graph().walk()]
assert ops.count("relu_squared") == 2 and "relu" not in ops, ops
path = slmopt.compile(module, "cpu", "from-python")
with slmopt.open(path) as model:
    print(model.generate("w3 w4", 8))
    print(slmopt.measure(model, Path("text").read_text(), ["top-5"])["top-5"])
"""

UNKNOWN = [
    (["opt", "model", "-p", "zero-small"], "unknown pass 'zero-small'"),
    (["compile", "model", "--recipe", "sparse", "-o", "none"], "unknown recipe 'sparse'"),
    (["eval", "program", "--text", "text", "--metric", "top-5"], "unknown metric 'top-5'"),
    (["compile", "model", "--target", "cpu:isa=avx2-small", "-o", "none"], "unknown instruction set 'avx2-small'"),
]


def test_installed_used_and_uninstalled(environment: Environment) -> None:
    before = environment.files()
    listing = environment.slmopt("plugins")
    environment.install(environment.directory / "example")
    assert environment.files() > before

    checked = environment.slmopt("plugins", "--check")
    assert "slmopt-example 1.0 (entry point example = slmopt_example.plugin)\n    passes: zero-small\n" in checked
    environment.slmopt("compile", "model", "--recipe", "sparse", "--target", "cpu:isa=avx2-small", "-o", "program")
    assert "relu_squared" in (environment.directory / "program" / "module.slm").read_text()
    manifest = json.loads((environment.directory / "program" / "manifest.json").read_text())
    assert manifest["target"] == "cpu:isa=avx2-small"
    written = environment.slmopt("run", "program", "--prompt", "w3 w4", "--max-tokens", "8")
    measured = environment.slmopt("eval", "program", "--text", "text", "--metric", "top-5", "--json")
    (top,) = json.loads(measured)["metrics"]
    assert top["owner"] == "slmopt-example (example)" and 0 <= top["value"] <= 100
    assert len(environment.run("-c", SCRIPT).stdout.splitlines()) == 2

    assert environment.slmopt("plugins", "--no-plugins").startswith(listing)
    assert "unknown pass 'zero-small'" in environment.slmopt("--no-plugins", "opt", "model", "-p", "zero-small", code=2)

    environment.run("-m", "pip", "uninstall", "--yes", "--quiet", "slmopt-example")
    assert environment.files() == before
    assert environment.slmopt("plugins") == listing
    assert "slmopt-example" not in environment.run("-m", "pip", "list").stdout
    for arguments, message in UNKNOWN:
        assert message in environment.slmopt(*arguments, code=2)
    assert not (environment.directory / "none").exists()
    assert environment.slmopt("run", "program", "--prompt", "w3 w4", "--max-tokens", "8") == written  # it needs nobody
