"""Instruction sets are data: each file is checked, names are too, and the host gets the best of those on offer."""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slmopt.backends.cpu.backend import CpuBackend
from slmopt.backends.tvm import isa as isa_module
from slmopt.backends.tvm.build import build_object
from slmopt.backends.tvm.glu import glu
from slmopt.backends.tvm.isa import Isa, Isas, read_isa
from slmopt.errors import InputError, PluginWarning
from slmopt.offers import Offer, Offers
from tests.backends.native import BUILTIN, ISAS

AVX2 = BUILTIN.isas["avx2"].file().read_text()


def offered(**files: Path) -> dict[str, Offer]:
    return {name: Offer(name, path, "acme (tests)", "2.1", "instruction set") for name, path in files.items()}


def write(path: Path, **fields: Any) -> Path:
    """The description of AVX2 with other values (as TOML) for some fields; None leaves a field out."""
    lines = [line for line in AVX2.splitlines() if line.split(" = ")[0] not in fields]
    path.write_text("\n".join([*lines, *(f"{name} = {value}" for name, value in fields.items() if value is not None)]))
    return path


def test_every_file_loads_and_the_best_comes_first() -> None:
    names = ISAS.names()
    assert {"avx512-bf16", "avx512-vnni", "avx2", "scalar"} <= set(names)
    ranks = [ISAS.load(name).rank for name in names]
    assert ranks == sorted(ranks, reverse=True) and len(set(ranks)) == len(ranks)


@pytest.mark.parametrize("name", ISAS.names())
def test_fields_fit_together(name: str) -> None:
    isa = ISAS.load(name)
    assert isa.name == name
    assert len(isa.cpu_features) == len(isa.flags)
    assert isa.dot_intrinsic.startswith("llvm.x86.")


def test_one_instruction_more_changes_nothing_else() -> None:
    vnni, bf16 = ISAS.load("avx512-vnni"), ISAS.load("avx512-bf16")
    different = {field.name for field in fields(Isa) if getattr(vnni, field.name) != getattr(bf16, field.name)}
    assert different == {"name", "summary", "rank", "attributes", "cpu_features", "flags", "bf16_dot"}
    assert set(vnni.flags) < set(bf16.flags) and not vnni.bf16_dot


def test_an_unknown_name_suggests_the_nearest() -> None:
    with pytest.raises(InputError, match=r"did you mean 'avx2'.*known are avx2, avx512-bf16, avx512-vnni, scalar"):
        ISAS.load("avx-2")


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["fpu", "sse2"], "scalar"),
        (["sse2", "avx2", "fma", "f16c"], "scalar"),  # bmi2 is missing
        (["sse2", "avx2", "fma", "f16c", "bmi2"], "avx2"),
        (["avx512f", "avx2", "fma", "f16c", "bmi2"], "avx2"),
        (sorted(ISAS.load("avx512-vnni").flags), "avx512-vnni"),
        (sorted(ISAS.load("avx512-bf16").flags), "avx512-bf16"),
        (None, "scalar"),
    ],
)
def test_detection(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flags: list[str] | None, expected: str) -> None:
    path = tmp_path / "cpuinfo"
    if flags is not None:
        path.write_text(f"processor\t: 0\nflags\t\t: {' '.join(flags)}\nbugs\t\t:\n")
    monkeypatch.setattr(isa_module, "_CPU_INFO", path)
    assert ISAS.detect().name == expected


def test_the_highest_rank_that_the_host_has_is_the_default(tmp_path: Path) -> None:
    own = offered(
        better=write(tmp_path / "better.toml", rank=90, flags=[], cpu_features=[]),
        elsewhere=write(tmp_path / "elsewhere.toml", rank=99, flags='["no-such-flag"]'),
    )
    isas = Isas({**BUILTIN.isas, **own})
    assert isas.names()[:2] == ["elsewhere", "better"]
    assert isas.detect().name == "better"
    assert CpuBackend(Offers(isas={**BUILTIN.isas, **own})).status()["isa"] == "better"


def test_no_fitting_instruction_set_is_an_error(tmp_path: Path) -> None:
    isas = Isas(offered(elsewhere=write(tmp_path / "elsewhere.toml", flags='["no-such-flag"]')))
    with pytest.raises(InputError, match=r"none of the instruction sets on offer \(elsewhere\); name the one"):
        isas.detect()


