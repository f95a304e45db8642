"""slmopt: a compiler for small language models. Four verbs: load, optimize, compile, open. And what passes are made of.

Importing this package imports nothing heavy; each verb imports what it needs when called.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from slmopt.api import compile, load, measure, open, optimize, parse
    from slmopt.bisection import bisect
    from slmopt.declaration import option
    from slmopt.errors import ContractError, InputError, IRError, SlmError, UnsupportedError
    from slmopt.ir.blocks import Block, find_blocks
    from slmopt.ir.graph import Graph, Module, Op
    from slmopt.ir.types import TensorType, tensor
    from slmopt.ir.values import Value, Weight
    from slmopt.layers import Layers, find_layers
    from slmopt.pipeline import Budget, Context, Exact, Lossy, Pass, Pipeline
    from slmopt.rewrite import (
        Match,
        Pattern,
        RewritePass,
        Rewriter,
        Rule,
        any_,
        constant,
        either,
        find_matches,
        match,
        op,
        replace,
        rule,
        weight,
    )
    from slmopt.runtime import LanguageModel

__all__ = [
    "Block", "Budget", "Context", "ContractError", "Exact", "Graph", "IRError", "InputError", "LanguageModel",
    "Layers", "Lossy", "Match", "Module", "Op", "Pass", "Pattern", "Pipeline", "RewritePass", "Rewriter", "Rule",
    "SlmError", "TensorType", "UnsupportedError", "Value", "Weight", "__version__", "any_", "bisect", "compile",
    "constant", "either", "find_blocks", "find_layers", "find_matches", "load", "match", "measure", "op", "open",
    "optimize", "option", "parse", "replace", "rule", "tensor", "weight",
]  # fmt: skip

__version__ = "0.1.0"

_NAMES = {
    "slmopt.api": ("compile", "load", "measure", "open", "optimize", "parse"),
    "slmopt.bisection": ("bisect",),
    "slmopt.declaration": ("option",),
    "slmopt.errors": ("ContractError", "InputError", "IRError", "SlmError", "UnsupportedError"),
    "slmopt.ir.blocks": ("Block", "find_blocks"),
    "slmopt.ir.graph": ("Graph", "Module", "Op"),
    "slmopt.ir.types": ("TensorType", "tensor"),
    "slmopt.ir.values": ("Value", "Weight"),
    "slmopt.layers": ("Layers", "find_layers"),
    "slmopt.pipeline": ("Budget", "Context", "Exact", "Lossy", "Pass", "Pipeline"),
    "slmopt.rewrite": (
        "Match", "Pattern", "RewritePass", "Rewriter", "Rule", "any_", "constant", "either", "find_matches",
        "match", "op", "replace", "rule", "weight",
    ),
    "slmopt.runtime": ("LanguageModel",),
}
_PLACES = {name: place for place, names in _NAMES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_PLACES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
