"""Every conversion rule: a function of x [b, s, 6] traced, converted and compared with torch at several sizes."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F  # noqa: N812

from slmopt import interpreter
from slmopt.errors import UnsupportedError
from slmopt.frontends import export
from slmopt.frontends.aten import RULES
from slmopt.frontends.convert import convert
from slmopt.frontends.export import export_forward
from slmopt.frontends.parameters import held, weights_on_demand
from slmopt.ir.graph import Module
from slmopt.ir.weights import WeightStore

Function = Callable[[torch.Tensor], torch.Tensor]
SIZES = ((2, 5), (1, 1), (3, 1), (1, 2), (2, 9))


class _Model(torch.nn.Module):
    """Embeds the ids and applies a function; the table has negative, zero and large entries."""

    def __init__(self, function: Function) -> None:
        super().__init__()
        self.function = function
        self.table = torch.nn.Parameter(torch.linspace(-3, 3, 11 * 6).reshape(11, 6).round(decimals=1))

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.function(F.embedding(ids, self.table))


def converted(model: torch.nn.Module) -> Module:
    """The module with the graph of a torch model whose output may have any shape."""
    program = export_forward(model.eval(), "test", "cpu")
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers()), **program.constants}
    sources = {name.removeprefix("model."): held(value, "test") for name, value in tensors.items()}
    store = WeightStore()
    graph = convert(program, weights_on_demand(store, sources, {}, "model"), store, wrapper="model")
    return Module("test", [graph], store)


def ids_of(batch: int, length: int) -> torch.Tensor:
    return torch.arange(batch * length).mul(7).remainder(11).reshape(batch, length)


def check(function: Function) -> None:
    model = _Model(function)
    module = converted(model)
    for size in SIZES:
        ids = ids_of(*size)
        with torch.no_grad():
            expected, found = model(ids), interpreter.run(module, "forward", [ids])[0]
        assert found.dtype == expected.dtype and found.shape == expected.shape, (size, found.shape, expected.shape)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6, equal_nan=True)


def steps(x: torch.Tensor) -> torch.Tensor:
    """The positions of x, as integers."""
    return torch.arange(x.shape[1])


ELEMENTWISE: dict[str, Function] = {
    "add alpha": lambda x: torch.add(x, x * 2, alpha=3),
    "add int": lambda x: x + steps(x)[:, None],
    "sub alpha": lambda x: torch.sub(x, 2, alpha=0.5),
    "rsub": lambda x: 1 - x,
    "rsub alpha": lambda x: torch.rsub(x, 3.0, alpha=2),
    "mul size": lambda x: x * x.shape[1],
    "div": lambda x: x / 3,
    "div of ints": lambda x: steps(x) / 2,
    "div floor": lambda x: torch.div(x, 0.7, rounding_mode="floor"),
    "floor divide ints": lambda x: steps(x) // 2,
    "pow": lambda x: x**3,
    "pow of number": lambda x: 2.0**x,
    "pow of tensors": lambda x: torch.pow(x.abs() + 1, steps(x)[:, None]),
    "floor divide": lambda x: x // -0.3,
    "remainder": lambda x: steps(x) % 3,
    "maximum": lambda x: torch.maximum(x, -x),
    "min of two": lambda x: torch.min(x, x * x),
    "max of two": lambda x: torch.max(x, x * x),
    "square": torch.square,
    "clamp": lambda x: x.clamp(-1, 1),
    "clamp min": lambda x: x.clamp(min=0.5),
    "clamp_min": lambda x: torch.clamp_min(x, 0.2),
    "clamp_max": lambda x: torch.clamp_max(x, 0.2),
    "comparisons": lambda x: torch.stack([x > 0, x >= 0, x < 0.5, x <= 0, x == 0, x != 0.1]).float(),
    "compare int with float": lambda x: (steps(x) > 1.5).long(),
    "logic": lambda x: (((x > 0) & (x < 1)) | ~(x < -1)).float(),
    "logic by name": lambda x: torch.logical_or(torch.logical_and(x > 0, x < 1), torch.logical_not(x < 2)),
    "where": lambda x: torch.where(x > 0, x, x * 0.1),
    "where number": lambda x: torch.where(x > 0, x, 0.5),
    "where numbers": lambda x: torch.where(x > 0, 1.0, -1.0),
    "masked_fill": lambda x: x.masked_fill(x < 0, float("-inf")),
    "gelu": F.gelu,
    "gelu tanh": lambda x: F.gelu(x, approximate="tanh"),
    "silu": F.silu,
    "relu": F.relu,
    "leaky_relu": lambda x: F.leaky_relu(x, 0.2),
    "softplus": F.softplus,
    "logsigmoid": F.logsigmoid,
    "unary": lambda x: torch.stack([x.exp(), x.sin(), x.cos(), x.tanh(), x.sigmoid(), x.neg(), x.abs(), x.floor()]),
    "unary of positive": lambda x: torch.stack([f(x * x + 1) for f in (torch.log, torch.sqrt, torch.rsqrt)]),
    "more unary": lambda x: torch.stack(
        [f(x * x + 1) for f in (torch.log1p, torch.expm1, torch.reciprocal, torch.erf)]
    ),
    "unary of ints": lambda x: steps(x).sin(),
    "casts": lambda x: x.long().float() + x.double().to(torch.float32) + (x > 0).type_as(x),
    "half and back": lambda x: x.half().float(),
    "neutral": lambda x: (x + 0) * 1 / 1 - 0,
    "neutral changes type": lambda x: steps(x) * 1.0,
}

SHAPES: dict[str, Function] = {
    "view": lambda x: x.view(x.shape[0], x.shape[1], 2, 3),
    "view -1": lambda x: x.reshape(-1, 6),
    "flatten": lambda x: x.flatten(1),
    "unflatten": lambda x: torch.unflatten(x, -1, (3, 2)),
    "squeeze": lambda x: x.unsqueeze(1).squeeze(1),
    "transpose": lambda x: x.transpose(1, -1),
    "permute": lambda x: x.permute(2, 0, 1),
    "mT": lambda x: x.mT,
    "swapaxes": lambda x: x.swapaxes(0, 1),
    "expand": lambda x: x[:, :, None].expand(-1, -1, 4, -1),
    "expand_as": lambda x: x[..., :1].expand_as(x),
    "repeat": lambda x: x.repeat(2, 1, 3),
    "repeat leading": lambda x: x.repeat(2, 1, 1, 1),
    "repeat_interleave": lambda x: x.repeat_interleave(3, -1),
    "repeat_interleave heads": lambda x: x.transpose(1, 2).repeat_interleave(2, dim=1),
    "slice": lambda x: x[..., 1:5],
    "slice negative": lambda x: x[..., -4:-1],
    "slice step": lambda x: x[..., 1::2],
    "slice beyond": lambda x: x[..., 2:100],
    "last position": lambda x: x[:, -1],
    "all but last": lambda x: x[:, :-1],
    "select": lambda x: x[..., 3],
    "narrow": lambda x: x.narrow(-1, 1, 3),
    "split": lambda x: torch.cat(torch.split(x, 4, -1)[::-1], -1),
    "split sizes": lambda x: torch.cat(torch.split(x, [1, 3, 2], -1)[::-1], -1),
    "chunk": lambda x: x.chunk(2, -1)[1] - x.chunk(2, -1)[0],
    "unbind": lambda x: torch.stack(x.unbind(-1)[::2], 0),
    "stack": lambda x: torch.stack((-x[..., 1::2], x[..., ::2]), -1).flatten(-2),
    "cat types": lambda x: torch.cat([x, steps(x)[None, :, None].expand(x.shape[0], -1, 1)], -1),
    "cat empty": lambda x: torch.cat([torch.zeros(0), x[0, 0]]),
    "pad": lambda x: F.pad(x, (1, 2)),
    "pad value": lambda x: F.pad(x, (0, 0, 1, 0), value=1.5),
    "pad cuts": lambda x: F.pad(x, (-1, 2)),
    "shift": lambda x: F.pad(x, (0, 0, 1, -1)),
    "flip": lambda x: x.flip(-1),
    "copies": lambda x: x.clone().contiguous().detach(),
    "dropout": lambda x: F.dropout(x, 0.5, training=False),
}


def write_slice(x: torch.Tensor) -> torch.Tensor:
    y = x.clone()
    y[..., 1:3] = x[..., :2] * 2
    return y


def write_strided(x: torch.Tensor) -> torch.Tensor:
    y = torch.empty_like(x)
    y[..., ::2] = -x[..., 1::2]
    y[..., 1::2] = x[..., ::2]
    return y


def write_column(x: torch.Tensor) -> torch.Tensor:
    y = torch.zeros_like(x)
    y[..., 2] = x[..., 0]
    return y


def add_in_place(x: torch.Tensor) -> torch.Tensor:
    y = x * 2
    y += 1
    y[..., 0].mul_(3)
    return y


WRITES: dict[str, Function] = {
    "slice": write_slice, "strided": write_strided, "column": write_column, "in place": add_in_place,
}  # fmt: skip

CREATED: dict[str, Function] = {
    "zeros": lambda x: torch.zeros(x.shape[0], 2) + torch.zeros_like(x)[:, 0, :1],
    "ones": lambda x: torch.ones(x.shape[1]) + x.new_ones(1),
    "full": lambda x: torch.full((x.shape[1], 2), -1.5),
    "full_like": lambda x: torch.full_like(x, 2) + x.new_zeros(6),
    "full of a value": lambda x: torch.full((), 0.25) ** torch.arange(1, 5, dtype=torch.int32),
    "arange": lambda x: torch.arange(x.shape[1], dtype=torch.float32),
    "arange from": lambda x: torch.arange(3, x.shape[1] + 3),
    "arange step": lambda x: torch.arange(0, 6, 2) + torch.arange(1, 10, 4),
    "scalar": lambda x: x * torch.tensor(2.5),
    "constant tensor": lambda x: x * torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0, 6.0]),
    "cumsum": lambda x: x.cumsum(1),
    "cumsum of ones": lambda x: torch.ones(x.shape[0], x.shape[1]).cumsum(1),
    "cumsum of booleans": lambda x: (x[..., 0] > 0).cumsum(-1),
    "tril": lambda x: torch.tril(torch.ones(x.shape[1], x.shape[1])),
    "triu": lambda x: torch.triu(torch.full((x.shape[1], x.shape[1]), float("-inf")), diagonal=1),
    "tril by -2": lambda x: (x @ x.mT).tril(-2),
}

REDUCED: dict[str, Function] = {
    "sum": lambda x: x.sum(-1),
    "sum all": lambda x: x.sum(),
    "sum keep": lambda x: x.sum((0, 2), keepdim=True),
    "sum of booleans": lambda x: (x > 0).sum(-1),
    "mean": lambda x: x.mean(-1, keepdim=True),
    "amax": lambda x: x.amax((1, 2)),
    "amin": lambda x: x.amin(-1),
    "max": lambda x: x.max(-1).values + x.max(),
    "var": lambda x: x.var(-1),
    "var biased": lambda x: x.var(-1, unbiased=False, keepdim=True),
    "std": lambda x: x.std(-1, correction=0),
    "norm": lambda x: torch.linalg.vector_norm(x, dim=-1, keepdim=True),
    "softmax": lambda x: x.softmax(1),
    "softmax as": lambda x: F.softmax(x, dim=-1, dtype=torch.float32),
    "log_softmax": lambda x: x.log_softmax(-1),
    "logsumexp": lambda x: x.logsumexp(-1),
    "matmul": lambda x: x @ x.mT,
    "matmul vector": lambda x: x @ x[0, 0],
    "vector matmul": lambda x: x[0, 0] @ x[0].mT,
    "bmm": lambda x: torch.bmm(x, x.mT),
    "addmm": lambda x: torch.addmm(x[0, 0], x.reshape(-1, 6), x[0, :1].expand(6, 6), beta=2, alpha=0.5),
    "addmm without": lambda x: torch.addmm(x[0], x[0], x[0, :1].expand(6, 6), beta=0),
    "baddbmm": lambda x: torch.baddbmm(x.mT[..., :1, :], x, x.mT, alpha=0.3),
    "outer": lambda x: torch.outer(x[0, 0], x[0, 0]),
    "einsum": lambda x: torch.einsum("bsd,btd->bts", x, x),
    "einsum heads": lambda x: torch.einsum("b s h d, h d -> b h s", x.view(*x.shape[:2], 2, 3), x[0, 0].view(2, 3)),
}

LANGUAGE: dict[str, Function] = {
    "linear": lambda x: F.linear(x, x[0, :1].expand(4, 6), x[0, 0, :4]),
    "layer_norm": lambda x: F.layer_norm(x, (6,), x[0, 0], x[0, 0], 1e-3),
    "layer_norm plain": lambda x: F.layer_norm(x, (6,)),
    "layer_norm bias": lambda x: F.layer_norm(x, (6,), None, x[0, 0]),
    "rms_norm": lambda x: F.rms_norm(x, (6,), x[0, 0], 1e-3),
    "rms_norm plain": lambda x: F.rms_norm(x, (6,)),
    "index_select": lambda x: x.index_select(-1, torch.tensor([3, 1, 1])),
    "index": lambda x: x[..., torch.tensor([3, 1, 1])],
    "index by a list": lambda x: x[..., [-2, 0]],
    "index by many": lambda x: x[..., torch.tensor([3, -1] * 20)],
    "index by values": lambda x: x[..., (x[0, 0].abs() * 2).long() - 6],
    "index by positions": lambda x: (torch.arange(20) * 0.1)[steps(x)],
    "sdpa": lambda x: F.scaled_dot_product_attention(x[:, None], x[:, None] * 2, x[:, None], is_causal=True),
    "sdpa three axes": lambda x: F.scaled_dot_product_attention(x, x * 2, x, scale=0.7),
    "sdpa bias": lambda x: F.scaled_dot_product_attention(x, x * 2, x, attn_mask=x @ x.mT),
    "sdpa bool": lambda x: F.scaled_dot_product_attention(x, x * 2, x, attn_mask=(x @ x.mT).abs() >= 0),
}

GROUPS: dict[str, dict[str, Function]] = {
    "elementwise": ELEMENTWISE, "shape": SHAPES, "write": WRITES, "create": CREATED, "reduce": REDUCED,
    "language": LANGUAGE,
}  # fmt: skip
CASES = {f"{group}: {name}": function for group, table in GROUPS.items() for name, function in table.items()}


@pytest.mark.parametrize("case", CASES)
def test_rule_computes_what_torch_does(case: str) -> None:
    check(CASES[case])


@pytest.mark.parametrize("group", GROUPS)
def test_decomposed_ops_have_rules_too(group: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The functional form that torch gives a program which writes in place: all functions of a group as one program."""
    monkeypatch.setattr(export, "_is_convertible", lambda program: False)
    check(lambda x: torch.cat([function(x).flatten().float() for function in GROUPS[group].values()]))


