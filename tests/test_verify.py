"""`slmopt verify`: an artifact carries what the interpreter expects of it, and is judged by that."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import slmopt
from slmopt.artifact_check import artifact_logits, check_artifact, describe_module
from slmopt.cli import main
from slmopt.cross import host_machine
from slmopt.emulation import find_runner, runner_logits
from slmopt.errors import ArtifactError, InputError
from slmopt.expectation import PROBE, expect, read_expectation
from slmopt.interpreter import forward
from slmopt.ir.graph import Module
from slmopt.module_files import write_module
from slmopt.plugins.discovery import registry
from tests.emulators import MACHINE, needs_emulator
from tests.toy_model import toy_model

needs_own_compiler = pytest.mark.skipif(
    host_machine() not in ("x86_64", "aarch64"), reason="no backend compiles for this machine"
)
pytestmark = needs_own_compiler


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The toy model with float32 weights, by target; each once."""
    directory = tmp_path_factory.mktemp("toy")

    def get(target: str) -> Path:
        path = directory / target
        return path if path.exists() else slmopt.compile(toy_model(), target, path, recipe="f32", verify=False)

    return get


@pytest.fixture
def native(compiled: Callable[[str], Path]) -> Path:
    return compiled(registry().default_target())


@pytest.fixture
def foreign(compiled: Callable[[str], Path]) -> Path:
    return compiled("arm")


def module() -> Module:
    """The toy model as it is compiled."""
    return slmopt.optimize(slmopt.optimize(toy_model(), "f32"), ["incrementalize"])


def test_what_is_expected_are_the_interpreters_numbers() -> None:
    found = expect(module(), context=64, greedy=9)
    drawn, greedy = found.sequences
    assert (drawn.name, drawn.greedy, greedy.name, greedy.greedy) == ("drawn", False, "greedy", True)
    assert greedy.ids[0] == 1 and len(greedy.ids) == 9 and greedy.parts == [1] * 9
    for each in found.sequences:
        with torch.no_grad():
            logits = forward(toy_model(), torch.tensor([each.ids]))[0].numpy()
        np.testing.assert_allclose(np.array(each.logits), logits[:, each.columns], rtol=0, atol=1e-4)
        assert list(each.likeliest) == logits.argmax(-1).tolist()
        ordered = np.sort(logits, -1)
        np.testing.assert_allclose(each.leads, ordered[:, -1] - ordered[:, -2], rtol=0, atol=1e-4)
    assert greedy.ids[1:] == greedy.likeliest[:-1]


def test_it_is_written_and_read(native: Path) -> None:
    written = expect(module(), context=64)
    read = read_expectation(native)
    assert [each.ids for each in read.sequences] == [each.ids for each in written.sequences]
    assert read.tolerance == 1e-3 and (native / PROBE).read_text() == written.to_json()


def test_rounded_programs_may_be_further_off(tmp_path: Path) -> None:
    path = slmopt.compile(toy_model(), None, tmp_path / "toy", recipe="w8", verify=False)
    assert read_expectation(path).tolerance == 5e-2
    assert all(each.holds for each in check_artifact(path))


