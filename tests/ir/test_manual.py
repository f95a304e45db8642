"""The manual of the IR: docs/ir.md is what the op specs say, and what they say is whole and right."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch

from slmopt.api import parse
from slmopt.cli import main
from slmopt.ir.graph import Value, Weight
from slmopt.ir.manual import describe_op, example_module, example_op, write_manual
from slmopt.ir.ops import attention, elementwise, language, linear_attention, reduce, shape
from slmopt.ir.spec import OpSpec
from slmopt.ir.text import parse_module
from slmopt.ir.verify import verify

PARTS = (language, attention, linear_attention, elementwise, reduce, shape)
SPECS = [spec for part in PARTS for spec in part.SPECS]
FILE = Path(__file__).resolve().parent.parent.parent / "docs" / "ir.md"


def test_the_file_is_what_the_specs_say() -> None:
    assert FILE.read_text(encoding="utf-8") == write_manual(), "write it anew: python -m slmopt.ir.manual > docs/ir.md"


def test_every_op_is_in_the_manual_once() -> None:
    headings = re.findall(r"^### (\w+)$", write_manual(), re.MULTILINE)
    assert headings == list(dict.fromkeys(headings))
    assert set(headings) == {spec.name for spec in SPECS}


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.name)
def test_an_op_has_an_example_that_is_right(spec: OpSpec) -> None:
    module = example_module(spec)
    verify(module)
    op = example_op(spec)
    assert op.name == spec.name
    assert parse_module(str(module)) == module
    assert len(op.results) == 1 and op.results[0].name == "y"


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.name)
def test_the_meaning_names_every_operand_and_attribute(spec: OpSpec) -> None:
    said = f"{spec.summary} {spec.meaning}"
    for name in spec.attributes:
        assert f"`{name}`" in said, name
    for operand in spec.operands:
        assert operand.startswith("*") or re.search(rf"\b{operand.removesuffix('?')}\b", said), operand
    assert len(spec.summary) <= 105 and "\n" not in spec.summary
    assert spec.meaning and describe_op(spec).count("\n| `") == len(spec.attributes)


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.name)
def test_an_example_computes_what_its_type_says(spec: OpSpec) -> None:
    op = example_op(spec)
    sizes = {"b": 2, "s": 3, "t": 2, "c": 5}
    torch.manual_seed(0)

    def draw(operand: Value | Weight) -> torch.Tensor:
        numbers = [dim if isinstance(dim, int) else sizes[str(dim)] for dim in operand.type.shape]
        kind = str(operand.type.element)
        if kind == "bool":
            return torch.rand(numbers) < 0.5
        if kind.startswith("i"):
            return torch.randint(0, 3, numbers)
        return torch.randn(numbers).to(torch.float16 if kind == "f16" else torch.float32)

    assert op.graph is not None
    bound = parse_module(_with_sizes(str(example_module(spec)), sizes))
    inner = next(bound.graph().walk())
    found = spec.reference(inner, *(None if o is None else draw(o) for o in inner.operands))
    assert list(found.shape) == list(inner.results[0].shape)
    element = str(inner.results[0].type.element)
    names = {"f32": torch.float32, "f16": torch.float16, "i64": torch.int64, "bool": torch.bool, "q8g32": torch.float32}
    assert found.dtype == names[element]


def _with_sizes(text: str, sizes: dict[str, int]) -> str:
    for name, size in sizes.items():
        text = re.sub(rf"(?<=[\[ *]){name}(?=[\], *}}])", str(size), text)
    return text


def test_code_of_the_manual_parses() -> None:
    blocks = re.findall(r"```\n(module .*?)```", FILE.read_text(encoding="utf-8"), re.DOTALL)
    modules = [block for block in blocks if not block.startswith("module  ")]
    assert len(modules) == 1
    module = parse(modules[0])
    verify(module)
    assert str(module) == modules[0]


def test_the_command_lists_ops(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ops"]) == 0
    listed = capsys.readouterr().out
    assert all(f"{spec.name}({', '.join(spec.operands)})\n    {spec.summary}\n" in listed for spec in SPECS)
    assert main(["ops", "rope"]) == 0
    assert '"interleaved": result[2i]' in capsys.readouterr().out
    assert main(["ops", "--markdown"]) == 0
    assert capsys.readouterr().out == write_manual()
    assert main(["ops", "linear", "--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)
    assert found["operands"] == ["x", "weight", "bias?", "residual?"] and found["owner"] == "slmopt"
    assert main(["ops", "liner"]) != 0
    assert "did you mean 'linear'?" in capsys.readouterr().err
