"""The passes `raise` and `canonicalize` on traced models of sixteen architectures: what is left, and equal logits."""

from __future__ import annotations

import math
from collections import Counter
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
from torch import nn

from slmopt.frontends import torch_module
from slmopt.frontends.huggingface import load
from slmopt.interpreter import forward, step_through
from slmopt.ir.graph import Module, Op, Value, Weight
from slmopt.ir.verify import verify
from slmopt.passes.canonicalize import canonicalize
from slmopt.passes.incrementalize import Incrementalize
from slmopt.passes.raise_ import Raise
from slmopt.pipeline import Context
from tests.architectures import ARCHITECTURES, save_tiny

NORMS = ("rms_norm", "layer_norm")
RAISED = frozenset({
    "embedding", "linear", *NORMS, "rope", "attention", "glu", "gelu", "relu", "silu", "reshape", "permute", "slice",
    "concat", "add", "mul", "div", "tanh", "constant",
})  # fmt: skip
POSITIONAL = frozenset({"arange", "reshape", "mul", "concat", "cos", "sin"})


@cache
def traced(name: str) -> tuple[Module, Module, Any]:
    """A tiny model as traced, after raise and canonicalize, and its config."""
    with TemporaryDirectory() as directory:
        config = save_tiny(Path(directory), name).config
        before = load(directory)
        before = in_memory(before)
    after = before.copy()
    Raise().run(after, Context())
    canonicalize(after)
    return before, after, config


def in_memory(module: Module) -> Module:
    """The module with its weights read, for a directory that goes away."""
    held = Module(module.name, [graph.copy() for graph in module.graphs.values()], metadata=module.metadata)
    for key in module.weight_types():
        held.weights.add_tensor(key, module.weights.load(key).clone())
    return held


def ids(batch: int, length: int) -> torch.Tensor:
    return torch.randint(0, 97, (batch, length), generator=torch.Generator().manual_seed(length))


def depends_on_tokens(graph_input: Value, op: Op) -> bool:
    """Whether an op reads, through others, the token ids."""
    pending, seen = [op], set[Op]()
    while pending:
        current = pending.pop()
        seen.add(current)
        for operand in current.operands:
            if operand is graph_input:
                return True
            if isinstance(operand, Value) and operand.op is not None and operand.op not in seen:
                pending.append(operand.op)
    return False


@pytest.fixture(params=ARCHITECTURES)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_logits_are_equal(name: str) -> None:
    before, after, _ = traced(name)
    verify(after)
    for batch, length in ((2, 13), (1, 1), (3, 2), (1, 40)):
        expected, found = (forward(module, ids(batch, length)) for module in (before, after))
        assert float((found - expected).abs().max() / expected.abs().max()) <= 1e-5


def test_what_is_left_is_raised(name: str) -> None:
    _, after, _ = traced(name)
    graph = after.graph()
    on_tokens = [op for op in graph.walk() if depends_on_tokens(graph.inputs[0], op)]
    others = [op for op in graph.walk() if op not in on_tokens]
    assert {op.name for op in on_tokens} <= RAISED
    # What does not depend on the tokens counts positions, looks them up, turns them into cosines, or is a number.
    assert {op.name for op in others} <= POSITIONAL | {"constant", "embedding"}


def test_one_attention_a_layer_and_its_projections(name: str) -> None:
    _, after, config = traced(name)
    graph = after.graph()
    count = Counter(op.name for op in graph.walk())
    layers = config.num_hidden_layers
    assert count["attention"] == layers
    assert count["embedding"] in (1, 2)
    # Per layer: one fused or three apart for q, k, v; the output; two or three of the feed-forward part. And the head.
    assert (count["linear"] - 1) % layers == 0
    assert (count["linear"] - 1) // layers in (4, 5, 6, 7)
    assert count["glu"] + count["gelu"] + count["relu"] == layers
    assert sum(count[norm] for norm in NORMS) >= layers + 1
    assert graph.outputs[0].shape[-1] == config.vocab_size


def test_norms_have_their_weights_and_no_arithmetic_follows(name: str) -> None:
    _, after, _ = traced(name)
    for op in after.graph().walk():
        if op.name in NORMS:
            assert isinstance(op.operands[1], Weight)
        if op.name in ("add", "mul"):
            # A residual sum or a scaling by a number: never a weight, which would be a norm's or a bias.
            assert not any(isinstance(operand, Weight) for operand in op.operands) or op.name == "mul"


def test_attention_is_structural(name: str) -> None:
    """Masks, windows, soft caps and linear biases are attributes and slopes; no dense bias is left."""
    _, after, config = traced(name)
    found = [op for op in after.graph().walk() if op.name == "attention"]
    for op in found:
        assert op.attributes["mask"] == "causal"
        assert len(op.operands) <= 3 or op.operands[3] is None
    windows = [op.attributes["window"] for op in found]
    kinds = getattr(config, "layer_types", None)
    window = getattr(config, "sliding_window", None)
    if kinds and window:
        assert windows == [window if kind == "sliding_attention" else None for kind in kinds]
    elif window:
        assert windows == [window] * len(found)
    else:
        assert windows == [None] * len(found)
    cap = getattr(config, "attn_logit_softcapping", None)
    assert all(op.attributes["softcap"] == cap for op in found)


