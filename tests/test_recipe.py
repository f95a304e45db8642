"""Recipes: presets, files, budgets, and what is wrong with them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from slmopt.errors import InputError
from slmopt.options import describe_pass
from slmopt.pipeline import Pipeline
from slmopt.plugins.discovery import registry
from slmopt.recipe import parse_recipe, read_recipe


@pytest.mark.parametrize(
    ("name", "passes", "budget"),
    [
        ("f32", ["raise", "canonicalize", "fuse", "incrementalize"], None),
        ("f16", ["raise", "canonicalize", "cast-weights", "fuse", "incrementalize{cache=f16}"], 0.001),
        ("w8", ["raise", "canonicalize", "quantize{bits=8}", "fuse", "incrementalize{cache=f16}"], 0.01),
        ("w4", ["raise", "canonicalize", "quantize", "fuse", "incrementalize{cache=f16}"], 0.12),
    ],
)
def test_presets(name: str, passes: list[str], budget: float | None) -> None:
    recipe = registry().find_recipe(name)
    built = recipe.build(registry().find_pass)
    assert [describe_pass(item) for item in built] == passes and recipe.summary
    assert recipe.budget.perplexity == budget
    Pipeline(built).check_order()


def test_a_file_with_defaults_that_a_pass_overrides(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text(
        'passes = ["quantize{layers=mlp}", "quantize{bits=4}"]\n[budget]\nperplexity = "+2.5%"\n'
        "[options.quantize]\nbits = 8\ngrid = 'asymmetric'\n"
    )
    recipe = registry().find_recipe(str(file))
    assert recipe.name == "mine" and recipe.budget.perplexity == 0.025
    assert [describe_pass(item) for item in recipe.build(registry().find_pass)] == [
        "quantize{bits=8,grid=asymmetric,layers=mlp}", "quantize{grid=asymmetric}",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("passes = [", "recipe r is not TOML"),
        ("summary = 'x'", "recipe r: passes must be a list of texts"),
        ("passes = [1]", "recipe r: passes must be a list of texts"),
        ("passes = []\nbudgt = 1", "recipe r: unknown key 'budgt'; did you mean 'budget'?"),
        ("passes = ['Raise']", "recipe r: 'Raise' is no pass"),
        ("passes = []\nsummary = 3", "recipe r: summary must be text"),
        ("passes = []\nbudget = 3", "recipe r: budget must be a table"),
        ("passes = []\n[budget]\nspeed = 1", "recipe r: unknown budget 'speed'; it takes perplexity"),
        ("passes = []\n[budget]\nperplexity = 0.03", 'perplexity must be a percentage such as "+3%", got 0.03'),
        ("passes = []\n[budget]\nperplexity = '-3%'", "must be a percentage"),
        ("passes = []\noptions = 3", "recipe r: options must be tables"),
    ],
)
def test_what_is_wrong_is_said(text: str, message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        parse_recipe(text, "r")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("passes = ['raize']", "recipe r: unknown pass 'raize'; did you mean 'raise'?"),
        ("passes = ['quantize{bit=4}']", "recipe r: pass quantize has no option 'bit'; did you mean 'bits'?"),
        ("passes = ['quantize{bits=3}']", "recipe r: pass quantize: option bits must be 4 or 8, got 3"),
        ("passes = ['quantize']\n[options.quantise]\nbits=4", "[options.quantise] is for no pass of the recipe"),
        ("passes = ['quantize']\n[options.quantize]\nbits='many'", "option bits must be integer, got many"),
    ],
)
def test_passes_are_checked_when_they_are_built(text: str, message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        parse_recipe(text, "r").build(registry().find_pass)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"recipe .*none\.toml cannot be read"):
        registry().find_recipe(str(tmp_path / "none.toml"))
    (tmp_path / "bytes.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match="cannot be read"):
        read_recipe(tmp_path / "bytes.toml")
    with pytest.raises(InputError, match="unknown recipe 'w5'; known: f32, f16, w8, w4, w4-gptq, w4-kv8"):
        registry().find_recipe("w5")
