"""A plain torch.nn.Module, and one written in IR, compiled: the library's logits are the module's."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import slmopt
from slmopt.interpreter import forward
from tests.passes.toys import toy


class Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norms = nn.ModuleList([nn.LayerNorm(width), nn.LayerNorm(width)])
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        b, s, width = x.shape
        parts = self.qkv(self.norms[0](x)).chunk(3, -1)
        q, k, v = (part.view(b, s, self.heads, width // self.heads).transpose(1, 2) for part in parts)
        mixed = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).reshape(b, s, width))
        found: torch.Tensor = x + self.down(nn.functional.gelu(self.up(self.norms[1](x))))
        return found


class LanguageModel(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(50, 24), nn.Embedding(64, 24)
        self.blocks = nn.ModuleList([Block(24, 2), Block(24, 3)])  # layers of unequal heads are ordinary
        self.norm, self.head = nn.LayerNorm(24), nn.Linear(24, 50, bias=False)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.tokens(ids) + self.places(torch.arange(ids.shape[1]))
        for block in self.blocks:
            x = block(x)
        found: torch.Tensor = self.head(self.norm(x))
        return found


def test_a_plain_module_is_compiled(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = LanguageModel().eval()
    artifact = slmopt.compile(slmopt.load(model), "cpu:context=64", tmp_path / "model", recipe="f32")
    ids = torch.randint(0, 50, (1, 40))
    with torch.no_grad(), slmopt.open(artifact) as compiled:
        np.testing.assert_allclose(compiled.logits(ids[0].tolist()), model(ids)[0].numpy(), atol=1e-5)


@pytest.mark.parametrize("batch", ["b", "n"])
def test_the_symbol_of_sequences_may_have_any_name(batch: str, tmp_path: Path) -> None:
    """One that attends over its past, so that it keeps a state for each of them."""
    heads = f"f32[{batch}, 2, s, 8]"
    module = toy(f"""
        %x = embedding(%ids, weight @table : f32[30, 16]) : f32[{batch}, s, 16]
        %r = reshape(%x) {{shape = [{batch}, s, 2, 8]}} : f32[{batch}, s, 2, 8]
        %h = permute(%r) {{axes = [0, 2, 1, 3]}} : {heads}
        %a = attention(%h, %h, %h) {{scale = 0.3}} : {heads}
        %p = permute(%a) {{axes = [0, 2, 1, 3]}} : f32[{batch}, s, 2, 8]
        %m = reshape(%p) {{shape = [{batch}, s, 16]}} : f32[{batch}, s, 16]
        %y = linear(%m, weight @table : f32[30, 16]) : f32[{batch}, s, 30]
        return %y
    """, signature=f"%ids: i64[{batch}, s]")  # fmt: skip
    module.metadata.update(batch=batch, sequence="s", context=32, vocab=30)
    artifact = slmopt.compile(module, "cpu", tmp_path / "model", recipe=["incrementalize"])
    ids = torch.arange(20)[None] * 7 % 30
    with slmopt.open(artifact) as compiled:
        np.testing.assert_allclose(compiled.logits(ids[0].tolist()), forward(module, ids)[0].numpy(), atol=1e-5)
