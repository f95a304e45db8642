"""Derived weights: computed from others when they are asked for, one at a time."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from slmopt.errors import IRError
from slmopt.ir.types import TensorType
from slmopt.ir.values import Weight

if TYPE_CHECKING:
    from slmopt.ir.graph import Module

__all__ = ["derive", "derive_weight"]

_PLAIN = (bool, int, float, str, type(None))


def derive(
    module: Module, sources: Sequence[Weight], what: str, compute: Callable[..., Any], type: TensorType | None,
    suffix: str,
) -> Weight:  # fmt: skip
    """See `Module.derive`."""
    if not sources:
        raise IRError(f"a derived weight ({what}) needs a weight that it is computed from")
    for source in sources:
        if source.key not in module.weights:
            raise IRError(f"@{source.key}: nothing can be derived from it ({what}), its numbers are not in the module")
    keys = tuple(source.key for source in sources)
    words = suffix or re.sub(r"[^\w.]+", "_", what).strip("_.")
    description = f"{what} of {', '.join(f'@{key}' for key in keys)}"
    return derive_weight(module, f"{keys[0]}.{words}", keys, type or sources[0].type, description, compute)


def derive_weight(
    module: Module, key: str, inputs: tuple[str, ...], type: TensorType, description: str, compute: Callable[..., Any]
) -> Weight:
    """A weight computed from others when it is asked for; the same description again gives the same key.

    `compute` gets one tensor per input. IRError where two derivations have one description and compute differently.
    """
    store, count, name = module.weights, 1, key
    while name in store and (store.source(name).description, store.source(name).type) != (description, type):
        count += 1
        name = f"{key}.{count}"
    if name in store and _differ(store.source(name).load, compute):
        raise IRError(f"two derivations are called {description!r} and compute differently: say in the words what they "
                      "depend on, such as a factor")  # fmt: skip
    return Weight(store.derive(name, inputs, type, description, compute), type)


def _differ(first: Any, second: Any) -> bool:
    """Whether two functions are certain to compute differently: other code, or other numbers enclosed in it."""
    codes = [getattr(function, "__code__", None) for function in (first, second)]
    if codes[0] is None or codes[1] is None:
        return False
    if any(getattr(codes[0], part) != getattr(codes[1], part) for part in ("co_code", "co_names", "co_freevars")):
        return True
    if _plain(codes[0].co_consts) != _plain(codes[1].co_consts):
        return True
    cells = [function.__closure__ or () for function in (first, second)]
    enclosed = [(one.cell_contents, other.cell_contents) for one, other in zip(*cells, strict=True)]
    enclosed += zip(first.__defaults__ or (), second.__defaults__ or (), strict=False)
    return any(isinstance(one, _PLAIN) and isinstance(other, _PLAIN) and one != other for one, other in enclosed)


def _plain(values: Iterable[Any]) -> list[Any]:
    return [value for value in values if isinstance(value, _PLAIN)]