def test_causal_sequence_sums_stay_counters() -> None:
    """A running sum of ones is a counter: it has an incremental form, a running sum of anything does not."""
    names = [op.name for op in converted(_Model(CASES["create: cumsum of ones"])).graph().walk()]
    assert "arange" in names and "cumsum" not in names


@pytest.mark.parametrize(
    ("function", "said"),
    [  # what torch can say and the IR cannot
        (lambda x: torch.topk(x, 2).values, "aten.topk"),
        (lambda x: x.sort(-1).values, "aten.sort"),
        (lambda x: F.softplus(x, beta=2.0), "beta=2.0"),
        (lambda x: x.max(-1).indices, "result 1"),
        (lambda x: F.layer_norm(torch.unflatten(x, -1, (2, 3)), (2, 3)), "a norm over 2 axes"),
        (lambda x: F.pad(x, (1, 1), mode="reflect"), "aten."),
        (lambda x: x.to(torch.complex64).abs(), "complex64"),
        (lambda x: torch.ops.aten.bitwise_and(steps(x), 1), "bit arithmetic"),
        (lambda x: x[:, steps(x).flip(0)], "symbolic size"),
    ],
)
def test_unsupported_is_named(function: Function, said: str) -> None:
    with pytest.raises(UnsupportedError, match=said):
        converted(_Model(function))


def test_unsupported_says_the_module_path() -> None:
    class Inner(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.sort(-1).values

    class Outer(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = torch.nn.ModuleList([Inner()])

        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            found: torch.Tensor = self.layers[0](ids.float())
            return found

    with pytest.raises(UnsupportedError, match=r"aten\.sort.*layers\.0"):
        converted(Outer())


def test_data_dependent_shapes_are_refused_with_torchs_reason() -> None:
    with pytest.raises(UnsupportedError, match="cannot be traced"):
        converted(_Model(lambda x: x if bool(x.sum() > 0) else -x))


def test_rules_exceed_the_common_ops() -> None:
    assert len(RULES) >= 120
