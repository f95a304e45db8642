"""Hypothesis strategy: small language models, as they come from frontends and as passes leave them."""

from __future__ import annotations

from hypothesis import strategies as st

from slmopt.ir.dims import symbol
from slmopt.ir.graph import Graph, Module, Value
from slmopt.ir.types import tensor
from slmopt.testing.choices import Choices, chosen
from slmopt.testing.shapes import MODEL_BYTES, AttentionShape, LayerShape, ModelShape, choose_model_shape
from slmopt.testing.spelling import Speller
from slmopt.testing.weights import KIND_BYTES, add_numbers, choose_kinds

__all__ = ["CONTEXT", "build_language_model", "choose_language_model", "language_models"]

CONTEXT = 40


def language_models() -> st.SearchStrategy[Module]:
    """A language model @forward(ids[b, s]) -> logits[b, s, vocab] of one to three layers, with weights.

    Layers differ in heads, inner widths, norms, masks, rotary embedding; some share their weights, heads may be tied to
    the embedding. Half of the models are written in language-model ops, half in the primitives that frontends emit.
    Some weights have unusual numbers (see `weights`). Metadata is complete: a model compiles.
    """
    return chosen(MODEL_BYTES + KIND_BYTES, choose_language_model)


def choose_language_model(choices: Choices) -> Module:
    """A random model with weights."""
    module = build_language_model(choose_model_shape(choices.part(MODEL_BYTES)))
    add_numbers(module, choose_kinds(choices.part(KIND_BYTES), module))
    return module


def build_language_model(shape: ModelShape) -> Module:
    """The language model of a shape, without weights."""
    graph = Graph("forward")
    ids = graph.add_input("ids", tensor("i64", "b", "s"))
    write = Speller(graph, raised=shape.raised, variety=shape.variety, element=shape.element, act=shape.act)
    x = _embedded(write, shape, ids)
    layers, place = list(shape.layers), 0
    for index, layer in enumerate(layers):
        if index and layer.shared and layers[index - 1].leave is None:
            layers[index] = layer = layers[index - 1]
        else:
            place = index
        x = _layer(write, layer, x, f"{shape.prefix}layers.{place}")
        if layer.leave is not None:
            write.location = f"{shape.prefix}layers.{place}.leave"
            x = write.linear(x, write.location, layer.leave)
    graph.set_outputs([_head(write, shape, x)])
    metadata = {
        "batch": "b", "sequence": "s", "vocab": shape.vocab, "context": CONTEXT, "bos_token_id": 1,
        "eos_token_ids": [2], "name": "model",
    }  # fmt: skip
    return Module("model", [graph], metadata=metadata)


def _embedded(write: Speller, shape: ModelShape, ids: Value) -> Value:
    write.location = f"{shape.prefix}tokens"
    table = write.weight(f"{shape.prefix}tokens.weight", shape.vocab, shape.width, element=shape.element)
    if shape.element == "f32" and not shape.raised and shape.variety % 2:
        x = write.add("gather", table, ids, axis=0)
    else:
        x = write.add("embedding", ids, table)
    if shape.scale is not None:
        x = write.add("mul", x, write.number(shape.scale))
    if shape.positions:
        write.location = f"{shape.prefix}positions"
        counted = write.add("arange", start=0, stop=symbol("s"), element="i64")
        places = write.weight(f"{shape.prefix}positions.weight", CONTEXT, shape.width)
        x = write.add("add", x, write.add("embedding", counted, places))
    return x


def _head(write: Speller, shape: ModelShape, x: Value) -> Value:
    if shape.normed:
        write.location = f"{shape.prefix}norm"
        x = write.norm(x, "rms_norm", write.location, 1e-5)
    write.location = f"{shape.prefix}head"
    tied = shape.tied and x.shape[-1] == shape.width
    key = f"{shape.prefix}tokens" if tied else write.location
    logits = write.linear(x, key, shape.vocab, bias=shape.head_bias, stored=tied)
    if shape.softcap is None:
        return logits
    limit = write.number(shape.softcap)
    return write.add("mul", write.add("tanh", write.add("div", logits, limit)), limit)


