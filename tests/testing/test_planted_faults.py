"""Every planted fault is found within the default budget, whatever the seed."""

from __future__ import annotations

import pytest

from slmopt.pipeline import Pass
from slmopt.testing import ConformanceError, check_pass
from tests.testing.faulty import FAULTS

SEEDS = range(6)


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_found_with_every_seed(fault: type[Pass]) -> None:
    for seed in SEEDS:
        with pytest.raises(ConformanceError) as caught:
            check_pass(fault, seed=seed, shrink=False)
        assert caught.value.check in FAULTS[fault]
        assert 1 <= caught.value.examples <= 50
