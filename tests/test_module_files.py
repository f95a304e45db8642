"""A module as two files: text and weights come back as they were, and what does not fit is said."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import slmopt
from slmopt.errors import InputError
from slmopt.ir.graph import Module
from slmopt.ir.text import parse_module
from slmopt.ir.weights import QuantizedTensor
from slmopt.module_files import weights_file, write_module
from slmopt.stand_in import add_stand_ins

_TEXT = """
module @kinds {
  graph @forward(%x: f32[b, 64]) {
    %a = linear(%x, weight @a : q4g32[64, 64]) {activation = none, act = none} : f32[b, 64]
    %b = linear(%a, weight @b : q8ca[64, 64]) {activation = none, act = none} : f32[b, 64]
    %c = linear(%b, weight @c : bf16[64, 64]) {activation = none, act = none} : f32[b, 64]
    %d = linear(%c, weight @c : bf16[64, 64]) {activation = none, act = none} : f32[b, 64]
    return %d
  }
}
"""


def _module() -> Module:
    module = parse_module(_TEXT)
    add_stand_ins(module, drawn=True)
    module.weights.add_tensor("unused", torch.zeros(3))
    return module


def test_comes_back(tmp_path: Path) -> None:
    module, path = _module(), tmp_path / "model.slm"
    write_module(module, path)
    found = slmopt.load(path)
    assert found == module
    assert list(found.weights) == ["a", "b", "c"]
    for key in found.weights:
        one, other = module.weights.load(key), found.weights.load(key)
        if isinstance(one, QuantizedTensor):
            assert other.type == one.type
            assert other.codes.equal(one.codes) and other.scales.equal(one.scales)
            assert (other.minimum is None) == (one.minimum is None)
            assert one.minimum is None or other.minimum.equal(one.minimum)
        else:
            assert other.dtype == one.dtype and other.equal(one)


def test_text_alone_has_no_weights(tmp_path: Path) -> None:
    path = tmp_path / "model.slm"
    write_module(_module(), path)
    weights_file(path).unlink()
    assert list(slmopt.load(path).weights) == []


@pytest.mark.parametrize(("old", "new", "words"), [
    ("@c :", "@other :", "lacks the tensor 'other'"),
    ("bf16[64, 64]", "f16[64, 64]", "'c' is bf16"),
    ("q4g32[64, 64]", "q4g64[64, 64]", "'a:scales' is f16"),
    ("q4g32[64, 64]", "q4g32a[64, 64]", "'a:codes' is i8"),
])  # fmt: skip
def test_weights_of_another_model_are_refused(tmp_path: Path, old: str, new: str, words: str) -> None:
    path = tmp_path / "model.slm"
    write_module(_module(), path)
    path.write_text(_TEXT.replace(old, new))
    with pytest.raises(InputError, match=words):
        slmopt.load(path)


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot write"):
        write_module(_module(), tmp_path / "missing" / "model.slm")
