"""Stand-ins for weights that IR text does not have."""

from __future__ import annotations

import pytest
import torch

from slmopt.errors import InputError
from slmopt.ir.text import parse_module
from slmopt.ir.verify import verify
from slmopt.ir.weights import QuantizedTensor
from slmopt.passes.quantize.round_to_nearest import Quantize
from slmopt.pipeline import Context, Pipeline
from slmopt.stand_in import add_stand_ins
from tests.toy_model import TEXT, toy_model


def test_absent_weights_carry_types_through_passes_and_refuse_numbers() -> None:
    module = parse_module(TEXT)
    add_stand_ins(module)
    verify(module, weights=True)
    Pipeline([Quantize()], verify=False).run(module)
    assert "q4g32" in {str(type.element) for type in module.weight_types().values()}
    with pytest.raises(InputError, match="the numbers of weight @wq are needed and IR text has none"):
        module.weights.load("wq.q4g32")


def test_drawn_weights_are_the_same_for_the_same_key() -> None:
    first, second = toy_model(), toy_model()
    assert torch.equal(first.weights.load("wq"), second.weights.load("wq"))
    assert not torch.equal(first.weights.load("wq"), first.weights.load("wk"))
    assert 0.5 < float(first.weights.load("wq").std()) * 32**0.5 < 2
    assert 0.5 < float(first.weights.load("norm").mean()) < 1.5


def test_every_type_of_weight_can_be_drawn() -> None:
    module = toy_model()
    Quantize(grid="asymmetric").run(module, Context())
    again = parse_module(str(module))
    add_stand_ins(again, drawn=True)
    for key, type in again.weight_types().items():
        value = again.weights.load(key)
        if isinstance(value, QuantizedTensor):
            assert value.type == type.element and value.minimum is not None
            assert float(value.dequantize().abs().max()) < 1
    text = "module @m {\n graph @forward(%x: i64[b]) {\n  %y = gather(weight @t : i64[5], %x) {axis = 0} : i64[b]\n" \
           "  return %y\n }\n}"  # fmt: skip
    whole = parse_module(text)
    add_stand_ins(whole, drawn=True)
    assert whole.weights.load("t").tolist() == [0] * 5
