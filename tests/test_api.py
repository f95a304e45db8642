"""The verbs, on models made here; and that importing slmopt imports nothing heavy."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import slmopt
from slmopt.errors import ContractError, InputError
from slmopt.ir.graph import Module
from slmopt.passes.quantize.round_to_nearest import Quantize
from slmopt.plugins import builtin, discovery
from slmopt.plugins.hooks import slmopt_plugin
from tests.toy_model import TEXT, toy_model

_HEAVY = ("torch", "tvm", "numpy", "transformers", "tokenizers", "safetensors", "networkx", "pluggy", "onnx")


@pytest.mark.parametrize(
    "statement",
    ["import slmopt", "import slmopt.ir", "import slmopt.pipeline", "import slmopt.api",
     "from slmopt.cli import build_parser; build_parser().format_help()"],
)  # fmt: skip
def test_importing_imports_nothing_heavy(statement: str) -> None:
    code = f"{statement}\nimport sys\nsys.exit(', '.join(m for m in {_HEAVY} if m in sys.modules) or 0)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{statement} imports {done.stderr}"


def test_every_exported_name_is_there() -> None:
    for name in slmopt.__all__:
        assert getattr(slmopt, name) is not None and name in dir(slmopt)
    with pytest.raises(AttributeError, match="module 'slmopt' has no attribute 'laod'"):
        getattr(slmopt, "laod")  # noqa: B009


def test_optimize_leaves_the_module_alone_and_takes_texts_passes_and_objects() -> None:
    module = toy_model()
    before = str(module)
    result = slmopt.optimize(module, ["fuse-qkv", Quantize(bits=8), "incrementalize{cache=f16}"])
    assert str(module) == before and module.ledger is None
    assert [row.name for row in result.ledger.rows] == [
        "original", "fuse-qkv", "quantize{bits=8}", "incrementalize{cache=f16}",
    ]  # fmt: skip
    assert set(result.graphs) == {"forward", "step"}
    again = slmopt.optimize(result, ["canonicalize"])
    assert len(again.ledger.rows) == 5 and len(result.ledger.rows) == 4


def test_a_recipe_by_name_by_path_and_its_budget(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert slmopt.optimize(toy_model(), "w8").ledger.rows[-1].name == "incrementalize{cache=f16}"
    hooks = SimpleNamespace(slmopt_passes=slmopt_plugin(lambda: {"planted-lossy": "tests.test_pipeline:PlantedLossy"}))
    known = discovery.Registry([("slmopt", builtin), ("tests", hooks)])
    monkeypatch.setattr(discovery, "registry", lambda: known)
    file = tmp_path / "r.toml"
    file.write_text('passes = ["planted-lossy{drift=1.0}"]\n[budget]\nperplexity = "+2%"\n')
    module = toy_model()
    module.metadata["tokenizer"] = words(tmp_path / "tokenizer.json")
    text = " ".join(f"w{index * 7 % 40}" for index in range(60))
    with pytest.raises(ContractError, match="pass planted-lossy leaves the budget"):
        slmopt.optimize(module, file, text=text)
    assert slmopt.optimize(module, str(file)).ledger.rows[-1].perplexity is None  # without text, nothing to measure


def words(path: Path) -> str:
    from tokenizers import Tokenizer, models, pre_tokenizers

    made = Tokenizer(models.WordLevel({f"w{index}": index for index in range(40)}, unk_token="w0"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made.save(str(path))
    return str(path)


def test_load_reads_ir_text_without_weights(tmp_path: Path) -> None:
    file = tmp_path / "toy.slm"
    file.write_text(TEXT)
    module = slmopt.load(file)
    assert isinstance(module, Module) and module == toy_model() and "table" not in module.weights
    with pytest.raises(InputError, match=r"@toy has no weights \(@table is missing\)"):
        slmopt.compile(module, "cpu", tmp_path / "out", recipe="w4")
    assert not (tmp_path / "out").exists()


def test_load_takes_a_torch_module() -> None:
    class Tiny(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = torch.nn.Embedding(11, 8)
            self.head = torch.nn.Linear(8, 11)

        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            found: torch.Tensor = self.head(torch.nn.functional.silu(self.table(ids)))
            return found

    model = Tiny().eval()
    module = slmopt.optimize(slmopt.load(model, name="tiny"), ["raise"])
    assert [op.name for op in module.graph().walk()] == ["embedding", "silu", "linear"]
    assert module.ledger.rows[-1].drift.max_error < 1e-5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target": "cpux"}, "unknown target 'cpux'"),
        ({"target": "cpu:isa"}, "'isa' is not of the form option=value"),
        ({"recipe": "w5"}, "unknown recipe 'w5'"),
        ({"recipe": ["quantise"]}, "unknown pass 'quantise'; did you mean 'quantize'"),
    ],
)
def test_wrong_use_of_compile_is_found_before_anything_is_loaded(
    options: dict[str, str], message: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=message):
        slmopt.compile(tmp_path / "no-model", output=tmp_path / "out", **options)  # type: ignore[arg-type]


def test_a_source_that_is_not_there() -> None:
    with pytest.raises(InputError):
        slmopt.load("no/such/directory")
    with pytest.raises(InputError, match=r"no/such\.slm cannot be read"):
        slmopt.load("no/such.slm")