def test_a_file_is_an_instruction_set_too(tmp_path: Path) -> None:
    isa = ISAS.load(str(write(tmp_path / "mine.toml", prefetch=0)))
    assert (isa.name, isa.prefetch, isa.lanes) == ("mine", 0, 8)
    with pytest.raises(InputError, match=r"other\.toml cannot be read: No such file"):
        ISAS.load(str(tmp_path / "other.toml"))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"lanes": None}, "lacks lanes; its fields are summary, rank, cpu"),
        ({"volume": 9}, "has unknown fields volume; its fields are"),
        ({"stream": 2}, "has unknown fields stream; did you mean 'streams'?"),
        ({"lanes": '"8"'}, "lanes must be a whole number, got '8'"),
        ({"registers": "true"}, "registers must be a whole number, got True"),
        ({"half": 1}, "half must be true or false, got 1"),
        ({"flags": '"avx2"'}, "flags must be a list of texts, got 'avx2'"),
        ({"flags": "[1]"}, "flags must be a list of texts, got [1]"),
        ({"lanes": 6}, "lanes must be 4, 8 or 16, got 6"),
        ({"token_tile": 33}, "token_tile must lie in 1 to 32, got 33"),
        ({"block_tile": 0}, "block_tile must lie in 1 to 8, got 0"),
        ({"streams": 0}, "streams must lie in 1 to 16, got 0"),
        ({"prefetch": -1}, "prefetch must not be negative, got -1"),
        ({"dot": '"vpdpbus"'}, "dot 'vpdpbus' is unknown; did you mean 'vpdpbusd'?; expected vpdpbusd, "),
        ({"lanes": 16}, "dot maddubs is made of AVX2 instructions and needs lanes = 8, got 16"),
        ({"dot_intrinsic": '"pmadd"'}, "dot_intrinsic must be an LLVM intrinsic"),
        ({"bf16_dot": '"dpbf16ps"'}, 'bf16_dot must be an LLVM intrinsic, or "" for none, got'),
        ({"bf16_dot": "1"}, "bf16_dot must be text, got 1"),
        ({"cpu_features": """['a"b']"""}, "is no name of a feature"),
        ({"attributes": '["avx2"]'}, "attributes 'avx2' must begin with + or -"),
        ({"rank": "= 3"}, "is not TOML"),
    ],
)
def test_what_is_wrong_with_a_file_is_said_with_its_name(tmp_path: Path, fields: dict[str, Any], message: str) -> None:
    path = write(tmp_path / "wrong.toml", **fields)
    with pytest.raises(InputError, match=rf"instruction set {re.escape(str(path))}.*{re.escape(message)}"):
        read_isa(path)


_VALUES = st.sampled_from(
    ["0", "-1", "7", "1000000", "1.5", "true", '""', '"x"', "[]", "[1]", '["+a"]', "{}", "= ", "\\x00", "nan"]
)


@given(st.dictionaries(st.sampled_from([*(field.name for field in fields(Isa)), "extra"]), _VALUES, max_size=3))
def test_any_file_is_read_or_refused(given_fields: dict[str, str]) -> None:
    with tempfile.TemporaryDirectory() as directory:
        try:
            isa = read_isa(write(Path(directory) / "some.toml", **given_fields))
        except InputError as error:
            assert "some.toml" in str(error)
        else:
            assert isa.lanes == 8 and set(given_fields) <= {
                "summary", "rank", "cpu", "flags", "cpu_features", "attributes", "prefetch", "half", "fused",
                "registers", "streams", "token_tile", "block_tile", "linear", "bf16_dot", "usual",
            }  # fmt: skip


def test_a_wrong_file_of_a_plugin_names_its_owner_and_takes_no_other_down(tmp_path: Path) -> None:
    isas = Isas({**BUILTIN.isas, **offered(wrong=write(tmp_path / "wrong.toml", lanes=5, rank=99, flags=[]))})
    with pytest.raises(InputError, match=r"lanes must be 4, 8 or 16, got 5; acme 2\.1 \(tests\) offers it as 'wrong'"):
        isas.load("wrong")
    with pytest.warns(PluginWarning, match=r"wrong\.toml: lanes must be .* acme 2\.1"):
        assert isas.detect().name == ISAS.detect().name


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"cpu": '"x86-64-v33"'}, "LLVM knows no cpu 'x86-64-v33'; did you mean 'x86-64-v3'?"),
        ({"attributes": '["+avx9"]'}, "LLVM knows no attribute '+avx9'"),
        ({"bf16_dot": '"llvm.x86.dpbf16ps"'}, "LLVM knows no bf16_dot 'llvm.x86.dpbf16ps'"),
        ({"dot_intrinsic": '"llvm.x86.avx2.pmadd"'}, "LLVM knows no dot_intrinsic 'llvm.x86.avx2.pmadd'"),
    ],
)
def test_what_llvm_does_not_know_is_an_error(tmp_path: Path, fields: dict[str, Any], message: str) -> None:
    isa = read_isa(write(tmp_path / "wrong.toml", **fields))
    with pytest.raises(InputError, match=re.escape(f"instruction set wrong: {message}")):
        build_object([glu(isa, width=8, activation=None)], isa)


def test_isas_need_no_tvm() -> None:
    code = (
        "import sys; from slmopt.plugins.discovery import registry; "
        "registry().find_backend('cpu').status(); sys.exit('tvm' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
