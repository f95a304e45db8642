"""What a random language model looks like: sizes, parts of each layer, and how ops are spelled."""

from __future__ import annotations

from dataclasses import dataclass

from slmopt.testing.choices import Choices

__all__ = ["MODEL_BYTES", "AttentionShape", "LayerShape", "ModelShape", "choose_model_shape"]


@dataclass(frozen=True)
class AttentionShape:
    """Causal attention: `heads` queries of `size` elements share the keys of `groups` heads.

    turn: rotary embedding of all elements or, where `rotary` is less than `size`, of the first `rotary`.
    joined: queries, keys and values come from one linear and are cut apart.
    """

    heads: int = 2
    groups: int = 1
    size: int = 4
    scale: float = 0.5
    turn: str = "none"
    rotary: int = 0
    window: int | None = None
    chunk: int | None = None
    softcap: float | None = None
    slopes: bool = False
    sinks: bool = False
    bias: bool = False
    joined: bool = False
    normed: bool = False


@dataclass(frozen=True)
class LayerShape:
    """One layer. `place`: norms before or after each part, on both sides, or one before two parts in parallel.

    shared: the weights are those of the layer before. inner: the width
    between the linears of the second part; None: there is none. leave: the width after the layer, where it changes.
    """

    attention: AttentionShape | None = AttentionShape()
    place: str = "before"
    norm: str = "rms_norm"
    eps: float = 1e-5
    norm_weight: bool = True
    norm_bias: bool = False
    gated: bool = True
    activation: str = "silu"
    inner: int | None = 8
    bias: bool = False
    factor: float | None = None
    shared: bool = False
    leave: int | None = None


@dataclass(frozen=True)
class ModelShape:
    """A language model. `raised`: written in language-model ops; else in the primitives that frontends emit, spelled
    as `variety` says. `element`: how matrices are stored; `act`: what linears do to activations first."""

    vocab: int = 7
    width: int = 8
    layers: tuple[LayerShape, ...] = (LayerShape(),)
    raised: bool = True
    variety: int = 0
    tied: bool = True
    normed: bool = True
    positions: bool = False
    scale: float | None = None
    head_bias: bool = False
    softcap: float | None = None
    element: str = "f32"
    act: str | None = None
    prefix: str = "model."


def choose_model_shape(choices: Choices) -> ModelShape:
    """A random shape, from `MODEL_BYTES` decisions."""
    own, layers = choices.part(_OWN_BYTES), choices.part(3 * _LAYER_BYTES)
    count = own.pick(1, 2, 3, 2)
    element, act = own.pick(*[("f32", None)] * 5, ("f16", None), ("q8g32", "q8"), ("q4g32", "q8"))
    return ModelShape(
        layers=tuple(_choose_layer(layers.part(_LAYER_BYTES)) for _ in range(count)), element=element, act=act,
        raised=own.pick(True, False), width=own.pick(8, 4, 7, 13, 1, 33), vocab=own.pick(7, 11, 16, 33),
        variety=own.below(12), tied=own.pick(False, True), normed=own.pick(False, True, True),
        positions=own.seldom(), scale=own.pick(None, None, None, 3.0), head_bias=own.seldom(),
        softcap=own.pick(None, None, None, 4.0), prefix=own.pick("model.", "", 'a "b" é/'),
    )  # fmt: skip


_OWN_BYTES, _LAYER_BYTES, _ATTENTION_BYTES = 16, 32, 16
MODEL_BYTES = _OWN_BYTES + 3 * _LAYER_BYTES
_EXTRAS = ((), ("window",), ("chunk",), ("softcap",), ("slopes",), ("window", "softcap"), ("sinks",), ("window",))


def _choose_layer(choices: Choices) -> LayerShape:
    attention = _choose_attention(choices.part(_ATTENTION_BYTES))
    norm, weighted = choices.pick("rms_norm", "layer_norm"), not choices.seldom()
    return LayerShape(
        attention=attention if choices.below(8) else None, norm=norm, norm_weight=weighted,
        norm_bias=choices.pick(False, True) and norm == "layer_norm" and weighted,
        place=choices.pick("before", "parallel", "after", "both"), eps=choices.pick(1e-5, 1e-6, 0.1, 0.5),
        gated=choices.pick(True, False, True), activation=choices.pick("silu", "gelu_tanh", "gelu", "relu"),
        inner=choices.pick(None, 8, 5, 12, 1, 33, 8), bias=choices.pick(False, True),
        factor=choices.pick(None, None, None, 0.5), shared=choices.seldom(3),
        leave=choices.pick(None, None, None, None, None, 6, 9),
    )  # fmt: skip


def _choose_attention(choices: Choices) -> AttentionShape:
    groups = choices.pick(1, 2)
    turn = choices.pick("none", "half", "interleaved")
    size = choices.pick(2, 4, 8) if turn != "none" else choices.pick(2, 4, 3, 5, 1)
    extras = choices.pick(*_EXTRAS)
    return AttentionShape(
        groups=groups, heads=groups * choices.pick(1, 2, 3), size=size, turn=turn,
        rotary=choices.pick(size, 2) if turn != "none" else 0, scale=choices.pick(0.5, 1.0, size**-0.5),
        window=choices.pick(2, 3, 1) if "window" in extras else None, chunk=3 if "chunk" in extras else None,
        softcap=2.0 if "softcap" in extras else None, slopes="slopes" in extras, sinks="sinks" in extras,
        bias=choices.pick(False, True), joined=choices.seldom(), normed=choices.seldom(),
    )  # fmt: skip
