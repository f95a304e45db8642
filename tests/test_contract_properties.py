"""Every built-in pass on random graphs: it keeps the contract, whatever the graph."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings

from slmopt.errors import UnsupportedError
from slmopt.ir.graph import Module
from slmopt.ir.verify import verify
from slmopt.pipeline import Pipeline
from slmopt.plugins.discovery import registry
from slmopt.stand_in import add_stand_ins
from slmopt.testing import modules

# Of those that look at text or need what random graphs are not, tests of their own say what holds.
PASSES = [
    cls for name, cls in registry().working_passes().items()
    if name != "incrementalize" and not cls.calibrated and not cls.requires
]  # fmt: skip


@pytest.mark.parametrize("cls", PASSES, ids=lambda cls: cls.name)
@given(module=modules())
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_a_pass_keeps_the_rules_and_tells_the_truth(cls: type, module: Module) -> None:
    """Order, signature, weights, ties, metadata and report are checked by the pipeline; then the IR once more."""
    add_stand_ins(module, drawn=True)
    pipeline = Pipeline([cls()], verify=False)
    if "forward" not in module.graphs:
        name, graph = next(iter(module.graphs.items()))
        del module.graphs[name]
        graph.name = "forward"
        module.graphs["forward"] = graph
    before = str(module)
    try:
        pipeline.run(module)
    except UnsupportedError:  # a pass for language models alone says so, and leaves what it got as it was
        assert str(module) == before
    verify(module, weights=True)
