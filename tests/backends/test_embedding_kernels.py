"""Embedding kernels read the rows of the matrix that `linear` reads."""

from __future__ import annotations

import numpy as np
import pytest

from slmopt.backends.tvm.embedding import embedding
from slmopt.backends.tvm.isa import Isa
from slmopt.errors import UnsupportedError
from slmopt.ir.types import QuantizedType, parse_element
from tests.backends.native import Kernels, aligned, host_isas
from tests.backends.packed_weights import make_weight

TYPES = ["f32", "f16", "bf16", "q4g32", "q4g32a", "q8g32", "q8g32a", "q8c", "q4g64", "q4ca", "q3g64a"]


@pytest.mark.parametrize("isa", host_isas(), ids=lambda isa: isa.name)
def test_rows_by_ids(isa: Isa) -> None:
    random, rows, columns = np.random.default_rng(4), 37, 77
    kernels = {name: embedding(isa, parse_element(name), rows, columns) for name in TYPES}
    library = Kernels(list(kernels.values()), isa)
    ids = aligned(np.array([0, 36, 5, 5, 17, 16], np.int32))
    for name, kernel in kernels.items():
        weight = make_weight(isa, parse_element(name), rows, columns, random)
        out = aligned(np.full((6, 80), np.nan, np.float32))
        for lo, hi in ((0, 2), (2, 6)):
            library.call(kernel, out, weight.packed, ids, lo, hi, 80)
        np.testing.assert_allclose(out[:, :columns], weight.values[ids], rtol=1e-6, atol=1e-6, err_msg=name)
        assert np.isnan(out[:, columns:]).all(), f"{name}: stores past the row"


def test_a_type_without_a_kernel_is_refused() -> None:
    with pytest.raises(UnsupportedError, match="multiple of 32"):
        embedding(host_isas()[0], QuantizedType(4, 48), 16, 32)
