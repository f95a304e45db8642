"""The pass `share-blocks`."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from slmopt.artifact import WEIGHTS_HEADER
from slmopt.backends.cpu.backend import CpuBackend
from slmopt.backends.tvm.isa import Isa
from slmopt.backends.tvm.packing import packed_bytes
from slmopt.backends.tvm.views import ALIGNMENT
from slmopt.errors import InputError, UnsupportedError
from slmopt.interpreter import forward
from slmopt.ir.graph import Module, Weight
from slmopt.options import build_pass
from slmopt.passes.fuse.fuse import Fuse
from slmopt.passes.quantize.round_to_nearest import Quantize
from slmopt.passes.share.share_blocks import Pairs, ShareBlocks
from slmopt.pipeline import Pass
from slmopt.target import parse_target
from tests.backends.native import BUILTIN, ISAS
from tests.passes.toys import apply, graph_text, toy
from tests.rewritten import VARIETY, check_rewritten, raised, rewritten

COUNT = {"gemma2": "num_hidden_layers", "gpt_neox": "num_hidden_layers", "gpt2": "n_layer"}
LAYER = """
    %n{i} = rms_norm(%x{i}, weight @l{i}.norm : f32[64]) {{eps = 1e-05}} : f32[b, s, 64] loc("layers.{i}.norm")
    %h{i} = linear(%n{i}, weight @l{i}.up : f32[{inner}, 64], weight @l{i}.bias : f32[{inner}]) {{activation = "{act}"}} : f32[b, s, {inner}] loc("layers.{i}.up")
    %y{i} = linear(%h{i}, weight @l{i}.down : f32[64, {inner}]) : f32[b, s, 64] loc("layers.{i}.down")
    %x{j} = add(%x{i}, %y{i}) : f32[b, s, 64] loc("layers.{i}")
"""  # noqa: E501


def layers(*inner: int) -> Module:
    """A model of one layer for each inner width."""
    parts = [LAYER.format(i=i, j=i + 1, inner=width, act="silu") for i, width in enumerate(inner)]
    return toy("".join(parts) + f"return %x{len(inner)}", signature="%x0: f32[b, s, 64]")


def keys(module: Module) -> list[str]:
    return list(module.weight_types())


def test_golden() -> None:
    found, changes = apply(layers(70, 70), ShareBlocks(Pairs("0-1")))
    assert graph_text(found.graph()) == graph_text("""
        graph @forward(%x0: f32[b, s, 64]) {
          %n0 = rms_norm(%x0, weight @l0.norm : f32[64]) {eps = 1e-05, output = "f32"} : f32[b, s, 64] loc("layers.0.norm")
          %h0 = linear(%n0, weight @l0.up : f32[70, 64], weight @l0.bias : f32[70]) {activation = "silu", act = none} : f32[b, s, 70] loc("layers.0.up")
          %y0 = linear(%h0, weight @l0.down : f32[64, 70]) {activation = none, act = none} : f32[b, s, 64] loc("layers.0.down")
          %x1 = add(%x0, %y0) : f32[b, s, 64] loc("layers.0")
          %n1 = rms_norm(%x1, weight @l0.norm : f32[64]) {eps = 1e-05, output = "f32"} : f32[b, s, 64] loc("layers.1.norm")
          %h1 = linear(%n1, weight @l0.up : f32[70, 64], weight @l0.bias : f32[70]) {activation = "silu", act = none} : f32[b, s, 70] loc("layers.1.up")
          %y1 = linear(%h1, weight @l0.down : f32[64, 70]) {activation = none, act = none} : f32[b, s, 64] loc("layers.1.down")
          %x2 = add(%x1, %y1) : f32[b, s, 64] loc("layers.1")
          return %x2
        }
    """)  # noqa: E501
    assert changes == {"block": 1, "weight": 4}
    assert apply(found, ShareBlocks(Pairs("0-1")))[1] == {}


def read_by(module: Module, layer: int) -> list[str]:
    """The weights that a layer's ops read."""
    ops = [op for op in module.graph().walk() if op.location.startswith(f"layers.{layer}")]
    return [operand.key for op in ops for operand in op.operands if isinstance(operand, Weight)]


