"""The example plugin, installed the way pip would, seen by the command line of a fresh process."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.toy_model import TEXT

EXAMPLE = Path(__file__).resolve().parent.parent / "plugin_example"
ROOT = EXAMPLE.parent.parent


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory as pip would leave it: the package, and a .dist-info with its entry points."""
    directory = tmp_path_factory.mktemp("site")
    shutil.copytree(EXAMPLE / "slmopt_example", directory / "slmopt_example")
    project = tomllib.loads((EXAMPLE / "pyproject.toml").read_text())["project"]
    info = directory / f"slmopt_example-{project['version']}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n")
    points = "\n".join(f"{name} = {place}" for name, place in project["entry-points"]["slmopt"].items())
    (info / "entry_points.txt").write_text(f"[slmopt]\n{points}\n")
    return directory


def slmopt(site: Path, *arguments: str, text: str = "") -> subprocess.CompletedProcess[str]:
    return python(site, "-m", "slmopt", *arguments, text=text)


def python(site: Path, *arguments: str, text: str = "") -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(site), str(ROOT)])}
    command = [sys.executable, *arguments]
    return subprocess.run(command, input=text, env=environment, capture_output=True, text=True, check=False)


def test_its_pass_is_listed_with_its_owner(site: Path) -> None:
    (found,) = json.loads(slmopt(site, "passes", "zero-small", "--json").stdout)
    assert found["owner"] == "slmopt-example (example)" and found["contract"] == "lossy"
    (share,) = found["options"]
    assert (share["name"], share["type"], share["default"], share["limits"]) == ("share", "number", "0.1", "0 to 1")


def test_its_recipe_pass_and_op_run(site: Path) -> None:
    head = "    %logits = linear("
    text = TEXT.replace(f"{head}%r,", f"    %rr = relu_squared(%r) : f32[b, s, 32]\n{head}%rr,")
    done = slmopt(site, "opt", "--recipe", "sparse", "--check", text=text)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("weight @wq.sparse : f32[32, 32]") == 1 and "relu_squared(%r)" in done.stdout
    wrong = slmopt(site, "opt", "-p", "zero-small{share=2}", text=text)
    assert wrong.returncode == 2 and "pass zero-small: option share must be 0 to 1, got 2.0" in wrong.stderr


def test_everything_it_offers_is_listed_and_can_be_imported(site: Path) -> None:
    done = slmopt(site, "plugins", "--check", "--json")
    found = json.loads(done.stdout)["plugins"][-1]
    assert found["problems"] == [] and done.returncode == 0
    assert (found["distribution"], found["version"], found["entry_point"]) == ("slmopt-example", "1.0", "example")
    names = {kind: [offer["name"] for offer in offers] for kind, offers in found["offers"].items()}
    assert names == {
        "passes": ["zero-small"], "ops": ["relu_squared"], "rules": ["raise-activation/relu-squared"],
        "isas": ["avx2-small"], "lowerings": ["tvm:relu_squared"], "recipes": ["sparse"], "metrics": ["top-5"],
    }  # fmt: skip


def test_listing_it_imports_nothing_of_it(site: Path) -> None:
    code = """
import sys
from slmopt.plugins.discovery import registry
known = registry()
known.add_ops()
assert "zero-small" in known.passes and "relu_squared" in known.ops
print(*sorted(name for name in sys.modules if name.startswith(("slmopt_example", "torch", "numpy", "tvm"))))
"""
    done = python(site, "-c", code)
    assert done.stdout.split() == ["slmopt_example", "slmopt_example.plugin"], done.stderr


PROGRAM = """
import sys
import numpy, torch
import slmopt
from slmopt.api import parse
from slmopt.interpreter import forward
from slmopt.stand_in import add_stand_ins
module = parse(sys.stdin.read())
add_stand_ins(module, drawn=True)
raised = slmopt.optimize(module, ["raise"])
assert [op.name for op in raised.graph().walk()].count("relu_squared") == 1
ids = [1, 7, 3, 30, 9, 9, 2]
expected = forward(module, torch.tensor([ids]))[0].numpy()
with slmopt.open(slmopt.compile(raised, sys.argv[1], sys.argv[2])) as model:
    print(float(numpy.abs(model.logits(ids) - expected).max() / numpy.abs(expected).max()))
"""


@pytest.mark.parametrize("isa", ["avx2-small", "scalar"])
def test_its_rule_finds_its_op_and_its_kernel_computes_it(site: Path, tmp_path: Path, isa: str) -> None:
    flags = Path("/proc/cpuinfo").read_text()
    if isa == "avx2-small" and not ("avx2" in flags and "f16c" in flags):
        pytest.skip("this processor has no AVX2")
    head = "    %logits = linear("
    added = "    %p = relu(%r) : f32[b, s, 32]\n    %rr = mul(%p, %p) : f32[b, s, 32]\n"
    text = TEXT.replace(f"{head}%r,", f"{added}{head}%rr,")
    done = python(site, "-c", PROGRAM, f"cpu:isa={isa}", str(tmp_path / "toy"), text=text)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 1e-5


def test_without_the_plugin_its_names_are_unknown(tmp_path: Path) -> None:
    done = slmopt(tmp_path, "opt", "-p", "zero-small", text=TEXT)
    assert done.returncode == 2 and "unknown pass 'zero-small'" in done.stderr


def test_a_plugin_that_does_not_load_is_named(site: Path, tmp_path: Path) -> None:
    shutil.copytree(site, tmp_path, dirs_exist_ok=True)
    (tmp_path / "slmopt_example" / "plugin.py").write_text("import no_such_module\n")
    done = slmopt(tmp_path, "passes")
    assert done.returncode == 0 and "quantize{" in done.stdout
    assert done.stderr == (
        "warning: plugin slmopt-example 1.0 (entry point example = slmopt_example.plugin): cannot be loaded: "
        "ModuleNotFoundError: No module named 'no_such_module'; mend or uninstall it\n"
    )
