"""Objects of kernels: the same bytes each time, one function per name, no need of TVM, no trace of this machine."""

from __future__ import annotations

import dataclasses
import subprocess
from pathlib import Path
from typing import Any

import pytest

from slmopt.backends.tvm import build
from slmopt.backends.tvm.build import build_object
from slmopt.backends.tvm.embedding import embedding
from slmopt.backends.tvm.kernel import Kernel
from slmopt.backends.tvm.linear import linear
from slmopt.ir.types import parse_element
from tests.backends.native import ISAS


def kernels(isa_name: str) -> list[Kernel]:
    isa, q4 = ISAS.load(isa_name), parse_element("q4g32")
    return [
        linear(isa, q4, 40, 64, residual=True),
        linear(isa, parse_element("f16"), 40, 64, activation="gelu_tanh"),
        embedding(isa, q4, 40, 64),
    ]


def symbols(data: bytes, directory: Path) -> list[tuple[str, str]]:
    """(kind, name) of an object's symbols, as nm says them."""
    path = directory / "object.o"
    path.write_bytes(data)
    lines = subprocess.run(["nm", str(path)], check=True, capture_output=True, text=True).stdout.splitlines()
    return [(words[-2], words[-1]) for words in map(str.split, lines)]


@pytest.mark.parametrize("isa_name", ISAS.names())
def test_objects_stand_alone(isa_name: str, tmp_path: Path) -> None:
    made = kernels(isa_name)
    objects = build_object(made, ISAS.load(isa_name))
    for kernel, data in zip(sorted(made, key=lambda kernel: kernel.name), objects, strict=True):
        found = symbols(data, tmp_path)
        assert {name for kind, name in found if kind == "T"} == {kernel.name}
        assert {name for kind, name in found if kind == "U"} <= {"memset", "memcpy"}
        assert str(Path.cwd()).encode() not in data and f"{Path.home()}/".encode() not in data


def test_equal_kernels_give_equal_bytes_in_any_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLMOPT_CACHE", "off")
    isa, made = ISAS.load("avx2"), kernels("avx2")
    reports: list[tuple[int, int]] = []
    first = build_object(made, isa, lambda done, total: reports.append((done, total)))
    assert build_object([*reversed(made), made[0]], isa) == first
    assert reports == [(1, 3), (2, 3), (3, 3)]


def test_a_kept_kernel_is_not_compiled_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLMOPT_CACHE", str(tmp_path))
    made, compiled = kernels("avx2"), []
    compile_module = build._compile

    def note(*arguments: Any) -> bytes:
        compiled.append(arguments)
        return compile_module(*arguments)

    monkeypatch.setattr(build, "_compile", note)
    first = build_object(made, ISAS.load("avx2"))
    assert build_object(made, ISAS.load("avx2")) == first and len(compiled) == 3
    changed = dataclasses.replace(ISAS.load("avx2"), prefetch=64, cpu="znver3")
    assert build_object(made, changed) != first and len(compiled) == 6


def test_kernels_of_one_name_are_one_kernel(tmp_path: Path) -> None:
    isa = ISAS.load("scalar")
    (data,) = build_object([kernels("scalar")[2], kernels("scalar")[2]], isa)
    assert [name for kind, name in symbols(data, tmp_path) if kind == "T"] == ["embedding_q4g32_40x64"]


def test_no_kernels_give_no_objects() -> None:
    assert build_object([], ISAS.load("avx2")) == []
