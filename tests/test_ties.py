"""Weights that several ops read stay one weight, or a pass says that it unties them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from slmopt.ir.graph import Module, Op, Weight
from slmopt.ir.text import parse_module
from slmopt.passes.canonicalize.canonicalize import Canonicalize
from slmopt.passes.fuse.fuse import Fuse
from slmopt.passes.incrementalize import Incrementalize
from slmopt.passes.quantize.cast_weights import CastWeights
from slmopt.passes.quantize.round_to_nearest import Quantize
from slmopt.passes.raise_.raising import Raise
from slmopt.pipeline import Lossy, Pipeline
from slmopt.stand_in import add_stand_ins
from tests.planted import only, pass_of, refusal
from tests.toy_model import toy_model

Edit = Callable[[Module], Any]


def derived(module: Module, key: str, what: str, suffix: str = "") -> Weight:
    """A weight of the same type, the numbers of another one."""
    type = module.weights.type(key)
    return Weight(module.weights.derive(f"{key}.{what}{suffix}", (key,), type, what, lambda w: w.clone()), type)


def redirect_both_to_one(module: Module) -> None:
    new = derived(module, "table", "pruned")
    for op in readers(module):
        op.set_operand(1, new)


def redirect_head(module: Module) -> None:
    readers(module)[1].set_operand(1, derived(module, "table", "pruned"))


def redirect_each(module: Module) -> None:
    for op, what in zip(readers(module), ("pruned", "rounded"), strict=True):
        op.set_operand(1, derived(module, "table", what))


def redirect_each_to_the_same(module: Module) -> None:
    for index, op in enumerate(readers(module)):
        op.set_operand(1, derived(module, "table", "pruned", f".{index}"))


def redirect_to_new_roots(module: Module) -> None:
    for index, op in enumerate(readers(module)):
        key = module.weights.add_tensor(f"healed.{index}", torch.zeros(40, 32))
        op.set_operand(1, Weight(key, module.weights.type(key)))


def replace_head_by_another_op(module: Module) -> None:
    """linear(x, table) -> matmul(x, permute(copy)), under names that nothing had before."""
    graph, head = module.graph(), readers(module)[1]
    turned = graph.add("permute", [derived(module, "table", "pruned")], {"axes": (1, 0)}, before=head).result
    graph.replace(head, graph.add("matmul", [head.operands[0], turned], before=head).result)


def readers(module: Module) -> list[Op]:
    """The embedding and the head, which read one table."""
    found = [op for op in module.graph().walk() if Weight("table", module.weights.type("table")) in op.operands]
    assert [op.name for op in found] == ["embedding", "linear"]
    return found


@pytest.mark.parametrize(
    "edit", [redirect_head, redirect_each, redirect_each_to_the_same, redirect_to_new_roots, replace_head_by_another_op]
)
def test_a_tie_that_is_lost_is_caught(edit: Edit) -> None:
    message = refusal(pass_of(edit, contract=Lossy()))
    assert message.startswith("pass edit unties the weight @table: ") and "%x = embedding reads @" in message


def test_the_message_says_who_reads_what_and_what_to_do() -> None:
    assert refusal(pass_of(redirect_head, contract=Lossy())) == (
        "pass edit unties the weight @table: %x = embedding reads @table, %logits = linear reads @table.pruned; "
        "let all of them read one weight, or declare `unties = True`"
    )
    assert refusal(pass_of(redirect_each_to_the_same, contract=Lossy())).endswith(
        "both are 'pruned': derive it once and let both read that"
    )


def test_a_pass_that_declares_it_may_untie_but_not_store_the_same_twice() -> None:
    for edit in (redirect_head, redirect_each, redirect_to_new_roots, replace_head_by_another_op):
        assert len(Pipeline([pass_of(edit, contract=Lossy(), unties=True)]).run(toy_model()).rows) == 2
    assert "derive it once" in refusal(pass_of(redirect_each_to_the_same, contract=Lossy(), unties=True))


def test_readers_that_move_together_stay_tied() -> None:
    module = toy_model()
    Pipeline([pass_of(redirect_both_to_one)]).run(module)
    assert [op.operands[1].key for op in module.graph().walk() if op.name in ("embedding", "linear")] == [  # type: ignore[union-attr]
        "table.pruned", "wq", "wk", "table.pruned",
    ]  # fmt: skip


def test_a_reader_that_goes_leaves_no_tie() -> None:
    """Of a weight that only one op reads afterwards nothing is stored twice."""

    def drop_head(module: Module) -> None:
        graph, head = module.graph(), readers(module)[1]
        table = Weight("other", head.operands[1].type)  # type: ignore[union-attr]
        module.weights.add_tensor("other", torch.zeros(40, 32))
        graph.replace(head, graph.add("matmul", [head.operands[0], turn(module, table)], before=head).result)

    def turn(module: Module, table: Weight) -> Any:
        return module.graph().add("permute", [table], {"axes": (1, 0)}, before=readers(module)[1]).result

    assert len(Pipeline([pass_of(drop_head, contract=Lossy())]).run(toy_model()).rows) == 2


def test_one_op_that_reads_two_parts_of_an_untied_weight_is_no_lost_tie() -> None:
    def split(module: Module) -> None:
        graph = module.graph()
        query = next(op for op in graph.walk() if op.result.name == "q")
        parts = [
            graph.add("linear", [query.operands[0], derived(module, "wq", what)], before=query).result
            for what in ("rounded", "rest")
        ]
        graph.replace(query, graph.add("add", parts, before=query).result)

    assert len(Pipeline([pass_of(split, contract=Lossy())]).run(toy_model()).rows) == 2


SHARED = """
module @shared {
  graph @forward(%x: f32[b, s, 32]) {
    %a = linear(%x, weight @q : f32[32, 32]) {activation = none, act = none} : f32[b, s, 32]
    %b = linear(%x, weight @k : f32[32, 32]) {activation = none, act = none} : f32[b, s, 32]
    %y = mul(%a, %b) : f32[b, s, 32]
    %c = linear(%y, weight @q : f32[32, 32]) {activation = none, act = none} : f32[b, s, 32]
    %d = linear(%y, weight @k : f32[32, 32]) {activation = none, act = none} : f32[b, s, 32]
    %z = mul(%c, %d) : f32[b, s, 32]
    return %z
  }
}
"""


def test_built_in_passes_keep_shared_layers_and_tied_tables() -> None:
    shared = parse_module(SHARED)
    add_stand_ins(shared, drawn=True)
    Pipeline([Canonicalize(), CastWeights(), Quantize(), Fuse()]).run(shared)
    assert len(shared.weight_types()) == 1  # q and k rounded and joined, once for both layers
    for passes in ([CastWeights(), Incrementalize(), Quantize()], [Raise(), Quantize(head=False), Fuse()]):
        module = toy_model()
        Pipeline(passes).run(module)
        embedding = only(module, "embedding").operands[1]
        head = next(op for op in module.graph().walk() if op.result.name == "logits").operands[1]
        assert embedding == head
