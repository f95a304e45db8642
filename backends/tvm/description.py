"""What an artifact holds beside the library and the weights."""

from __future__ import annotations

from typing import Any

import slmopt
from slmopt.artifact import ArtifactWriter, write_development_files
from slmopt.artifact_check import describe_module
from slmopt.backends.tvm.emit import ProgramFacts
from slmopt.backends.tvm.plan import Plan
from slmopt.ir.graph import Module

__all__ = ["write_descriptions"]


def write_descriptions(
    artifact: ArtifactWriter, module: Module, facts: ProgramFacts, plan: Plan, ledger: Any, recipe: str | None
) -> None:
    """Everything beside the library and the weights: headers, the IR, the tokenizer, the ledger, the manifest."""
    import hashlib

    write_development_files(artifact.directory, facts.name)
    artifact.write("module.slm", describe_module(module))
    tokenizer = module.metadata.get("tokenizer")
    if tokenizer:
        artifact.copy(tokenizer, "tokenizer.json")
    if ledger is not None:
        artifact.write_json("ledger.json", ledger)
    files = sorted(path for path in artifact.directory.iterdir() if path.name != "weights.bin")
    hashes = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
    artifact.write_json("manifest.json", {
        "name": facts.name, "target": facts.target, "library": f"lib{facts.name}.so", "weights": "weights.bin",
        "tokenizer": "tokenizer.json" if tokenizer else None, "vocab": facts.vocab, "context": facts.context,
        "chunk": facts.chunk, "bos_token_id": module.metadata.get("bos_token_id"),
        "eos_token_ids": module.metadata.get("eos_token_ids") or [], "source": module.metadata.get("source"),
        "recipe": recipe, "versions": _versions(), "hashes": {**hashes, "weights.bin": facts.weights_hash},
        "bytes": {"weights": facts.weights_bytes, "state": plan.state_bytes, "arena": plan.arena_bytes},
    })  # fmt: skip


def _versions() -> dict[str, str]:
    from importlib.metadata import version

    return {"slmopt": slmopt.__version__, "apache-tvm": version("apache-tvm")}
