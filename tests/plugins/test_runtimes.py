"""Artifacts that a plugin's runtime opens: conversations, generation and errors are those of every other."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import slmopt
from slmopt.errors import ArtifactError, InputError
from slmopt.plugins import builtin, discovery
from slmopt.plugins.discovery import Registry
from slmopt.plugins.hooks import slmopt_plugin
from slmopt.runtime.library import Sampling

VOCAB, CONTEXT = 7, 12


class Counting:
    """A conversation in which the token after n is n + 1."""

    threads = 1

    def __init__(self) -> None:
        self.position, self.last = 0, 0

    def prefill(self, ids: Sequence[int]) -> None:
        self.position, self.last = self.position + len(ids), ids[-1]

    def logits(self, ids: Sequence[int]) -> Any:
        self.prefill(ids)
        return np.eye(VOCAB, dtype=np.float32)[[(each + 1) % VOCAB for each in ids]]

    def last_logits(self) -> Any:
        return np.eye(VOCAB, dtype=np.float32)[(self.last + 1) % VOCAB]

    def sample(self, sampling: Sampling) -> int:
        return int(self.last_logits().argmax())

    def reset(self) -> None:
        self.position = 0

    def close(self) -> None:
        """Nothing is held."""


class CountingProgram:
    """What opens such an artifact."""

    def __init__(self, path: Path, manifest: Mapping[str, Any]) -> None:
        self.vocab, self.context = int(manifest["vocab"]), CONTEXT

    def converse(self, threads: int) -> Counting:
        return Counting()

    def close(self) -> None:
        """Nothing is held."""


@pytest.fixture
def artifact(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    hook = slmopt_plugin(lambda: {"counting": f"{__name__}:CountingProgram"})
    known = Registry([("slmopt", builtin), ("mine", SimpleNamespace(slmopt_runtimes=hook))])
    monkeypatch.setattr(discovery, "registry", lambda: known)
    write_manifest(tmp_path, runtime="counting", vocab=VOCAB)
    return tmp_path


def write_manifest(path: Path, **values: Any) -> None:
    (path / "manifest.json").write_text(json.dumps({"name": "counting", **values}))


def test_it_is_a_model_like_every_other(artifact: Path) -> None:
    with slmopt.open(artifact) as model:
        assert (model.vocab, model.context) == (VOCAB, CONTEXT)
        assert list(model.generate_ids([1], 5)) == [2, 3, 4, 5, 6]
        with model.session() as session:
            assert session.logits([3, 4]).argmax(-1).tolist() == [4, 5]


def test_an_opener_that_fails_is_named_with_its_owner(artifact: Path) -> None:
    write_manifest(artifact, runtime="counting")
    with pytest.raises(InputError, match=r"runtime 'counting', offered by mine, cannot open .*KeyError: 'vocab'"):
        slmopt.open(artifact)


@pytest.mark.parametrize("runtime", ["abacus", ["counting"], 3])
def test_a_runtime_that_nobody_offers_is_named_with_those_that_are(artifact: Path, runtime: Any) -> None:
    write_manifest(artifact, runtime=runtime, vocab=VOCAB)
    expected = rf"is run by {re.escape(repr(runtime))}, which no plugin here offers \(known: .*counting"
    with pytest.raises(ArtifactError, match=expected):
        slmopt.open(artifact)
