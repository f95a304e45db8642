"""slmopt: a compiler for small language models. Four verbs: load, optimize, compile, open.

Importing this package imports nothing heavy; each verb imports what it needs when called.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from slmopt.api import compile, load, measure, open, optimize, parse
    from slmopt.bisection import bisect
    from slmopt.errors import SlmError
    from slmopt.ir.graph import Module
    from slmopt.pipeline import Context, Exact, Lossy, Pass
    from slmopt.runtime import LanguageModel

__all__ = [
    "Context", "Exact", "LanguageModel", "Lossy", "Module", "Pass", "SlmError", "__version__", "bisect", "compile",
    "load", "measure", "open", "optimize", "parse",
]  # fmt: skip

__version__ = "0.1.0"

_PLACES = {
    "Context": "slmopt.pipeline",
    "Exact": "slmopt.pipeline",
    "LanguageModel": "slmopt.runtime",
    "Lossy": "slmopt.pipeline",
    "Module": "slmopt.ir.graph",
    "Pass": "slmopt.pipeline",
    "SlmError": "slmopt.errors",
    "bisect": "slmopt.bisection",
    "compile": "slmopt.api",
    "load": "slmopt.api",
    "measure": "slmopt.api",
    "open": "slmopt.api",
    "optimize": "slmopt.api",
    "parse": "slmopt.api",
}


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_PLACES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
