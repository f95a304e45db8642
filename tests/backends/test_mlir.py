"""The targets that go through MLIR: what they compile, what they refuse, and that numbers are the interpreter's."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

import slmopt
from slmopt.artifact import read_manifest
from slmopt.backends.mlir.backend import MlirBackend
from slmopt.backends.mlir.compiling import compile_program
from slmopt.backends.mlir.processor import ProcessorBackend
from slmopt.backends.mlir.program import program_of
from slmopt.backends.mlir.vulkan import VulkanBackend
from slmopt.backends.mlir.weights import StoredWeight
from slmopt.errors import InputError, UnsupportedError
from slmopt.interpreter import forward, step_through
from slmopt.ir.graph import Module, Op
from slmopt.ir.ops import registry as ops
from slmopt.ir.spec import OpSpec
from slmopt.ir.types import DType, QuantizedType, TensorType, parse_element
from slmopt.ir.weights import QuantizedTensor
from slmopt.options import build_pass
from slmopt.pipeline import Pipeline
from slmopt.plugins.discovery import registry
from slmopt.runtime.iree_program import IreeProgram, open_device
from slmopt.target import Target, parse_target
from tests.backends.native import BUILTIN
from tests.rewritten import TOKENS, VARIETY, raised, rewritten
from tests.toy_model import toy_model

TOLERANCE = 1e-3  # of the largest logit
ROUNDED = 0.1  # where a number on the edge between two 8-bit codes may fall either way
PROCESSOR = ProcessorBackend(BUILTIN)
IDS = [(5 * i * i + i) % 40 for i in range(23)]
SPLITS = ([23], [1] * 6 + [17], [9, 1, 13])

needs_vulkan = pytest.mark.skipif(
    not VulkanBackend().status()["run"], reason="no Vulkan device is here (Debian: mesa-vulkan-drivers)"
)


def with_passes(module: Module, *passes: str) -> Module:
    find = registry().find_pass
    Pipeline([build_pass(text, find) for text in passes], verify=False).run(module)
    return module


def compiled_logits(artifact: Path, ids: Sequence[int], splits: Sequence[int], threads: int = 1) -> np.ndarray:
    with slmopt.open(artifact) as model, model.session(threads) as session:
        parts, start = [], 0
        for length in splits:
            parts.append(session.logits(ids[start : start + length]))
            start += length
    return np.concatenate(parts)


def largest_error(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.abs(found - expected).max() / np.abs(expected).max())


@pytest.mark.parametrize(("name", "chunk"), [*zip(VARIETY, (8, 1, 1), strict=True)])  # one function: half the time
def test_architectures_give_the_interpreters_logits(tmp_path: Path, name: str, chunk: int) -> None:
    module = rewritten(raised(tmp_path, name), [])
    PROCESSOR.build(module, parse_target(f"cpu:via=mlir,context=48,chunk={chunk}"), tmp_path / "artifact")
    ids = torch.randint(3, 97, (1, TOKENS), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = forward(module, ids)[0].numpy()
    for splits in ([TOKENS], [17, 1, TOKENS - 18]):
        assert largest_error(compiled_logits(tmp_path / "artifact", ids[0].tolist(), splits), expected) < TOLERANCE


@pytest.mark.parametrize(
    "passes",
    [
        ["attention-linear", "quantize{bits=4}", "incrementalize{cache=q8}"],
        ["attention-window{size=5,sink=2}", "cast-weights", "incrementalize{cache=q8}"],
    ],
    ids=["linear-w4", "window-f16-kv8"],
)
def test_rewritten_models_give_the_interpreters_logits(tmp_path: Path, passes: list[str]) -> None:
    module = with_passes(toy_model(), *passes)
    PROCESSOR.build(module, parse_target("cpu:via=mlir,context=32,chunk=8"), tmp_path / "artifact")
    for splits in SPLITS:
        with torch.no_grad():
            expected = step_through(module, torch.tensor([IDS]), splits)[0].numpy()
        found = compiled_logits(tmp_path / "artifact", IDS, splits)
        assert largest_error(found[:5], expected[:5]) < TOLERANCE and largest_error(found, expected) < ROUNDED


@needs_vulkan
def test_vulkan_computes_with_8_bit_weights_and_16_bit_caches(tmp_path: Path) -> None:
    module = with_passes(toy_model(), "quantize{bits=8,act=none}", "incrementalize{cache=f16}")
    VulkanBackend().build(module, parse_target("vulkan:context=32,chunk=8"), tmp_path / "artifact")
    for splits in SPLITS:
        with torch.no_grad():
            expected = step_through(module, torch.tensor([IDS]), splits)[0].numpy()
        assert largest_error(compiled_logits(tmp_path / "artifact", IDS, splits), expected) < TOLERANCE


def stored_values() -> dict[str, tuple[TensorType, object]]:
    """Weights of every kind of storage: whole, unfinished and odd groups, few and many bits, and no real numbers."""
    drawn = torch.Generator().manual_seed(3)
    found: dict[str, tuple[TensorType, object]] = {}
    for text, columns in (("q4g32", 64), ("q4g32a", 40), ("q8c", 6), ("q3g5", 12), ("q8g32a", 33), ("q4c", 7)):
        element = parse_element(text)
        assert isinstance(element, QuantizedType)
        half = 0 if not element.symmetric else 2 ** (element.bits - 1)
        codes = torch.randint(-half, 2**element.bits - half, (3, columns), generator=drawn)
        groups = (3, element.groups(columns))
        scales, minimum = (torch.rand(groups, generator=drawn).half() for _ in range(2))
        held = codes.to(torch.int8 if element.symmetric else torch.uint8)
        value = QuantizedTensor(element, held, scales, None if element.symmetric else minimum)
        found[text] = (TensorType(element, (3, columns)), value)
    for element, dtype in ((DType.f32, torch.float32), (DType.f16, torch.float16), (DType.bf16, torch.bfloat16),
                           (DType.f64, torch.float64), (DType.i64, torch.int64), (DType.i32, torch.int32),
                           (DType.i8, torch.int8), (DType.bool, torch.bool)):  # fmt: skip
        numbers = torch.randn((2, 5), generator=drawn) * 9
        found[str(element)] = (TensorType(element, (2, 5)), (numbers > 0 if dtype == torch.bool else numbers).to(dtype))
    return found


def test_weights_of_every_type_are_read_as_the_numbers_they_stand_for(tmp_path: Path) -> None:
    """A step of a model whose every output is a weight, plus nothing: what the program makes of what is stored."""
    import iree.runtime as runtime

    values = stored_values()
    stored = [StoredWeight(key, type) for key, (type, _) in values.items()]
    index, declared, functions = runtime.ParameterIndex(), "", ""
    for number, weight in enumerate(stored):
        symbols = [f"w{number}_{part}" for part in range(len(weight.parts))]
        for symbol, part, data in zip(symbols, weight.parts, weight.arrays(values[weight.key][1]), strict=True):
            index.add_buffer(part.key, bytearray(data.tobytes()))
            place = f'#flow.parameter.named<"model"::"{part.key}">'
            declared += f"  util.global private @{symbol} = {place} : {part.type}\n"
        element = {"bool": "i1"}.get(weight.read_element, str(weight.read_element))
        type = f"tensor<{'x'.join(map(str, weight.shape))}x{element}>"
        functions += f"  func.func @f{number}() -> {type} {{\n{weight.read('w', symbols)}    return %w : {type}\n  }}\n"
    code = compile_program(f"module @weights {{\n{declared}{functions}}}\n", "llvm-cpu", [])
    config = runtime.Config("local-sync")
    config.default_vm_modules += (
        runtime.create_io_parameters_module(config.vm_instance, index.create_provider("model")),
    )
    module = runtime.load_vm_module(runtime.VmModule.copy_buffer(config.vm_instance, code), config)
    for number, weight in enumerate(stored):
        value = values[weight.key][1]
        expected = value.dequantize() if isinstance(value, QuantizedTensor) else value
        assert isinstance(expected, torch.Tensor)
        wanted = expected.float() if expected.is_floating_point() else expected
        found = np.array(getattr(module, f"f{number}")().to_host())
        np.testing.assert_allclose(found, wanted.numpy(), rtol=1e-6, err_msg=weight.key)


def test_a_weight_with_two_users_is_stored_once(artifact: Path) -> None:
    manifest = read_manifest(artifact)
    assert sorted(manifest["parameters"]) == ["norm", "table", "wk", "wq"]  # the table is embedding and head
    assert manifest["bytes"]["weights"] < 2 * sum(size for _, size in manifest["parameters"].values())


TARGET = "cpu:via=mlir,context=20,chunk=1"


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return slmopt.compile(toy_model(), TARGET, tmp_path_factory.mktemp("mlir") / "toy", verify=False)


def test_equal_inputs_give_equal_artifacts(tmp_path: Path, artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLMOPT_CACHE", "off")
    again = slmopt.compile(toy_model(), TARGET, tmp_path / "again", verify=False)
    names = sorted(path.name for path in artifact.iterdir())
    assert names == sorted(path.name for path in again.iterdir())
    for name in names:
        assert (artifact / name).read_bytes() == (again / name).read_bytes(), name


def test_the_same_verbs_compile_and_open(artifact: Path) -> None:
    with slmopt.open(artifact) as model:
        assert isinstance(model._program, IreeProgram) and (model.vocab, model.context) == (40, 20)
        assert model.manifest["target"].startswith("cpu:via=mlir,isa=")
        tokens = list(model.generate_ids([1, 2, 3], 8))
    with torch.no_grad():
        expected = [1, 2, 3]
        for _ in range(8):
            expected.append(int(forward(toy_model(), torch.tensor([expected]))[0, -1].argmax()))
    assert tokens == expected[3:]


def test_what_cannot_be_traced_is_named_with_its_place() -> None:
    def reference(op: Op, x: torch.Tensor) -> torch.Tensor:
        return x * int(x.sum())

    spec = OpSpec("peek", ("x",), lambda op: op.operands[0].type, reference, "reads a number")  # type: ignore[union-attr]
    with ops.having([spec], "the test"):
        module = slmopt.parse(
            'module @m {\n  metadata {"batch": "b", "context": 16, "sequence": "s", "vocab": 40}\n'
            "  graph @forward(%ids: i64[b, s]) {\n"
            "    %x = embedding(%ids, weight @table : f32[40, 40]) : f32[b, s, 40]\n"
            '    %y = peek(%x) : f32[b, s, 40] loc("layers.3.peek")\n    return %y\n  }\n}\n'
        )
        (problem,) = PROCESSOR.supports(with_passes(module, "incrementalize"), Target("cpu:via=mlir"))
    assert "peek" in problem and "layers.3.peek" in problem and "cannot be traced" in problem


def test_what_the_compiler_refuses_is_said_with_its_line() -> None:
    with pytest.raises(UnsupportedError, match=r"cannot compile the program for llvm-cpu:\n  .*in: return %nothing"):
        compile_program("func.func @f() -> i32 {\n  return %nothing : i32\n}\n", "llvm-cpu", [])


@pytest.mark.parametrize(
    ("backend", "target", "message"),
    [
        (PROCESSOR, "cpu:via=mlir,isa=avx9", "unknown instruction set 'avx9'"),
        (PROCESSOR, "cpu:via=mlir,chnk=3", "unknown option 'chnk'; did you mean 'chunk'"),
        (PROCESSOR, "cpu:via=mlir,context=65", "longer than the 64"),
        (PROCESSOR, "cpu:via=mlir,chunk=0", "chunk must be a positive number"),
        (VulkanBackend(), "vulkan:device=first", "device must be a number or GPU-UUID"),
        (VulkanBackend(), "vulkan:isa=avx2", "unknown option 'isa'"),
    ],
)
def test_wrong_options_are_refused_before_anything_is_done(backend: MlirBackend, target: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        backend.pipeline(toy_model(), parse_target(target))


def test_an_unknown_device_of_vulkan_is_an_error(tmp_path: Path) -> None:
    module = with_passes(toy_model(), "incrementalize")
    with pytest.raises(UnsupportedError, match="target vulkan:gpu=abacus"):
        VulkanBackend().build(module, parse_target("vulkan:gpu=abacus"), tmp_path / "artifact")
    assert not (tmp_path / "artifact").exists()


@needs_vulkan
def test_a_device_is_found_by_its_number() -> None:
    assert open_device("vulkan://0", 1) is not None
    with pytest.raises(InputError, match=r"the device vulkan://99 cannot be used here: there are \d+, numbered from 0"):
        open_device("vulkan://99", 1)


def test_missing_packages_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, package=None: None)
    with pytest.raises(InputError, match=r"needs torch-mlir and iree-base-compiler: pip install 'slmopt\[mlir\]'"):
        PROCESSOR.pipeline(toy_model(), Target("cpu:via=mlir"))


def test_a_package_whose_parent_is_missing_is_named_too(monkeypatch: pytest.MonkeyPatch) -> None:
    def find(name: str, package: str | None = None) -> None:
        if "." in name:
            raise ModuleNotFoundError(name)

    monkeypatch.setattr(importlib.util, "find_spec", find)
    with pytest.raises(InputError, match=r"needs torch-mlir and iree-base-compiler"):
        PROCESSOR.pipeline(toy_model(), Target("cpu:via=mlir"))


def test_the_program_has_no_weights_inside() -> None:
    program = program_of(with_passes(toy_model(), "incrementalize"), 64, (1, 4))
    text = program.text()
    assert "dense_resource" not in text and text.count("#flow.parameter.named") == 4
    assert [state.shape for state in program.states] == [(1, 2, 64, 16)] * 2


def test_status_tells_what_is_there() -> None:
    for backend in (PROCESSOR, VulkanBackend()):
        status = backend.status()
        assert status["compile"] is True and isinstance(status["run"], bool) and isinstance(status["install"], list)
        assert status["run"] or status["install"]
