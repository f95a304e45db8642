"""Masks by structure: read off mask functions, and off tensors that a model makes itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import masking_utils

from slmopt.dense_masks import structure_of
from slmopt.ir.graph import Value
from slmopt.masks import MaskStructure, classify
from tests.frontends.test_aten import converted

causal = masking_utils.causal_mask_function


@given(st.booleans(), st.sampled_from(["none", "window", "chunk"]), st.integers(1, 100_000), st.booleans())
@settings(deadline=None, max_examples=60)
def test_every_structure_is_found(is_causal: bool, kind: str, size: int, told: bool) -> None:
    """Any window, told or not, any chunk that the model names, causal or not."""
    structure = MaskStructure(is_causal, size if kind == "window" else None, size if kind == "chunk" else None)

    def function(batch: Any, head: Any, query: Any, key: Any) -> Any:
        seen = (key <= query) | (not is_causal)
        if kind == "window":
            seen = seen & (query - key < size)
        return seen & (query // size == key // size) if kind == "chunk" else seen

    found = classify(function, size if told or kind == "chunk" else None)
    assert found is not None
    positions = torch.tensor(sorted({*range(40), *(m * size + d for m in (1, 2, 3) for d in (-1, 0, 1))}))
    assert torch.equal(found.allowed(positions, positions), structure.allowed(positions, positions))
    assert found == structure or size == 1


@pytest.mark.parametrize(
    ("function", "size", "expected"),
    [
        (causal, None, MaskStructure(True)),
        (masking_utils.bidirectional_mask_function, None, MaskStructure(False)),
        (masking_utils.sliding_window_causal_mask_function(4096), 4096, MaskStructure(True, window=4096)),
        (masking_utils.sliding_window_causal_mask_function(4096), None, MaskStructure(True, window=4096)),
        (
            masking_utils.chunked_causal_mask_function(64, torch.zeros(1, dtype=torch.int64)),
            64,
            MaskStructure(True, chunk=64),
        ),
        (masking_utils.sliding_window_bidirectional_mask_function(4), 4, None),
        (masking_utils.padding_mask_function(torch.ones(1, 4)), None, None),
        (lambda b, h, q, k: (k <= q) & (k != 3), None, None),
        (lambda b, h, q, k: (k <= q) | (k < 5), None, None),
        (lambda b, h, q, k: (q - k) % 2 == 0, None, None),
        (lambda b, h, q, k: k > q, None, None),
    ],
)
def test_mask_functions_of_transformers(
    function: Callable[..., Any], size: int | None, expected: MaskStructure | None
) -> None:
    assert classify(function, size) == expected


class _Mask(torch.nn.Module):
    def __init__(self, function: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.function = function
        self.register_buffer("triangle", torch.ones(1, 1, 48, 48).tril().bool())
        self.register_buffer("banded", torch.ones(48, 48).tril().triu(-4).bool())
        self.register_buffer("holed", torch.ones(48, 48).tril().index_fill(1, torch.tensor([40]), 0).bool())

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.function(self, ids)  # type: ignore[arg-type]


def positions(ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    numbers = torch.arange(ids.shape[1])
    return numbers[:, None], numbers[None, :]


def difference(ids: torch.Tensor) -> torch.Tensor:
    query, key = positions(ids)
    return query - key


def square(buffer: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    return buffer[..., : ids.shape[1], : ids.shape[1]]


MASKS: dict[str, tuple[Callable[[Any, torch.Tensor], torch.Tensor], MaskStructure | None]] = {
    "causal by positions": (lambda m, ids: difference(ids) >= 0, MaskStructure(True)),
    "causal numbers": (
        lambda m, ids: torch.full((ids.shape[1], ids.shape[1]), float("-inf")).triu(1), MaskStructure(True),
    ),
    "causal lowest float": (
        lambda m, ids: (difference(ids) < 0).float()[None, None] * torch.finfo(torch.float32).min, MaskStructure(True),
    ),
    "causal for the batch": (
        lambda m, ids: (difference(ids) >= 0)[None, None].expand(ids.shape[0], -1, -1, -1), MaskStructure(True),
    ),
    "causal buffer": (lambda m, ids: square(m.triangle, ids), MaskStructure(True)),
    "banded buffer": (lambda m, ids: square(m.banded, ids), MaskStructure(True, window=5)),
    "buffer with a far hole": (lambda m, ids: square(m.holed, ids), None),
    "window": (lambda m, ids: (difference(ids) >= 0) & (difference(ids) < 300), MaskStructure(True, window=300)),
    "window up to and with": (
        lambda m, ids: (difference(ids) >= 0) & (difference(ids) <= 300), MaskStructure(True, window=301),
    ),
    "chunks": (
        lambda m, ids: (difference(ids) >= 0) & (positions(ids)[0] // 9 == positions(ids)[1] // 9),
        MaskStructure(True, chunk=9),
    ),
    "everything": (lambda m, ids: difference(ids) == difference(ids), MaskStructure(False)),
    "window wider than what is looked at": (lambda m, ids: (difference(ids) >= 0) & (difference(ids) < 5000), None),
    "slopes": (lambda m, ids: -difference(ids).abs().float(), None),
    "token ids": (lambda m, ids: (ids[:, None] == ids[:, :, None]) & (difference(ids) >= 0), None),
    "anticausal": (lambda m, ids: difference(ids) < 0, None),
    "unlike batch rows": (
        lambda m, ids: (difference(ids) >= 0)[None] & (torch.arange(ids.shape[0])[:, None, None] == 0), None,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MASKS)
def test_masks_a_model_makes_itself(name: str) -> None:
    function, expected = MASKS[name]
    module = converted(_Mask(function))
    mask = module.graph().outputs[0]
    assert isinstance(mask, Value)
    assert structure_of(mask, module.weights) == expected
