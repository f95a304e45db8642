"""What the tests of kernels share: compiled once for each instruction set of the host."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

import slmopt
from tests.backends.native import isa_parameters
from tests.backends.odd_ops import odd_ops
from tests.backends.op_module import CompiledOps


@pytest.fixture(scope="session", params=isa_parameters())
def compiled_ops(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[CompiledOps]:
    """Every kind of kernel at odd sizes."""
    ops = odd_ops()
    with slmopt.open(ops.compile(request.param.name, tmp_path_factory.mktemp("odd"))) as model:
        yield CompiledOps(ops, model)
