"""What comes with slmopt: the only file that names a built-in pass, backend, kernel, frontend, recipe or metric."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from slmopt.plugins.hooks import slmopt_plugin

__all__ = [
    "slmopt_backends",
    "slmopt_frontends",
    "slmopt_isas",
    "slmopt_lowerings",
    "slmopt_metrics",
    "slmopt_passes",
    "slmopt_recipes",
    "slmopt_runtimes",
]

_RECIPES = Path(__file__).resolve().parent / "recipes"
_BACKENDS = Path(__file__).resolve().parent.parent / "backends"
_ISAS = {
    "cpu": ("avx512-bf16", "avx512-vnni", "avx2", "scalar"),
    "arm": ("neon-bf16", "neon-dot", "neon"),
}
_RULES = "slmopt.backends.tvm.rules"
_ATTENTION = "slmopt.backends.tvm.attention_rules"
_EXPANSIONS = "slmopt.backends.tvm.expansions"
_GPU_RULES = "slmopt.backends.gpu.rules"


@slmopt_plugin
def slmopt_passes() -> Mapping[str, str]:
    """Every built-in pass; the parts of `raise` and `fuse` are passes of their own."""
    return {
        "raise": "slmopt.passes.raise_.raising:Raise",
        "raise-activation": "slmopt.passes.raise_.activation:RaiseActivation",
        "raise-attention": "slmopt.passes.raise_.attention:RaiseAttention",
        "raise-embedding": "slmopt.passes.raise_.embedding:RaiseEmbedding",
        "raise-glu": "slmopt.passes.raise_.glu:RaiseGlu",
        "raise-linear": "slmopt.passes.raise_.linear:RaiseLinear",
        "raise-norm": "slmopt.passes.raise_.norm:RaiseNorm",
        "raise-rope": "slmopt.passes.raise_.rope:RaiseRope",
        "canonicalize": "slmopt.passes.canonicalize.canonicalize:Canonicalize",
        "cast-weights": "slmopt.passes.quantize.cast_weights:CastWeights",
        "quantize": "slmopt.passes.quantize.round_to_nearest:Quantize",
        "heal": "slmopt.passes.heal.heal:Heal",
        "drop-layers": "slmopt.passes.prune.drop_layers:DropLayers",
        "prune-ffn": "slmopt.passes.prune.prune_ffn:PruneFFN",
        "prune-heads": "slmopt.passes.prune.prune_heads:PruneHeads",
        "tie-embeddings": "slmopt.passes.share.tie_embeddings:TieEmbeddings",
        "share-blocks": "slmopt.passes.share.share_blocks:ShareBlocks",
        "gptq": "slmopt.passes.quantize.gptq:GPTQ",
        "fuse": "slmopt.passes.fuse.fuse:Fuse",
        "fuse-act-quant": "slmopt.passes.fuse.act_quant:FuseActQuant",
        "fuse-epilogue": "slmopt.passes.fuse.epilogue:FuseEpilogue",
        "fuse-qkv": "slmopt.passes.fuse.qkv:FuseQKV",
        "attention-linear": "slmopt.passes.attention.attention_linear:AttentionLinear",
        "attention-window": "slmopt.passes.attention.attention_window:AttentionWindow",
        "incrementalize": "slmopt.passes.incrementalize:Incrementalize",
    }


@slmopt_plugin
def slmopt_backends() -> Mapping[str, str]:
    """Every built-in backend."""
    return {
        "cpu": "slmopt.backends.cpu.backend:CpuBackend",
        "cpu:via=mlir": "slmopt.backends.mlir.processor:ProcessorBackend",
        "arm": "slmopt.backends.arm.backend:ArmBackend",
        "vulkan": "slmopt.backends.mlir.vulkan:VulkanBackend",
        "opencl": "slmopt.backends.gpu.backend:OpenClBackend",
        "cuda": "slmopt.backends.gpu.backend:CudaBackend",
    }


@slmopt_plugin
def slmopt_runtimes() -> Mapping[str, str]:
    """What opens artifacts that are no libraries."""
    return {"iree": "slmopt.runtime.iree_program:IreeProgram"}


@slmopt_plugin
def slmopt_isas() -> Mapping[str, Path]:
    """Every built-in instruction set, one TOML file each."""
    return {name: _BACKENDS / of / "isa" / f"{name}.toml" for of, names in _ISAS.items() for name in names}


@slmopt_plugin
def slmopt_lowerings() -> Mapping[str, str]:
    """Every op with a kernel or expansion of its own; other primitives go through TVM's expressions."""
    return {
        "tvm:embedding": f"{_RULES}:lower_embedding",
        "tvm:linear": f"{_RULES}:lower_linear",
        "tvm:rms_norm": f"{_RULES}:lower_norm",
        "tvm:layer_norm": f"{_RULES}:lower_norm",
        "tvm:rope": f"{_RULES}:lower_rope",
        "tvm:glu": f"{_RULES}:lower_glu",
        "tvm:quantize_rows": f"{_RULES}:lower_quantize_rows",
        "tvm:cache_update": f"{_ATTENTION}:lower_cache_update",
        "tvm:attention": f"{_ATTENTION}:lower_attention",
        "tvm:linear_attention": f"{_ATTENTION}:lower_linear_attention",
        "tvm:embedding@gpu": f"{_GPU_RULES}:lower_embedding",
        "tvm:linear@gpu": f"{_GPU_RULES}:lower_linear",
        "tvm:rms_norm@gpu": f"{_GPU_RULES}:lower_norm",
        "tvm:layer_norm@gpu": f"{_GPU_RULES}:lower_norm",
        "tvm:rope@gpu": f"{_GPU_RULES}:lower_rope",
        "tvm:glu@gpu": f"{_GPU_RULES}:lower_glu",
        "tvm:quantize_rows@gpu": f"{_GPU_RULES}:lower_quantize_rows",
        "tvm:cache_update@gpu": f"{_GPU_RULES}:lower_cache_update",
        "tvm:attention@gpu": f"{_GPU_RULES}:lower_attention",
        "tvm:linear_attention@gpu": f"{_GPU_RULES}:lower_linear_attention",
        "tvm:mean": f"{_EXPANSIONS}:lower_mean",
        "tvm:softmax": f"{_EXPANSIONS}:lower_softmax",
    }


@slmopt_plugin
def slmopt_frontends() -> Mapping[str, str]:
    """Every built-in frontend, tried in this order."""
    return {
        "huggingface": "slmopt.frontends.sources:HuggingFaceDirectory",
        "text": "slmopt.frontends.sources:IRText",
        "torch": "slmopt.frontends.sources:TorchModule",
    }


@slmopt_plugin
def slmopt_recipes() -> Mapping[str, Path]:
    """The presets, one TOML file each."""
    return {name: _RECIPES / f"{name}.toml" for name in ("f32", "f16", "w8", "w4", "w4-gptq", "w4-kv8")}


@slmopt_plugin
def slmopt_metrics() -> Mapping[str, str]:
    """Every built-in metric."""
    return {
        "perplexity": "slmopt.metrics.likelihood:Perplexity",
        "bits-per-byte": "slmopt.metrics.likelihood:BitsPerByte",
        "accuracy": "slmopt.metrics.accuracy:Accuracy",
    }
