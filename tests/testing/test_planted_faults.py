"""Every planted fault is found within the default budget, whatever the seed; the page says how soon."""

from __future__ import annotations

import pytest

from slmopt.pipeline import Pass
from tests.testing.faulty import FAULTS
from tests.testing.planted_faults import SEEDS, find_fault, read_table, table


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_found_with_every_seed(fault: type[Pass]) -> None:
    for seed in SEEDS:
        error = find_fault(fault, seed)
        assert error is not None, f"not found with seed {seed}"
        assert error.check in FAULTS[fault]
        assert 1 <= error.examples <= 50


def test_the_page_says_how_soon() -> None:
    assert read_table() == table()
