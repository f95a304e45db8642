"""Reading safetensors: what was written comes back, lazily and without a copy; no damaged file passes."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from slmopt.errors import InputError
from slmopt.frontends.safetensors_files import read_checkpoint, read_header

DTYPES = (
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.float64,
    torch.int64,
    torch.int32,
    torch.int8,
    torch.uint8,
)
SHAPES = st.lists(st.integers(0, 5), max_size=3).map(tuple)


def numbers(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    return torch.arange(torch.Size(shape).numel()).remainder(100).reshape(shape).to(dtype)


@given(st.lists(st.tuples(SHAPES, st.sampled_from(DTYPES)), min_size=1, max_size=6))
@settings(deadline=None, max_examples=40)
def test_what_was_saved_comes_back(parts: list[tuple[tuple[int, ...], torch.dtype]]) -> None:
    tensors = {f"layer.{i}": numbers(shape, dtype) for i, (shape, dtype) in enumerate(parts)}
    with tempfile.TemporaryDirectory() as folder:
        save_file(tensors, Path(folder) / "model.safetensors", metadata={"format": "pt"})
        stored = read_checkpoint(Path(folder))
        assert set(stored) == set(tensors)
        for name, expected in tensors.items():
            found = stored[name].load()
            assert found.dtype == expected.dtype and torch.equal(found, expected)


@given(st.data())
@settings(deadline=None, max_examples=60)
def test_damage_is_refused_or_harmless(data: st.DataObject) -> None:
    """Cut anywhere, the file is refused. One changed header byte is refused, or every tensor still lies in the file."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.safetensors"
        save_file({"a": numbers((3, 4), torch.float32), "b": numbers((5,), torch.int64)}, file)
        whole = file.read_bytes()
        file.write_bytes(whole[: data.draw(st.integers(0, len(whole) - 1), "kept")])
        with pytest.raises(InputError, match="truncated"):
            read_header(file)
        header = 8 + int.from_bytes(whole[:8], "little")
        damaged = bytearray(whole)
        damaged[data.draw(st.integers(0, header - 1), "place")] = data.draw(st.integers(0, 255), "byte")
        file.write_bytes(damaged)
        try:
            stored = read_header(file)
        except InputError as error:
            assert str(file) in str(error)
        else:
            assert all(tensor.offset + tensor.size <= len(whole) for tensor in stored.values())
            assert all(tensor.load().shape == tensor.shape for tensor in stored.values())


def test_writing_to_a_loaded_tensor_leaves_the_file(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    save_file({"a": torch.ones(4)}, file)
    before = file.read_bytes()
    read_header(file)["a"].load().fill_(7)
    assert file.read_bytes() == before
    assert read_header(file)["a"].load().tolist() == [1.0] * 4


def test_unreadable_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot read"):
        read_header(tmp_path)