def test_a_native_program_agrees(native: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(native)]) == 0
    assert "the program agrees with the interpreter" in capsys.readouterr().out
    assert main(["verify", str(native), "--json", "--threads", "2"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["holds"] and all(each["error"] < 1e-5 for each in found["sequences"])


@needs_emulator
def test_a_program_for_another_machine_agrees(foreign: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runner = " ".join(find_runner(MACHINE) or [])
    assert main(["verify", str(foreign), "--runner", runner, "--tokens", "20", "--json"]) == 0
    drawn, greedy = json.loads(capsys.readouterr().out)["sequences"]
    assert greedy["positions"] == greedy["same"] == 20 and drawn["same"] == drawn["positions"]
    ids, parts = [1, 5, 9, 5], [3, 1]
    with slmopt.open(slmopt.compile(toy_model(), None, foreign.parent / "own", recipe="f32", verify=False)) as model:
        np.testing.assert_allclose(runner_logits(foreign, ids, runner, splits=parts), model.logits(ids), atol=1e-5)


def replace_file(artifact: Path, name: str, text: str) -> None:
    """As if it had been compiled with another file."""
    (artifact / name).write_text(text)
    manifest = json.loads((artifact / "manifest.json").read_text())
    manifest["hashes"][name] = hashlib.sha256(text.encode()).hexdigest()
    (artifact / "manifest.json").write_text(json.dumps(manifest))


def test_wrong_numbers_fail(native: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    damaged = tmp_path / "damaged"
    shutil.copytree(native, damaged)
    data = json.loads((damaged / PROBE).read_text())
    data["sequences"][0]["logits"][3][2] += 2e-3 * data["sequences"][0]["largest"]
    replace_file(damaged, PROBE, json.dumps(data))
    assert main(["verify", str(damaged)]) == 1
    assert "WRONG" in capsys.readouterr().out
    assert main(["verify", str(damaged), "--tolerance", "0.01"]) == 0


def test_another_likeliest_token_fails_unless_it_is_as_likely(native: Path) -> None:
    sequence = read_expectation(native).sequences[0]
    logits = artifact_logits(native, sequence.ids, sequence.parts)
    other = (sequence.likeliest[0] + 1) % logits.shape[1]
    changed = replace(sequence, likeliest=(other, *sequence.likeliest[1:]))
    agreement = replace(changed, leads=(1e9, *sequence.leads[1:])).compare(logits, 1e-3)
    assert not agreement.holds and agreement.same == agreement.positions - 1
    assert replace(changed, leads=(0.0, *sequence.leads[1:])).compare(logits, 1e-3).holds
    logits[2, 0] = np.nan
    assert not sequence.compare(logits, 1e9).holds


def test_the_model_says_what_is_expected_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = tmp_path / "toy.slm"
    write_module(toy_model(), source)
    path = slmopt.compile(source, None, tmp_path / "artifact", recipe="f32", verify=False)
    command = ["verify", str(path), "--model", str(source), "--tokens", "30"]
    assert main([*command, "--recipe", "f32", "--json"]) == 0
    assert [each["positions"] for each in json.loads(capsys.readouterr().out)["sequences"]][1] == 30
    assert main([*command, "--recipe", "w8"]) == 2
    assert "was not compiled from this model with these passes" in capsys.readouterr().err


def test_what_cannot_be_compared_is_said(native: Path, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    shutil.copytree(native, bare)
    (bare / PROBE).unlink()
    with pytest.raises(InputError, match=r"has no probe\.json.*compile it again, or name the model"):
        check_artifact(bare)
    replace_file(bare, PROBE, '{"version": 1, "tolerance": 1, "sequences": [{}]}')
    with pytest.raises(ArtifactError, match=r"probe\.json is damaged \(KeyError"):
        check_artifact(bare)
    with pytest.raises(InputError, match=r"is not an artifact"):
        check_artifact(tmp_path)


def test_damaged_weights_are_found(native: Path, tmp_path: Path) -> None:
    damaged = tmp_path / "damaged"
    shutil.copytree(native, damaged)
    content = bytearray((damaged / "weights.bin").read_bytes())
    content[-1] ^= 1  # of the padding: no number shows it
    (damaged / "weights.bin").write_bytes(content)
    with pytest.raises(ArtifactError, match=r"its content does not match the hash"):
        check_artifact(damaged)


@pytest.mark.parametrize("name", ["lib*.so", "module.slm", "program.c", PROBE])
def test_a_damaged_file_is_found_before_anything_is_loaded(native: Path, tmp_path: Path, name: str) -> None:
    damaged = tmp_path / "damaged"
    shutil.copytree(native, damaged)
    file = next(damaged.glob(name))
    file.write_bytes(file.read_bytes()[:-9])
    with pytest.raises(ArtifactError, match=f"{re.escape(file.name)} is damaged: its hash is not the manifest's"):
        check_artifact(damaged)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--runner", "'"], "the runner \"'\" is no command: No closing quotation"),
        (["--runner", "true"], "'true' ended without an error and gave no logits"),
        (["--recipe", "w8"], "--recipe belongs to --model"),
        (["--pass", "fuse"], "--pass belongs to --model"),
        (["--text", "none.txt"], "--text belongs to --model"),
    ],
)
def test_wrong_uses_of_the_command_are_told(
    native: Path, options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["verify", str(native), *options]) in (1, 2)
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("tolerance", ["nan", "-1", "inf", "much"])
def test_a_tolerance_is_a_number(native: Path, tolerance: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["verify", str(native), "--tolerance", tolerance])
    assert "expected a number from 0" in capsys.readouterr().err


def test_a_manifest_without_a_name_is_damaged(
    native: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damaged = tmp_path / "damaged"
    shutil.copytree(native, damaged)
    (damaged / "manifest.json").write_text("{}")
    assert main(["verify", str(damaged)]) != 0
    assert "has no name; compile the model again" in capsys.readouterr().err


def test_a_runner_that_is_none(native: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"the runner 'qemu-nothing' was not found"):
        check_artifact(native, runner="qemu-nothing -L /nowhere")
    with pytest.raises(ArtifactError, match=r"the run under 'false' failed \(exit 1\)"):
        check_artifact(native, runner="false")
    with pytest.raises(InputError, match=r"splits \[1, 1\] do not part 3 token ids"):
        runner_logits(native, [1, 2, 3], splits=[1, 1])
    library = next(native.glob("lib*.so"))
    broken = tmp_path / "broken"
    shutil.copytree(native, broken)
    (broken / library.name).write_bytes(b"no library")
    with pytest.raises(ArtifactError, match=r"is not a shared library; compile the model again"):
        runner_logits(broken, [1])


def test_the_same_driver_runs_native_programs(native: Path) -> None:
    ids = [1, 2, 3, 4]
    with slmopt.open(native) as model:
        np.testing.assert_array_equal(runner_logits(native, ids, splits=[3, 1]), model.logits(ids))
    with pytest.raises(ArtifactError, match=r"on this machine failed \(exit 1\): slm_logits: token 99 .*out of range"):
        runner_logits(native, [99])


@needs_emulator
@pytest.mark.skipif(host_machine() == MACHINE, reason="this machine runs it")
def test_without_a_runner_another_machines_program_is_not_run(foreign: Path) -> None:
    with pytest.raises(InputError, match=r"compiled for aarch64, and this machine is .* --runner '.*qemu-aarch64"):
        check_artifact(foreign)
    with pytest.raises(ArtifactError, match=r"Could not open '/lib/ld-linux-aarch64.*the machine's C library"):
        check_artifact(foreign, runner="qemu-aarch64-static")


def test_an_artifact_describes_its_module_without_places(native: Path) -> None:
    assert (native / "module.slm").read_text() == describe_module(module())
