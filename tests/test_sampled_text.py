"""Text that a model samples itself."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
import torch

from slmopt.calibrate import Calibration
from slmopt.errors import InputError, UnsupportedError
from slmopt.interpreter import forward
from slmopt.ir.graph import Module
from slmopt.sampled_text import sample_calibration
from tests.passes.toys import toy
from tests.rewritten import VARIETY, raised
from tests.toy_model import toy_model

NEXT = """
    %x = embedding(%ids, weight @table : f32[4, 4]) : f32[b, s, 4]
    %logits = linear(%x, weight @head : f32[4, 4]) : f32[b, s, 4]
    return %logits
"""
# What follows a token: 0 is followed by 2 or 3, 2 by 2 or 3 or the end, token 1.
SCORES = torch.tensor([[0.0, 0.0, 1.0, 1.0], [1.0, 1.0, 1.0, 1.0], [0.0, 1.0, 2.0, 1.0], [0.0, 0.0, 1.0, 1.0]])


def chain(scores: torch.Tensor = SCORES, **metadata: object) -> Module:
    """A model of which the next token depends on the last alone: its probability is scores[last] over their sum."""
    head = scores.clamp(min=1e-30).log().T.contiguous()
    module = toy(NEXT, signature="%ids: i64[b, s]", table=torch.eye(4), head=head)
    module.metadata.update({"context": 64, "bos_token_id": 0, "eos_token_ids": [1], "sequence": "s", **metadata})
    return module


def test_documents_begin_with_bos_and_end_with_eos_or_the_context() -> None:
    found = sample_calibration(chain(), 3000, seed=3)
    assert found.tokens == 3000
    assert {document[0] for document in found.documents} == {0}
    assert all(0 not in document[1:] and 1 not in document[:-1] for document in found.documents)
    ended = [document[-1] == 1 for document in found.documents[:-1]]
    assert all(end or len(document) == 64 for end, document in zip(ended, found.documents, strict=False))
    assert any(ended)
    assert len({len(document) for document in found.documents}) > 5


def test_tokens_are_drawn_from_the_distribution() -> None:
    found = sample_calibration(chain(), 30000, seed=5)
    pairs = torch.tensor([pair for document in found.documents for pair in pairwise(document)])
    counts = torch.zeros(4, 4).index_put((pairs[:, 0], pairs[:, 1]), torch.ones(len(pairs)), accumulate=True)
    shares = counts / counts.sum(1, keepdim=True)
    expected = SCORES / SCORES.sum(1, keepdim=True)
    for last in (2, 3):  # 0 is seen once in each document, 1 never followed
        torch.testing.assert_close(shares[last], expected[last], rtol=0, atol=0.02)
    sharp = sample_calibration(chain(), 30000, seed=5, temperature=0.5)
    follow = [b for d in sharp.documents for a, b in pairwise(d) if a == 2]
    assert abs(follow.count(2) / len(follow) - 4 / 6) < 0.02


def test_the_same_seed_gives_the_same_text_in_whatever_batches() -> None:
    first = sample_calibration(chain(), 1000, seed=1)
    assert first == sample_calibration(chain(), 1000, seed=1, batch=3)
    assert first == sample_calibration(chain(), 1000, seed=1)
    assert first != sample_calibration(chain(), 1000, seed=2)
    more = sample_calibration(chain(), 2000, seed=1)
    assert more.documents[: len(first.documents) - 1] == first.documents[:-1]


def test_before_another_bos_a_document_ends() -> None:
    scores = SCORES.clone()
    scores[:, 0] = 0.5
    found = sample_calibration(chain(scores, eos_token_ids=[]), 1000, seed=1)
    assert all(0 not in document[1:] and len(document) > 1 for document in found.documents)


def test_without_bos_documents_begin_with_any_token() -> None:
    found = sample_calibration(chain(bos_token_id=None), 2000, seed=1, context=5)
    assert {document[0] for document in found.documents} == {0, 1, 2, 3}
    assert max(map(len, found.documents)) == 5


@pytest.mark.parametrize("name", VARIETY)
def test_greedy_text_of_every_architecture_is_what_forward_says(name: str, tmp_path: Path) -> None:
    module = raised(tmp_path, name)
    before = str(module)
    found = sample_calibration(module, 200, seed=1, temperature=1e-4, context=70)
    assert str(module) == before
    for document in found.documents:
        ids = torch.tensor([document[:-1]])
        scores = forward(module, ids)[0]
        picked = scores.gather(1, torch.tensor(document[1:])[:, None])[:, 0]
        torch.testing.assert_close(picked, scores.amax(1), rtol=0, atol=2e-3 * float(scores.abs().max()))


def test_caches_grow_while_documents_end() -> None:
    module = toy_model()
    found = sample_calibration(module, 600, seed=4, temperature=2.0, batch=4)
    assert isinstance(found, Calibration)
    assert found == sample_calibration(module, 600, seed=4, temperature=2.0, batch=1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tokens": 1}, "2 tokens or more"),
        ({"temperature": 0.0}, "positive temperature"),
        ({"temperature": float("nan")}, "positive temperature"),
        ({"context": 1}, "context of 2 tokens or more, got 1"),
    ],
)
def test_wrong_wishes_are_refused(options: dict[str, float], message: str) -> None:
    with pytest.raises(InputError, match=message):
        sample_calibration(chain(), **{"tokens": 10, "seed": 1, **options})  # type: ignore[arg-type]


def test_a_model_without_a_context_needs_one_given() -> None:
    with pytest.raises(InputError, match="context of 2 tokens or more, got none"):
        sample_calibration(chain(context=None), 10, seed=1)
    assert sample_calibration(chain(context=None), 10, seed=1, context=8).tokens == 10


def test_a_model_that_says_nothing_is_refused() -> None:
    silent = torch.full((4, 4), 1e-30)
    silent[:, 0] = 1.0
    with pytest.raises(InputError, match="ends each of 1 documents at once"):
        sample_calibration(chain(silent), 10, seed=1)


def test_a_model_that_gives_no_numbers_is_refused() -> None:
    with pytest.raises(InputError, match="not numbers"):
        sample_calibration(chain(torch.full((4, 4), float("nan"))), 10, seed=1)


def test_what_is_no_language_model_is_refused() -> None:
    module = toy("%y = relu(%x) : f32[b, s, 64]\nreturn %y")
    with pytest.raises(UnsupportedError, match=r"@toy samples no text: @forward must be"):
        sample_calibration(module, 10, seed=1, context=8)
