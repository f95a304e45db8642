"""Every test of a frontend traces for itself."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def _nothing_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLMOPT_CACHE", "off")