def _layer(write: Speller, layer: LayerShape, x: Value, key: str) -> Value:
    mixed = None
    y = _normed(write, layer, x, f"{key}.norm") if layer.place != "after" else x
    if layer.attention is not None:
        mixed = _attention(write, layer.attention, y, int(x.shape[-1]), f"{key}.attention")  # type: ignore[arg-type]
        if layer.place in ("after", "both"):
            mixed = _normed(write, layer, mixed, f"{key}.norm_after")
        if layer.place != "parallel":
            x = _residual(write, layer, x, mixed, key)
            y = _normed(write, layer, x, f"{key}.norm_2") if layer.place != "after" else x
    if layer.inner is None:
        return x if mixed is None or layer.place != "parallel" else _residual(write, layer, x, mixed, key)
    fed = _feed(write, layer, y, layer.inner, f"{key}.mlp")
    if layer.place == "parallel" and mixed is not None:
        write.location = key
        fed = write.add("add", mixed, fed)
    if layer.place in ("after", "both"):
        fed = _normed(write, layer, fed, f"{key}.norm_3")
    return _residual(write, layer, x, fed, key)


def _normed(write: Speller, layer: LayerShape, x: Value, key: str) -> Value:
    write.location = key
    return write.norm(x, layer.norm, key, layer.eps, weight=layer.norm_weight, bias=layer.norm_bias)


def _residual(write: Speller, layer: LayerShape, x: Value, found: Value, key: str) -> Value:
    write.location = key
    if layer.factor is not None:
        found = write.add("mul", found, write.number(layer.factor))
    return write.add("add", x, found)


def _feed(write: Speller, layer: LayerShape, x: Value, inner: int, key: str) -> Value:
    write.location = f"{key}.up"
    up = write.linear(x, f"{key}.up", inner, bias=layer.bias)
    if layer.gated:
        write.location = f"{key}.gate"
        gate = write.linear(x, f"{key}.gate", inner, bias=layer.bias)
        write.location = f"{key}.act"
        found = write.gated(gate, up, layer.activation)
    else:
        write.location = f"{key}.act"
        found = write.activation(up, layer.activation)
    write.location = f"{key}.down"
    return write.linear(found, f"{key}.down", int(x.shape[-1]), bias=layer.bias)  # type: ignore[arg-type]


def _attention(write: Speller, shape: AttentionShape, x: Value, width: int, key: str) -> Value:
    query, keys, values = (write.heads(part, count) for part, count in _projections(write, shape, x, key))
    write.location = key
    if shape.normed:
        query, keys = (write.norm(part, "rms_norm", f"{key}.{name}_norm", 1e-6)
                       for part, name in ((query, "q"), (keys, "k")))  # fmt: skip
    if shape.turn != "none":
        cos, sin = write.angles(symbol("s"), shape.rotary, shape.turn, "rotary")
        query, keys = (write.turned(part, cos, sin, shape.turn) for part in (query, keys))
    mixed = write.attention(
        query, keys, values, key if shape.slopes else None, key if shape.sinks else None, scale=shape.scale,
        mask="causal", window=shape.window, chunk=shape.chunk, softcap=shape.softcap,
    )  # fmt: skip
    merged = write.merged(mixed)
    write.location = f"{key}.o"
    return write.linear(merged, f"{key}.o", width, bias=shape.bias)


def _projections(write: Speller, shape: AttentionShape, x: Value, key: str) -> list[tuple[Value, int]]:
    counts = [shape.heads, shape.groups, shape.groups]
    sizes = [count * shape.size for count in counts]
    if shape.joined:
        write.location = f"{key}.qkv"
        parts = write.cut(write.linear(x, f"{key}.qkv", sum(sizes), bias=shape.bias), sizes)
        return list(zip(parts, counts, strict=True))
    found = []
    for name, size, count in zip("qkv", sizes, counts, strict=True):
        write.location = f"{key}.{name}"
        found.append((write.linear(x, f"{key}.{name}", size, bias=shape.bias), count))
    return found
