"""The weight store: laziness, derivations, branches, and its messages."""

from __future__ import annotations

import pytest
import torch

from slmopt.errors import IRError
from slmopt.ir.types import QuantizedType, tensor
from slmopt.ir.weights import QuantizedTensor, WeightSource, WeightStore


class Slow:
    """A derivation that keeps what it computed."""

    def __init__(self) -> None:
        self.computed: torch.Tensor | None = None
        self.calls = 0

    def __call__(self, weight: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        self.computed = weight * 2
        return self.computed

    def held(self) -> torch.Tensor | None:
        return self.computed


def test_derivations_are_computed_when_asked_for_and_each_time() -> None:
    loads: list[str] = []

    def load() -> torch.Tensor:
        loads.append("w")
        return torch.ones(2, 3)

    store = WeightStore()
    store.add("w", WeightSource(tensor("f32", 2, 3), "made here", load))
    store.derive("twice", ("w",), tensor("f32", 2, 3), "doubled", lambda w: w * 2)
    slow = Slow()
    store.derive("kept", ("w",), tensor("f32", 2, 3), "doubled slowly", slow)
    assert loads == []
    assert store.load("twice").tolist() == store.load("twice").tolist() == [[2.0] * 3] * 2
    assert loads == ["w", "w"]
    assert store.load("kept") is store.load("kept")
    assert slow.calls == 1 and loads == ["w", "w", "w"]  # what is held needs no input


def test_a_branch_sees_the_store_and_keeps_its_own() -> None:
    store = WeightStore()
    store.add_tensor("a", torch.zeros(2))
    branch = store.branch()
    branch.add_tensor("b", torch.ones(3))
    assert list(branch) == ["a", "b"] and list(store) == ["a"] and "b" not in store
    assert branch.type("a") == tensor("f32", 2) and store.fresh_key("a") == "a.2"


def test_what_is_wrong_is_said() -> None:
    store = WeightStore()
    store.add_tensor("a", torch.zeros(2))
    with pytest.raises(IRError, match=r"weight @a is already defined \(in memory\); use another key"):
        store.add_tensor("a", torch.ones(2))
    with pytest.raises(IRError, match="weight @b derives from @c, which is not in the store"):
        store.derive("b", ("c",), tensor("f32", 2), "copied", lambda c: c)
    with pytest.raises(IRError, match="no weight @c in the store"):
        store.load("c")
    store.derive("short", ("a",), tensor("f32", 2), "cut", lambda a: a[:1])
    with pytest.raises(IRError, match=r"weight @short \(cut\) has shape \[1\], expected f32\[2\]"):
        store.load("short")


def test_the_same_derivation_twice_is_one() -> None:
    store = WeightStore()
    store.add_tensor("a", torch.zeros(2))
    for _ in range(2):
        store.derive("b", ("a",), tensor("f32", 2), "copied", lambda a: a)
    with pytest.raises(IRError, match="already defined"):
        store.derive("b", ("a",), tensor("f32", 2), "otherwise", lambda a: a)


@pytest.mark.parametrize("group", [None, 4, 5])
@pytest.mark.parametrize("symmetric", [True, False])
def test_codes_stand_for_scale_times_code_plus_minimum(group: int | None, symmetric: bool) -> None:
    """Groups that do and do not divide the 12 columns."""
    type = QuantizedType(4, group, symmetric)
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(-8, 8, (3, 12), generator=generator).to(torch.int8)
    codes = codes if symmetric else (codes + 8).to(torch.uint8)
    scales = torch.rand(3, type.groups(12), generator=generator).half()
    minimum = None if symmetric else torch.rand(3, type.groups(12), generator=generator).half()
    found = QuantizedTensor(type, codes, scales, minimum).dequantize()
    for row in range(3):
        for column in range(12):
            at = column // (group or 12)
            added = 0.0 if minimum is None else float(minimum[row, at])
            expected = float(codes[row, column]) * float(scales[row, at]) + added
            assert float(found[row, column]) == pytest.approx(expected)


def test_what_a_file_holds_in_a_narrower_type_is_widened_when_loaded() -> None:
    store, narrow = WeightStore(), torch.tensor([[1.5, -2.0]], dtype=torch.bfloat16)
    store.add("w", WeightSource(tensor("f32", 1, 2), "file", lambda: narrow))
    assert store.stored("w").dtype == torch.bfloat16
    assert store.load("w").dtype == torch.float32 and store.load("w").tolist() == [[1.5, -2.0]]


def test_a_derivation_gets_declared_types_unless_it_takes_what_is_stored() -> None:
    store, narrow = WeightStore(), torch.tensor([1.0, 3.0], dtype=torch.bfloat16)
    store.add("w", WeightSource(tensor("f32", 2), "file", lambda: narrow))
    seen: list[torch.dtype] = []

    class Third:
        takes_stored = False

        def __call__(self, value: torch.Tensor) -> torch.Tensor:
            seen.append(value.dtype)
            return value.float() / 3

    class ThirdOfStored(Third):
        takes_stored = True

    for key, compute in (("a", Third()), ("b", ThirdOfStored())):
        store.derive(key, ("w",), tensor("f32", 2), key, compute)
        assert store.load(key).tolist() == (torch.tensor([1.0, 3.0]) / 3).tolist()
    assert seen == [torch.float32, torch.bfloat16]
