"""What an artifact holds beside the library and the weights."""

from __future__ import annotations

from typing import Any

from slmopt.artifact import ArtifactWriter, write_development_files
from slmopt.artifact_description import write_module_files
from slmopt.backends.tvm.emit import ProgramFacts
from slmopt.backends.tvm.plan import Plan
from slmopt.ir.graph import Module

__all__ = ["write_descriptions"]


def write_descriptions(
    artifact: ArtifactWriter, module: Module, facts: ProgramFacts, plan: Plan, ledger: Any, recipe: str | None
) -> None:
    """Everything beside the library and the weights: headers, the IR, the tokenizer, the ledger, the manifest."""
    write_development_files(artifact.directory, facts.name)
    manifest = {
        "name": facts.name, "target": facts.target, "library": f"lib{facts.name}.so", "context": facts.context,
        "chunk": facts.chunk, "recipe": recipe,
        "bytes": {"weights": facts.weights_bytes, "state": plan.state_bytes, "arena": plan.arena_bytes},
    }  # fmt: skip
    write_module_files(artifact, module, ledger, manifest, weights_hash=facts.weights_hash, packages=("apache-tvm",))