def test_rotary_embedding_turns_queries_and_keys_where_the_config_says(name: str) -> None:
    _, after, config = traced(name)
    ropes = [op for op in after.graph().walk() if op.name == "rope"]
    frequencies = {id(op) for op in after.graph().walk() if op.name in ("cos", "sin")}
    if not frequencies:
        assert not ropes
        return
    skipped = getattr(config, "no_rope_layers", None)  # 1: the layer has rotary embedding
    turned = sum(skipped) if skipped else config.num_hidden_layers
    assert len(ropes) == 2 * turned
    assert all(op.attributes["style"] == "half" for op in ropes)
    # One cosine and one sine for each kind of rotary embedding, not for each layer.
    assert len(frequencies) <= 4
    parameters = getattr(config, "rope_parameters", None) or {}
    share = parameters.get("partial_rotary_factor", 1.0)
    for op in ropes:
        width, rotary = op.value(0).shape[-1], op.value(1).shape[-1]
        assert isinstance(width, int)
        assert rotary == int(width * share)


def test_second_run_finds_nothing(name: str) -> None:
    _, after, _ = traced(name)
    again = after.copy()
    assert Raise().run(again, Context()) == {}
    assert canonicalize(again) == {}
    assert again == after


def test_decoding_in_steps_equals_the_whole(name: str) -> None:
    before, after, _ = traced(name)
    module = after.copy()
    Incrementalize().run(module, Context())
    expected = forward(before, ids(2, 12))
    found = step_through(module, ids(2, 12), (5, 1, 1, 5))
    assert float((found - expected).abs().max() / expected.abs().max()) <= 1e-5


class Norm(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.gain, self.shift = nn.Parameter(torch.randn(width)), nn.Parameter(torch.randn(width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        centred = x - x.mean(-1, keepdim=True)
        return centred / torch.sqrt(x.var(-1, keepdim=True, unbiased=False) + 1e-5) * self.gain + self.shift


class Block(nn.Module):
    """A layer as people write it by hand: repeated heads, a triangle of ones, gelu in arithmetic."""

    def __init__(self, width: int, heads: int, groups: int) -> None:
        super().__init__()
        self.heads, self.groups, self.size = heads, groups, width // heads
        self.before, self.between = Norm(width), nn.RMSNorm(width, eps=1e-6)
        self.q, self.k = nn.Linear(width, width), nn.Linear(width, groups * self.size)
        self.v, self.o = nn.Linear(width, groups * self.size), nn.Linear(width, width, bias=False)
        self.up, self.down = nn.Linear(width, 3 * width), nn.Linear(3 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        b, s, width = x.shape
        y = self.before(x)
        q = self.q(y).view(b, s, self.heads, self.size).transpose(1, 2)
        k, v = (f(y).view(b, s, self.groups, self.size).transpose(1, 2) for f in (self.k, self.v))
        k, v = (part.repeat_interleave(self.heads // self.groups, 1) for part in (k, v))
        scores = (q @ k.transpose(-2, -1)) / math.sqrt(self.size)
        scores = scores.masked_fill(torch.tril(torch.ones(s, s)) == 0, float("-inf"))
        x = x + self.o((scores.softmax(-1) @ v).transpose(1, 2).reshape(b, s, width))
        z = self.up(self.between(x))
        z = 0.5 * z * (1 + torch.tanh(math.sqrt(2 / math.pi) * (z + 0.044715 * z**3)))
        return x + self.down(z)  # type: ignore[no-any-return]


class ByHand(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.positions = nn.Embedding(97, 48), nn.Parameter(torch.randn(64, 48))
        self.layers, self.last = nn.ModuleList(Block(48, 4, 2) for _ in range(2)), Norm(48)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.tokens(ids) + self.positions[: ids.shape[1]]
        for layer in self.layers:
            x = layer(x)
        return self.last(x) @ self.tokens.weight.T  # type: ignore[no-any-return]


def test_model_written_by_hand() -> None:
    torch.manual_seed(0)
    model = ByHand().eval()
    module = torch_module.load(model, name="by_hand")
    Raise().run(module, Context())
    count = Counter(op.name for op in module.graph().walk())
    assert count == {
        "embedding": 2, "arange": 1, "linear": 13, "layer_norm": 3, "rms_norm": 2, "attention": 2, "gelu": 2, "add": 5,
        "reshape": 8, "permute": 8,
    }  # fmt: skip
    for op in module.graph().walk():
        if op.name == "attention":
            assert (op.attributes["mask"], op.value(1).shape[1], len(op.operands)) == ("causal", 2, 3)
    found = [o.key for op in module.graph().walk() for o in op.operands if isinstance(o, Weight)]
    assert found.count("tokens.weight") == 2
    with torch.no_grad():
        expected = model(ids(2, 11))
        assert float((forward(module, ids(2, 11)) - expected).abs().max() / expected.abs().max()) <= 1e-5
    Incrementalize().run(module, Context())
    with torch.no_grad():
        stepped = step_through(module, ids(2, 11), (4, 1, 6))
    assert float((stepped - expected).abs().max() / expected.abs().max()) <= 1e-5


def test_tied_weights_stay_one() -> None:
    _, after, _ = traced("llama")
    keys = [o.key for op in after.graph().walk() for o in op.operands if isinstance(o, Weight)]
    assert keys.count("model.embed_tokens.weight") == 2


def test_slopes_are_one_weight_of_all_layers() -> None:
    _, after, config = traced("bloom")
    slopes = [op.operands[5] for op in after.graph().walk() if op.name == "attention"]
    assert all(isinstance(weight, Weight) for weight in slopes)
    assert len(set(slopes)) == 1
    weight = slopes[0]
    assert isinstance(weight, Weight)
    # Press et al. 2022: a geometric sequence for the largest power of two, every other one of the next for the rest.
    assert config.n_head == 3
    assert after.weights.float(weight.key).tolist() == pytest.approx([2**-4, 2**-8, 2**-2])
