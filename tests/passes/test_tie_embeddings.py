"""The pass `tie-embeddings`."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from slmopt.backends.cpu.backend import CpuBackend
from slmopt.errors import InputError, UnsupportedError
from slmopt.interpreter import forward
from slmopt.passes.quantize.round_to_nearest import Quantize
from slmopt.passes.share.tie_embeddings import TieEmbeddings
from slmopt.target import parse_target
from tests.backends.native import BUILTIN
from tests.passes.toys import IDS, apply, graph_text, toy
from tests.rewritten import VARIETY, check_rewritten, raised, rewritten

UNTIED = """
    %x = embedding(%ids, weight @table : f32[50, 40]) : f32[b, s, 40]
    %h = linear(%x, weight @inner : f32[40, 40]) : f32[b, s, 40]
    %logits = linear(%h, weight @head : f32[50, 40], weight @bias : f32[50]) : f32[b, s, 50]
    return %logits
"""


def test_golden() -> None:
    found, changes = apply(toy(UNTIED, signature=IDS), TieEmbeddings())
    assert graph_text(found.graph()) == graph_text("""
        graph @forward(%ids: i64[b, s]) {
          %x = embedding(%ids, weight @head : f32[50, 40]) : f32[b, s, 40]
          %h = linear(%x, weight @inner : f32[40, 40]) {activation = none, act = none} : f32[b, s, 40]
          %logits = linear(%h, weight @head : f32[50, 40], weight @bias : f32[50]) {activation = none, act = none} : f32[b, s, 50]
          return %logits
        }
    """)  # noqa: E501
    assert changes == {"weight": 1}
    assert apply(found, TieEmbeddings())[1] == {}


@pytest.mark.parametrize("keep", ["head", "embedding", "mean"])
def test_numbers_are_those_of_the_kept_weight(keep: str) -> None:
    module = toy(UNTIED, signature=IDS)
    found, _ = apply(module, TieEmbeddings(keep))
    table, head = (module.weights.float(key) for key in ("table", "head"))
    both = {"head": head, "embedding": table, "mean": (table + head) / 2}[keep]
    ids = torch.arange(12).reshape(2, 6)
    torch.testing.assert_close(forward(found, ids), forward(module, ids, {"table": both, "head": both}))
    assert len(found.weight_types()) == 3


def test_what_was_shared_before_still_is() -> None:
    more = """%u = linear(%h, weight @table : f32[50, 40]) : f32[b, s, 50]
    %d = linear(%u, weight @down : f32[40, 50]) : f32[b, s, 40]
    """
    body = UNTIED.replace("%logits = linear(%h", f"{more}%logits = linear(%d")
    found, changes = apply(toy(body, signature=IDS), TieEmbeddings())
    assert changes == {"weight": 1}
    assert "table" not in found.weight_types()


MUST_NOT = {
    "tied already": UNTIED.replace("@head", "@table"),
    "no head": "%x = embedding(%ids, weight @table : f32[50, 40]) : f32[b, s, 40]\nreturn %x",
    "a table of positions": """
        %i = arange() {start = 0, stop = s, element = "i64"} : i64[s]
        %x = embedding(%i, weight @table : f32[50, 40]) : f32[s, 40]
        %logits = linear(%x, weight @head : f32[50, 40]) : f32[s, 50]
        return %logits
    """,
}


@pytest.mark.parametrize("case", MUST_NOT)
def test_must_not_fire(case: str) -> None:
    module = toy(MUST_NOT[case], signature=IDS)
    found, changes = apply(module, TieEmbeddings())
    assert changes == {}
    assert found == module


def test_what_cannot_be_one_is_named() -> None:
    narrow = UNTIED.replace("f32[50, 40], weight @bias : f32[50]) : f32[b, s, 50]",
                            "f32[49, 40], weight @bias : f32[49]) : f32[b, s, 49]")  # fmt: skip
    with pytest.raises(UnsupportedError, match=r"@table : f32\[50, 40\] and .*@head : f32\[49, 40\]: only"):
        apply(toy(narrow, signature=IDS), TieEmbeddings())
    two = UNTIED.replace("return %logits", "%more = linear(%h, weight @other : f32[50, 40]) : f32[b, s, 50]\n"
                         "return %logits, %more")  # fmt: skip
    with pytest.raises(UnsupportedError, match=r"several linears that give logits: .*@head, .*@other"):
        apply(toy(two, signature=IDS), TieEmbeddings())
    quantized, _ = apply(toy(UNTIED, signature=IDS), Quantize())
    with pytest.raises(UnsupportedError, match="quantized weights have no mean"):
        apply(quantized, TieEmbeddings("mean"))
    assert apply(quantized, TieEmbeddings())[1] == {"weight": 1}


def test_wrong_option() -> None:
    with pytest.raises(InputError, match="keep must be head, embedding or mean, got 'both'"):
        TieEmbeddings("both")


@pytest.mark.parametrize("name", VARIETY)
def test_every_architecture(name: str, tmp_path: Path) -> None:
    module = raised(tmp_path, name, tie_word_embeddings=False)
    tied = raised(tmp_path / "tied", name, tie_word_embeddings=True)
    assert len(module.weight_types()) == len(tied.weight_types()) + 1
    tied = rewritten(tied, [])
    module = rewritten(module, [TieEmbeddings()])
    assert len(module.weight_types()) == len(tied.weight_types())
    check_rewritten(module, tmp_path)
    whole = tmp_path / "tied" / "artifact"
    CpuBackend(BUILTIN).build(tied, parse_target("cpu:context=48,chunk=16"), whole)
    sizes = [(artifact / "weights.bin").stat().st_size for artifact in (tmp_path / "artifact", whole)]
    assert sizes[0] == sizes[1]  # the matrix is stored once
