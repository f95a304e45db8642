"""A tiny language model as IR text, with drawn weights: what the tests of the pipeline run passes on."""

from __future__ import annotations

from slmopt.ir.graph import Module
from slmopt.ir.text import parse_module
from slmopt.stand_in import add_stand_ins

__all__ = ["TEXT", "toy_model"]

TEXT = """
module @toy {
  metadata {"batch": "b", "bos_token_id": 1, "context": 64, "sequence": "s", "vocab": 40}
  graph @forward(%ids: i64[b, s]) {
    %x = embedding(%ids, weight @table : f32[40, 32]) : f32[b, s, 32]
    %n = rms_norm(%x, weight @norm : f32[32]) {eps = 1e-05, output = "f32"} : f32[b, s, 32]
    %q = linear(%n, weight @wq : f32[32, 32]) {activation = none, act = none} : f32[b, s, 32]
    %k = linear(%n, weight @wk : f32[32, 32]) {activation = none, act = none} : f32[b, s, 32]
    %qr = reshape(%q) {shape = [b, s, 2, 16]} : f32[b, s, 2, 16]
    %kr = reshape(%k) {shape = [b, s, 2, 16]} : f32[b, s, 2, 16]
    %qp = permute(%qr) {axes = [0, 2, 1, 3]} : f32[b, 2, s, 16]
    %kp = permute(%kr) {axes = [0, 2, 1, 3]} : f32[b, 2, s, 16]
    %a = attention(%qp, %kp, %kp) {scale = 0.25, mask = "causal", window = none, chunk = none, sink = none, softcap = none, ring = false} : f32[b, 2, s, 16]
    %ap = permute(%a) {axes = [0, 2, 1, 3]} : f32[b, s, 2, 16]
    %o = reshape(%ap) {shape = [b, s, 32]} : f32[b, s, 32]
    %r = add(%x, %o) : f32[b, s, 32] loc("layers.0")
    %logits = linear(%r, weight @table : f32[40, 32]) {activation = none, act = none} : f32[b, s, 40]
    return %logits
  }
}
"""  # noqa: E501


def toy_model() -> Module:
    """The model, its weights drawn; the same every time."""
    module = parse_module(TEXT)
    add_stand_ins(module, drawn=True)
    return module
