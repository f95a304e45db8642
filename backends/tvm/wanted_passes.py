"""Which passes the kernels still want for a module."""

from __future__ import annotations

from slmopt.ir.graph import Module

__all__ = ["wanted_passes"]


def wanted_passes(module: Module) -> list[str]:
    """`fuse` where linears quantize their own inputs; `incrementalize` where there is no @step."""
    stepped = "step" in module.graphs
    graph = module.graph("step" if stepped else "forward")
    rounds = any(op.attributes.get("act") == "q8" for op in graph.walk() if op.name == "linear")
    return [*(["fuse"] if rounds else []), *([] if stepped else ["incrementalize"])]
