"""Plain modules: attention with a recognised mask, held weights, precision, what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn

from slmopt import interpreter
from slmopt.errors import InputError, UnsupportedError
from slmopt.frontends import torch_module
from slmopt.ir.graph import Module, Weight
from tests.architectures import tiny_model

WIDTH, HEADS, VOCABULARY, CONTEXT = 24, 3, 31, 48


class Attention(nn.Module):
    """Causal attention as people write it, its mask in one of several ways."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.register_buffer("triangle", torch.ones(1, 1, CONTEXT, CONTEXT).tril().bool())

    def mask(self, length: int) -> dict[str, Any]:
        query, key = torch.arange(length)[:, None], torch.arange(length)[None, :]
        if self.kind == "causal":
            return {"is_causal": True}
        if self.kind == "buffer":
            return {"attn_mask": self.get_buffer("triangle")[:, :, :length, :length]}
        if self.kind == "window":
            return {"attn_mask": (query >= key) & (query - key < 7)}
        if self.kind == "slopes":
            return {"attn_mask": torch.where(query >= key, (key - query) * 0.1, float("-inf")), "scale": 0.2}
        return {}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, length, width = x.shape
        q, k, v = (
            part.view(batch, length, HEADS, width // HEADS).transpose(1, 2) for part in self.qkv(x).chunk(3, dim=-1)
        )
        y = F.scaled_dot_product_attention(q, k, v, **self.mask(length))
        found: torch.Tensor = self.out(y.transpose(1, 2).reshape(batch, length, width))
        return found


class Model(nn.Module):
    """Embedding, two blocks, tied head."""

    def __init__(self, kind: str = "causal") -> None:
        super().__init__()
        torch.manual_seed(1)
        self.tokens, self.places = nn.Embedding(VOCABULARY, WIDTH), nn.Embedding(CONTEXT, WIDTH)
        self.norms = nn.ModuleList([nn.LayerNorm(WIDTH), nn.RMSNorm(WIDTH)])
        self.blocks = nn.ModuleList([Attention(kind), Attention(kind)])
        self.drop = nn.Dropout(0.1)
        self.head = nn.Linear(WIDTH, VOCABULARY, bias=False)
        self.head.weight = self.tokens.weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.drop(self.tokens(ids) + self.places(torch.arange(ids.shape[1], device=ids.device)))
        for norm, block in zip(self.norms, self.blocks, strict=True):
            x = x + block(norm(x))
        logits: torch.Tensor = self.head(x)
        return logits


def check(module: Module, model: nn.Module, tolerance: float = 1e-5) -> None:
    for size in ((2, 9), (1, 1), (3, 1), (1, 2), (1, 40)):
        ids = torch.randint(0, module.metadata["vocab"], size, generator=torch.Generator().manual_seed(3))
        with torch.no_grad():
            expected = model(ids)
            expected = expected if isinstance(expected, torch.Tensor) else expected.logits
            found = interpreter.forward(module, ids)
        assert found.shape == expected.shape
        assert float((found - expected).abs().max() / expected.abs().max()) < tolerance


@pytest.mark.parametrize(
    ("kind", "structure"),
    [("causal", ("causal", None, 3)), ("buffer", ("causal", None, 3)), ("window", ("causal", 7, 3)),
     ("none", ("full", None, 3)), ("slopes", ("full", None, 4))],
)  # fmt: skip
def test_attention_becomes_one_op(kind: str, structure: tuple[str, int | None, int]) -> None:
    """Masks that are structures are attributes; what is none is added as numbers."""
    model = Model(kind).eval()
    module = torch_module.load(model)
    found = [op for op in module.graph().walk() if op.name == "attention"]
    assert [(op.attributes["mask"], op.attributes["window"], len(op.operands)) for op in found] == [structure] * 2
    assert [op.location for op in found] == ["blocks.0", "blocks.1"]
    check(module, model)


def test_weights_are_held_and_tied_ones_shared() -> None:
    model = Model().eval()
    module = torch_module.load(model, name="mine", context=CONTEXT, bos_token_id=1, eos_token_ids=[2])
    keys = [operand.key for op in module.graph().walk() for operand in op.operands if isinstance(operand, Weight)]
    assert keys.count("tokens.weight") == 2 and "head.weight" not in keys
    assert module.weights.load("tokens.weight").data_ptr() == model.tokens.weight.data_ptr()
    assert {name: module.metadata[name] for name in ("name", "vocab", "context", "bos_token_id", "eos_token_ids")} == {
        "name": "mine", "vocab": VOCABULARY, "context": CONTEXT, "bos_token_id": 1, "eos_token_ids": [2],
    }  # fmt: skip


def test_a_sliced_table_limits_the_context() -> None:
    assert torch_module.load(Model("buffer").eval()).metadata["context"] == CONTEXT
    assert torch_module.load(Model("buffer").eval(), context=20).metadata["context"] == 20
    assert torch_module.load(Model("causal").eval()).metadata["context"] is None


def test_half_precision_computes_in_float32() -> None:
    model = Model().eval().to(torch.bfloat16)
    module = torch_module.load(model)
    assert model.tokens.weight.dtype == torch.bfloat16
    check(module, model.float())


def test_a_model_of_transformers_keeps_its_attention() -> None:
    model = tiny_model("gemma2")
    module = torch_module.load(model)
    assert model.config._attn_implementation == "eager"
    assert sum(op.name == "attention" for op in module.graph().walk()) == 3
    check(module, model)


def test_writes_in_place_are_read_in_order() -> None:
    """Interleaved rotary positions written into slices, which torch makes functional."""

    class Rotary(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tokens = nn.Embedding(VOCABULARY, WIDTH)

        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            x = self.tokens(ids)
            angle = torch.arange(ids.shape[1])[:, None] / 10 ** torch.arange(WIDTH // 2)
            turned = torch.empty_like(x)
            turned[..., ::2] = x[..., ::2] * angle.cos() - x[..., 1::2] * angle.sin()
            turned[..., 1::2] = x[..., ::2] * angle.sin() + x[..., 1::2] * angle.cos()
            return turned @ self.tokens.weight.T

    model = Rotary().eval()
    check(torch_module.load(model), model)


def test_a_module_in_training_mode_is_refused() -> None:
    with pytest.raises(InputError, match=r"training mode.*\.eval\(\)"):
        torch_module.load(Model())


def test_parameters_without_numbers_are_refused() -> None:
    with torch.device("meta"):
        model = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 5)).eval()
    with pytest.raises(InputError, match=r"0\.weight is on the meta device"):
        torch_module.load(model)


def test_what_returns_no_logits_is_refused() -> None:
    class Names(nn.Module):
        def forward(self, ids: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"hidden": ids}

    with pytest.raises(UnsupportedError, match="returns dict, expected logits"):
        torch_module.load(Names().eval())
    with pytest.raises(InputError, match=r"expected logits \[b, s, vocabulary\]"):
        torch_module.load(nn.Sequential(nn.Embedding(5, 4), nn.Flatten()).eval())


def test_a_least_length_is_refused() -> None:
    class Long(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tokens = nn.Embedding(5, 4)

        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            torch._check(ids.shape[1] >= 5)  # type: ignore[no-untyped-call]
            return torch.as_tensor(self.tokens(ids))

    with pytest.raises(UnsupportedError, match="only where the sequence length is at least 5"):
        torch_module.load(Long().eval())


def test_a_fixed_length_is_refused() -> None:
    class Fixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tokens, self.places = nn.Embedding(5, 4), nn.Parameter(torch.zeros(7, 4))

        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            return torch.as_tensor(self.tokens(ids) + self.places)

    with pytest.raises(UnsupportedError, match="symbolic batch and sequence"):
        torch_module.load(Fixed().eval())
