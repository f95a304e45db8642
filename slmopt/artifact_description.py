"""What every artifact holds beside its program and its weights: the IR, the tokenizer, the ledger, the manifest."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import slmopt
from slmopt.artifact import ArtifactWriter
from slmopt.artifact_check import describe_module
from slmopt.ir.graph import Module

__all__ = ["write_module_files"]


def write_module_files(
    artifact: ArtifactWriter, module: Module, ledger: Mapping[str, Any] | None, manifest: Mapping[str, Any], *,
    weights_hash: str, packages: tuple[str, ...],
) -> None:  # fmt: skip
    """Write them. The manifest is `manifest`, what the module says, the files' hashes and the `packages`' versions."""
    from importlib.metadata import version

    artifact.write("module.slm", describe_module(module))
    tokenizer = module.metadata.get("tokenizer")
    if tokenizer:
        artifact.copy(tokenizer, "tokenizer.json")
    if ledger is not None:
        artifact.write_json("ledger.json", ledger)
    files = sorted(path for path in artifact.directory.iterdir() if path.name != "weights.bin")
    hashes = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
    artifact.write_json("manifest.json", {
        **manifest, "weights": "weights.bin", "tokenizer": "tokenizer.json" if tokenizer else None,
        "vocab": int(module.metadata["vocab"]), "bos_token_id": module.metadata.get("bos_token_id"),
        "eos_token_ids": module.metadata.get("eos_token_ids") or [], "source": module.metadata.get("source"),
        "hashes": {**hashes, "weights.bin": weights_hash},
        "versions": {"slmopt": slmopt.__version__, **{package: version(package) for package in packages}},
    })  # fmt: skip
