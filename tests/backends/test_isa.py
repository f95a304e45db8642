"""Instruction sets are data: each file is whole, names are checked, and the host gets the best it has."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from slmopt.backends.tvm import isa as isa_module
from slmopt.backends.tvm.isa import available_isas, detect_isa, load_isa
from slmopt.errors import InputError


def test_every_file_loads_and_the_best_comes_first() -> None:
    names = available_isas()
    assert {"avx512-vnni", "avx2", "scalar"} <= set(names)
    ranks = [load_isa(name).rank for name in names]
    assert ranks == sorted(ranks, reverse=True) and len(set(ranks)) == len(ranks)


@pytest.mark.parametrize("name", available_isas())
def test_fields_fit_together(name: str) -> None:
    isa = load_isa(name)
    assert isa.name == name
    assert isa.lanes in (4, 8, 16) and isa.token_tile & (isa.token_tile - 1) == 0
    assert len(isa.cpu_features) == len(isa.flags)
    assert isa.dot in ("vpdpbusd", "maddubs", "maddwd") and isa.dot_intrinsic.startswith("llvm.x86.")


def test_an_unknown_name_suggests_the_nearest() -> None:
    with pytest.raises(InputError, match=r"did you mean 'avx2'.*known are avx2, avx512-vnni, scalar"):
        load_isa("avx-2")


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["fpu", "sse2"], "scalar"),
        (["sse2", "avx2", "fma", "f16c"], "scalar"),  # bmi2 is missing
        (["sse2", "avx2", "fma", "f16c", "bmi2"], "avx2"),
        (["avx512f", "avx2", "fma", "f16c", "bmi2"], "avx2"),
        (sorted(load_isa("avx512-vnni").flags), "avx512-vnni"),
        (None, "scalar"),
    ],
)
def test_detection(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flags: list[str] | None, expected: str) -> None:
    path = tmp_path / "cpuinfo"
    if flags is not None:
        path.write_text(f"processor\t: 0\nflags\t\t: {' '.join(flags)}\nbugs\t\t:\n")
    monkeypatch.setattr(isa_module, "_CPU_INFO", path)
    assert detect_isa() == expected


def test_an_incomplete_file_is_an_error_that_names_the_field(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (Path(isa_module.__file__).parent.parent / "cpu" / "isa" / "avx2.toml").read_text()
    (tmp_path / "broken.toml").write_text(text.replace("lanes = 8\n", ""))
    monkeypatch.setattr(isa_module, "_DIRECTORY", tmp_path)
    with pytest.raises(InputError, match=r"broken\.toml lacks lanes"):
        load_isa("broken")
    (tmp_path / "other.toml").write_text(text + "speed = 9\n")
    with pytest.raises(InputError, match=r"other\.toml has unknown fields speed"):
        load_isa("other")


def test_isas_need_no_tvm() -> None:
    code = "import sys; from slmopt.backends.tvm.isa import detect_isa; detect_isa(); sys.exit('tvm' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
