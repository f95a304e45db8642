"""The built-in passes hold what the kit asks of every pass."""

from __future__ import annotations

import pytest

from slmopt.pipeline import Pass
from slmopt.plugins import builtin
from slmopt.plugins.discovery import Registry
from slmopt.testing import check_pass

PASSES = Registry([("slmopt", builtin)]).working_passes()


@pytest.mark.parametrize("cls", PASSES.values(), ids=PASSES)
def test_conforms(cls: type[Pass]) -> None:
    check_pass(cls)


@pytest.mark.slow
@pytest.mark.parametrize("cls", PASSES.values(), ids=PASSES)
def test_conforms_on_many(cls: type[Pass]) -> None:
    check_pass(cls, examples=600, seed=1, compile=4)