def test_numbers_are_those_of_the_kept_weights() -> None:
    module = layers(70, 70, 70)
    x = torch.randn(2, 3, 64, generator=torch.Generator().manual_seed(1))
    for keep in ("first", "last", "mean"):
        found, _ = apply(module, ShareBlocks(Pairs("1-2"), keep))
        copy = layers(70, 70, 70)
        parameters: dict[str, torch.Tensor] = {}
        for name in ("norm", "up", "bias", "down"):
            one, two = (module.weights.float(f"l{i}.{name}") for i in (1, 2))
            value = {"first": one, "last": two, "mean": (one + two) / 2}[keep]
            parameters |= {f"l1.{name}": value, f"l2.{name}": value}
        torch.testing.assert_close(forward(found, x), forward(copy, x, parameters))
        assert read_by(found, 1) == read_by(found, 2)
        assert read_by(found, 0) == read_by(module, 0)


def test_three_layers_and_chains_share_one() -> None:
    module = layers(70, 70, 70, 70)
    at_once, changes = apply(module, ShareBlocks(Pairs("0-2-3")))
    assert changes == {"block": 2, "weight": 8}
    assert read_by(at_once, 0) == read_by(at_once, 2) == read_by(at_once, 3) != read_by(at_once, 1)
    first, _ = apply(module, ShareBlocks(Pairs("0-1")))
    for keep in ("first", "last", "mean"):  # layer 0 goes on sharing with 1, whatever 1 comes to read
        chained, _ = apply(first, ShareBlocks(Pairs("1-2"), keep))
        assert read_by(chained, 0) == read_by(chained, 1) == read_by(chained, 2)
        assert len(keys(chained)) == 8


def test_adjacent_pairs_of_equal_layers() -> None:
    found, changes = apply(layers(70, 40, 40, 70, 70), ShareBlocks())
    assert changes == {"block": 2, "weight": 8}
    assert read_by(found, 1) == read_by(found, 2)
    assert read_by(found, 3) == read_by(found, 4)
    assert apply(layers(70, 40, 70), ShareBlocks())[1] == {}
    assert apply(layers(70), ShareBlocks())[1] == {}


def test_layers_that_differ_are_named_with_what_differs() -> None:
    differing = (
        r"layers 0 \(layers.0\) and 1 \(layers.1\) are not built alike: operand 1 of %h0 = linear "
        r"\(at layers.0.up\) is @l0.up : f32\[70, 64\], of %h1 = linear \(at layers.1.up\) @l1.up : f32\[40, 64\]"
    )
    with pytest.raises(UnsupportedError, match=differing):
        apply(layers(70, 40), ShareBlocks(Pairs("0-1")))


