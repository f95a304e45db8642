"""The recipes that benchmarks.rewrites measures: passes and options that there are, in an order that holds."""

from __future__ import annotations

import pytest

from benchmarks.rewrites import ROWS, Row, rewrites_table
from slmopt.api import resolve_recipe
from slmopt.pipeline import Pipeline


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_recipes(row: Row) -> None:
    passes, _ = resolve_recipe(row.recipe)
    Pipeline(passes).check_order()
    assert len(passes) == len(row.passes) + 4


def test_rows_that_were_not_measured_are_left_out() -> None:
    rows = {
        name: {"perplexity": perplexity, "weight bytes": 1_000_000, "seconds of healing": seconds}
        for name, perplexity, seconds in (("f32", 4.0, 0.0), ("prune-ffn 0.25, healed", 4.4, 90.0))
    }
    assert rewrites_table(rows).splitlines()[2:] == [
        "| f32 | 4.0000 | +0.00% |  | 1.00 MB |  |",
        "| prune-ffn 0.25, healed | 4.4000 | +10.00% | +20.0% | 1.00 MB | 1.5 min |",
    ]
