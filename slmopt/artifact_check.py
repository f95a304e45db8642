"""Checks a compiled artifact: its program's logits and tokens against those that the interpreter expects."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slmopt.artifact import read_manifest, verify_weights
from slmopt.cross import host_machine
from slmopt.emulation import find_runner, library_machine, runner_logits
from slmopt.errors import ArtifactError, InputError
from slmopt.expectation import Agreement, Expectation, expect, read_expectation

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from slmopt.ir.graph import Module

__all__ = ["artifact_logits", "check_artifact", "describe_module", "expectation_of"]


def check_artifact(
    artifact: str | os.PathLike[str], *, runner: str | Sequence[str] | None = None,
    expectation: Expectation | None = None, tokens: int | None = None, tolerance: float | None = None,
    threads: int = 1,
) -> list[Agreement]:  # fmt: skip
    """How an artifact's program agrees with the interpreter, sequence by sequence.

    `runner` is the command of an emulator, where this machine does not run the program. `expectation` stands in for
    the one that the artifact carries. `tokens` cuts greedy sequences; `tolerance`, relative to the largest logit,
    stands in for the expectation's. InputError where there is nothing to compare with, or the program does not run
    here; ArtifactError where it fails, or one of its files is not as it was written.
    """
    path = Path(artifact)
    manifest = read_manifest(path)
    _verify_files(path, manifest)
    if (path / str(manifest.get("weights"))).is_file():
        verify_weights(path)
    found = expectation or read_expectation(path)
    allowed = found.tolerance if tolerance is None else tolerance
    agreements = []
    for sequence in found.sequences:
        asked = sequence.head(tokens) if sequence.greedy and tokens is not None else sequence
        agreements.append(asked.compare(artifact_logits(path, asked.ids, asked.parts, runner, threads), allowed))
    return agreements


def _verify_files(path: Path, manifest: Mapping[str, Any]) -> None:
    """ArtifactError where a file is damaged: loading the rest of a library, say, can end the process."""
    hashes = manifest.get("hashes")
    for name, expected in sorted(hashes.items()) if isinstance(hashes, dict) else ():  # a backend may write none
        file = path / str(name)
        if name == manifest.get("weights") or not file.is_file():
            continue  # weights are read by `verify_weights`; what opens the rest says what is missing
        with open(file, "rb") as stream:
            if hashlib.file_digest(stream, "sha256").hexdigest() != expected:
                raise ArtifactError(f"{file} is damaged: its hash is not the manifest's; compile the model again")


def artifact_logits(
    artifact: Path, ids: Sequence[int], parts: Sequence[int], runner: str | Sequence[str] | None = None,
    threads: int = 1,
) -> NDArray[np.float32]:  # fmt: skip
    """The logits float32 [len(ids), vocab] of ids that are fed in parts: under `runner`, or by this machine."""
    import numpy as np

    if runner is not None:
        return runner_logits(artifact, ids, runner, splits=parts, threads=threads)
    library = artifact / str(read_manifest(artifact).get("library"))
    if library.is_file() and (machine := library_machine(library)) != host_machine():
        known = find_runner(machine)
        how = f"--runner {' '.join(known)!r}" if known else "--runner, the command of an emulator; `slmopt targets` " \
            "tells what to install for one"
        raise InputError(f"{artifact} is compiled for {machine}, and this machine is {host_machine()}: give {how}")
    from slmopt.runtime import open

    with open(artifact, threads) as model, model.session(threads) as session:
        found, start = [], 0
        for length in parts:
            found.append(session.logits(ids[start : start + length]))
            start += length
        return np.concatenate(found)


def expectation_of(artifact: Path, module: Module, tokens: int) -> Expectation:
    """What the interpreter expects of the module that an artifact was compiled from, `tokens` of them greedy.

    InputError where it was compiled from another module: another model or recipe. ArtifactError where it is damaged.
    """
    manifest = read_manifest(artifact)
    try:
        described, context = (artifact / "module.slm").read_text(encoding="utf-8"), int(manifest["context"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        what = f"{type(error).__name__}: {error}"
        raise ArtifactError(f"{artifact} is damaged ({what}); compile the model again") from error
    if described != describe_module(module):
        raise InputError(f"{artifact} was not compiled from this model with these passes: its recipe was "
                         f"{manifest.get('recipe') or 'none'}; give the same model and recipe")  # fmt: skip
    return expect(module, context=context, greedy=tokens)


def describe_module(module: Module) -> str:
    """The IR text that an artifact carries: without what names places of this machine."""
    from slmopt.ir.graph import Module as Described

    metadata = {key: value for key, value in module.metadata.items() if key != "tokenizer"}
    return str(Described(module.name, module.graphs.values(), module.weights, metadata))
