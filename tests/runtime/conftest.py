"""The stand-in artifact, built once."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from slmopt.runtime import LanguageModel

from .stand_in import write_stand_in


@pytest.fixture(scope="session")
def stand_in(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("artifact") / "stand-in"
    write_stand_in(path)
    return path


@pytest.fixture
def model(stand_in: Path) -> Iterator[LanguageModel]:
    with LanguageModel(stand_in, threads=2) as model:
        yield model