@pytest.mark.parametrize(
    ("text", "message"),
    [("1", "names no pairs"), ("1-2,", "names no pairs"), ("a-b", "names no pairs"), ("", "names no pairs"),
     ("1-2,2-3", "layer 2 is named twice"), ("0-0", "layer 0 is named twice")],
)  # fmt: skip
def test_wrong_pairs(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Pairs(text)


def test_wrong_options_of_the_pass() -> None:
    with pytest.raises(InputError, match="there is no layer 2; the layers are 0, 1"):
        apply(layers(70, 70), ShareBlocks(Pairs("0-2")))
    with pytest.raises(InputError, match="none that are found"):
        apply(toy("%y = relu(%x) : f32[b, s, 64]\nreturn %y"), ShareBlocks(Pairs("0-1")))
    with pytest.raises(InputError, match="keep must be first, last or mean"):
        ShareBlocks(keep="second")
    assert str(build_pass('share-blocks{pairs="0-1,2-3",keep=mean}', lambda name: ShareBlocks)) == str(
        ShareBlocks(Pairs("0-1,2-3"), "mean")
    )


def test_codes_have_no_mean() -> None:
    quantized, _ = apply(layers(64, 64), Quantize())
    with pytest.raises(UnsupportedError, match="quantized weights have no mean: @"):
        apply(quantized, ShareBlocks(keep="mean"))
    found, changes = apply(quantized, ShareBlocks())
    assert changes == {"block": 1, "weight": 4}
    assert read_by(found, 0) == read_by(found, 1)


def stored(module: Module, isa: Isa) -> int:
    """Bytes of all weights of @step, each once, padded as weights.bin has them."""
    found = {}
    for op in module.graph("step").walk():
        for operand in op.operands:
            if isinstance(operand, Weight):
                shape = [int(dim) for dim in operand.type.shape]  # type: ignore[arg-type]
                matrix = op.name in ("linear", "embedding") and len(shape) == 2
                size = packed_bytes(isa, operand.type.element, *shape) if matrix else 4 * math.prod(shape)
                found[operand.key, matrix] = -(-size // ALIGNMENT) * ALIGNMENT
    return sum(found.values())


def file_bytes(size: int) -> int:
    """The size of a weights.bin with so many bytes of weights: whole pages, after the header."""
    return WEIGHTS_HEADER + -(-size // WEIGHTS_HEADER) * WEIGHTS_HEADER


@pytest.mark.parametrize("name", VARIETY)
def test_every_architecture(name: str, tmp_path: Path) -> None:
    whole = rewritten(raised(tmp_path / "whole", name), [])
    module = rewritten(raised(tmp_path, name), [ShareBlocks(Pairs("0-1"))])
    assert module.graph("step").states == whole.graph("step").states  # each layer has a cache of its own
    check_rewritten(module, tmp_path)
    size = stored(module, ISAS.detect())
    assert (tmp_path / "artifact" / "weights.bin").stat().st_size == file_bytes(size)
    assert size < stored(whole, ISAS.detect()) - 9000


STORAGE: dict[str, list[Pass]] = {"f32": [], "q4g32": [Quantize()], "q8ca": [Quantize(8, 0, "asymmetric")]}


@pytest.mark.parametrize("storage", STORAGE)
@pytest.mark.parametrize("name", VARIETY)
def test_what_layers_share_is_stored_once(name: str, storage: str, tmp_path: Path) -> None:
    """Also after weights were quantized, and after those of one input were joined."""
    sizes = {}
    for count in (3, 4):
        model = raised(tmp_path / str(count), name, **{COUNT[name]: count})
        sizes[count] = stored(rewritten(model.copy(), STORAGE[storage]), ISAS.detect())
    layer = sizes[4] - sizes[3]
    assert layer > 1000
    two, all_four = ShareBlocks(Pairs("0-2")), ShareBlocks(Pairs("0-1-2-3"))
    for passes, gone in (([two, *STORAGE[storage]], 1), ([*STORAGE[storage], two], 1),
                         ([all_four, *STORAGE[storage]], 3), ([*STORAGE[storage], Fuse(), two], 1)):  # fmt: skip
        assert stored(rewritten(model.copy(), passes), ISAS.detect()) == sizes[4] - gone * layer


def test_an_artifact_of_joined_and_quantized_weights(tmp_path: Path) -> None:
    model = raised(tmp_path, "gpt2", n_layer=4)
    whole = stored(rewritten(model.copy(), [Quantize()]), ISAS.detect())
    module = rewritten(model, [ShareBlocks(Pairs("0-1-2-3")), Quantize()])
    CpuBackend(BUILTIN).build(module, parse_target("cpu:context=32"), tmp_path / "artifact")
    found = (tmp_path / "artifact" / "weights.bin").stat().st_size
    assert found == file_bytes(stored(module, ISAS.detect())) < file_bytes(whole)
