"""The interpreter: weights, symbols, float64, states, gradients, and its messages."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from slmopt import interpreter
from slmopt.errors import InputError, IRError
from slmopt.ir.graph import Module
from slmopt.ir.text import parse_module
from slmopt.ir.types import QuantizedType, TensorType
from slmopt.ir.weights import WeightSource
from slmopt.passes.incrementalize import Incrementalize
from slmopt.passes.quantize.round_to_nearest import Quantize
from slmopt.pipeline import Context
from slmopt.stand_in import add_stand_ins
from tests.toy_model import toy_model

IDS = torch.tensor([[3, 1, 4, 1, 5, 9, 2, 6], [2, 7, 1, 8, 2, 8, 1, 8]])


def text(body: str, signature: str = "%x: f32[b, s]") -> Module:
    return parse_module(f"module @m {{\n graph @forward({signature}) {{\n{body}\n }}\n}}")


def test_symbols_are_bound_and_reach_attributes() -> None:
    module = text('%r = reshape(%x) {shape = [b*s]} : f32[b*s]\n%n = arange() {start = 0, stop = b*s, element = "f32"}'
                  " : f32[b*s]\n%y = add(%r, %n) : f32[b*s]\nreturn %y")  # fmt: skip
    (found,) = interpreter.run(module, "forward", [torch.ones(2, 3)])
    assert found.tolist() == [1, 2, 3, 4, 5, 6]


def test_inputs_that_do_not_fit() -> None:
    module = text("%y = add(%x, %z) : f32[b, s]\nreturn %y", "%x: f32[b, s], %z: f32[b, s]")
    with pytest.raises(InputError, match=r"input %z must be f32\[b, s\], got shape \[2, 4\]"):
        interpreter.run(module, "forward", [torch.ones(2, 3), torch.ones(2, 4)])
    with pytest.raises(InputError, match="takes 2 inputs, got 1"):
        interpreter.run(module, "forward", [torch.ones(2, 3)])


def test_a_failing_op_is_named_with_its_place() -> None:
    module = text('%y = reshape(%x) {shape = [b, s]} : f32[b, s] loc("layers.3.mlp")\nreturn %y')
    (op,) = module.graph().walk()
    op.attributes["shape"] = (7, 7)
    with pytest.raises(IRError, match=r"%y = reshape \(at layers\.3\.mlp\) failed in the interpreter"):
        interpreter.run(module, "forward", [torch.ones(2, 3)])


def test_weights_are_loaded_one_at_a_time() -> None:
    module = toy_model()
    alive, most = 0, 0

    class Counted(torch.Tensor):
        pass

    def counting(source: WeightSource) -> Callable[..., Any]:
        def load(*inputs: Any) -> Any:
            nonlocal alive, most
            value = source.load(*inputs).clone()
            alive += 1
            most = max(most, alive)

            def gone(_: Any) -> None:
                nonlocal alive
                alive -= 1

            import weakref

            references.append(weakref.ref(value, gone))
            return value

        return load

    references: list[Any] = []
    for key, source in list(module.weights._own.items()):
        module.weights._own[key] = WeightSource(source.type, source.description, counting(source))
    interpreter.forward(module, IDS)
    assert len(references) == 5 and most <= 2 and alive == 0


def test_quantized_weights_are_dequantized_in_slabs_without_a_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    for type in (QuantizedType(4, 32), QuantizedType(8, None), QuantizedType(4, 32, False)):
        module = text(f"%y = linear(%x, weight @w : {type}[50, 64]) {{activation = none, act = none}} : f32[b, 50]\n"
                      "return %y", "%x: f32[b, 64]")  # fmt: skip
        add_stand_ins(module, drawn=True)
        x = torch.randn(3, 64, generator=torch.Generator().manual_seed(0))
        expected = x @ module.weights.load("w").dequantize().T
        monkeypatch.setattr(interpreter, "_SLAB", 64 * 7)  # 7 rows, which 50 is no multiple of
        torch.testing.assert_close(interpreter.run(module, "forward", [x])[0], expected, rtol=1e-5, atol=1e-5)
        assert module.weights.type("w") == TensorType(type, (50, 64))


def test_a_linear_rounds_what_it_reads_to_bfloat16() -> None:
    module = text('%y = linear(%x, weight @w : f32[1, 4]) {activation = none, act = "bf16"} : f32[b, 1]\nreturn %y',
                  "%x: f32[b, 4]")  # fmt: skip
    module.weights.add_tensor("w", torch.tensor([[1.0, 10.0, 100.0, 0.0]]))
    one = 1 + 2.0**-8  # halfway between 1 and the next number of bfloat16, 1 + 2^-7
    x = torch.tensor([[one, 1 + 2.0**-7, 1 + 3 * 2.0**-8, 0.0], [one + 2.0**-20, -one, 3.0, 5.0]])
    expected = torch.tensor([[1 + 10 * (1 + 2.0**-7) + 100 * (1 + 2.0**-6)], [1 + 2.0**-7 - 10 + 300]])
    for wide in (False, True):
        (found,) = interpreter.run(module, "forward", [x], wide=wide)
        assert found.dtype == (torch.float64 if wide else torch.float32)
        assert torch.equal(found, expected.to(found.dtype))


def test_float64_is_float64_throughout() -> None:
    module = toy_model()
    narrow, wide = interpreter.forward(module, IDS), interpreter.run(module, "forward", [IDS], wide=True)[0]
    assert wide.dtype == torch.float64 and narrow.dtype == torch.float32
    assert 0 < float((wide - narrow).abs().max()) < 1e-4
    by_hand = {key: module.weights.load(key).double() for key in module.weight_types()}
    embedded = by_hand["table"][IDS]
    normed = embedded / torch.sqrt((embedded**2).mean(-1, keepdim=True) + 1e-5) * by_hand["norm"]
    query, key = ((normed @ by_hand[name].T).reshape(2, 8, 2, 16).transpose(1, 2) for name in ("wq", "wk"))
    scores = (query @ key.transpose(-1, -2) * 0.25).masked_fill(torch.ones(8, 8).tril() == 0, float("-inf"))
    mixed = (scores.softmax(-1) @ key).transpose(1, 2).reshape(2, 8, 32)
    torch.testing.assert_close(wide, (embedded + mixed) @ by_hand["table"].T, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("splits", [[8], [1] * 8, [3, 1, 4], [7, 1]])
@pytest.mark.parametrize("bits", [None, 8])
def test_steps_give_what_forward_gives_even_with_rounded_activations(splits: list[int], bits: int | None) -> None:
    module = toy_model()
    if bits is not None:
        Quantize(bits=bits).run(module, Context())
    Incrementalize(cache="f16").run(module, Context())
    expected = interpreter.run(module, "forward", [IDS], wide=True)[0]
    found = interpreter.step_through(module, IDS, splits, wide=True, rounded=False)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    rounded = interpreter.step_through(module, IDS, splits, wide=True)
    assert 0 < float((rounded - expected).abs().max()) < 0.1 * float(expected.abs().max())


def test_splits_must_add_up_and_the_cache_has_an_end() -> None:
    module = toy_model()
    Incrementalize().run(module, Context())
    with pytest.raises(InputError, match=r"splits \[3, 3\] do not add up to 8 tokens"):
        interpreter.step_through(module, IDS, [3, 3])
    with pytest.raises(IRError, match="pass the capacity 6"):
        interpreter.step_through(module, IDS, [4, 4], capacity=6)


def test_gradients_reach_given_parameters() -> None:
    module = toy_model()
    table = module.weights.load("table").clone().requires_grad_()
    loss = interpreter.forward(module, IDS, {"table": table}).logsumexp(-1).mean()
    (gradient,) = torch.autograd.grad(loss, [table])
    assert float(gradient.abs().sum()) > 0


@pytest.mark.parametrize("name", ["sum", "cumsum"])
def test_sums_of_integers_keep_their_type(name: str) -> None:
    attributes = "axis = 1, keep = true" if name == "sum" else "axis = 1"
    shape = "b, 1" if name == "sum" else "b, 3"
    text = f"""module @m {{
  graph @forward(%x: i32[b, 3]) {{
    %y = {name}(%x) {{{attributes}}} : i32[{shape}]
    return %y
  }}
}}"""
    (found,) = interpreter.run(parse_module(text), "forward", [torch.tensor([[1, 2, 3]], dtype=torch.int32)])
    assert found.dtype == torch.int32 and found.tolist() == [[6] if name == "sum" else [1, 3, 6]]
