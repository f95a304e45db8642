"""What comes with slmopt: the only file that names a built-in pass, backend, frontend or recipe."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from slmopt.plugins.hooks import slmopt_plugin

__all__ = ["slmopt_backends", "slmopt_frontends", "slmopt_passes", "slmopt_recipes"]

_RECIPES = Path(__file__).resolve().parent / "recipes"


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
        "fuse": "slmopt.passes.fuse.fuse:Fuse",
        "fuse-act-quant": "slmopt.passes.fuse.act_quant:FuseActQuant",
        "fuse-epilogue": "slmopt.passes.fuse.epilogue:FuseEpilogue",
        "fuse-qkv": "slmopt.passes.fuse.qkv:FuseQKV",
        "incrementalize": "slmopt.passes.incrementalize:Incrementalize",
    }


@slmopt_plugin
def slmopt_backends() -> Mapping[str, str]:
    """Every built-in backend."""
    return {"cpu": "slmopt.backends.cpu.backend:CpuBackend"}


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
    return {name: _RECIPES / f"{name}.toml" for name in ("f32", "f16", "w8", "w4")}
