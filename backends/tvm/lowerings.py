"""Which function lowers which op: what plugins and slmopt itself offer as "tvm:OP" or "tvm:OP@ISA"."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from slmopt.errors import InputError, SlmError, UnsupportedError, nearest
from slmopt.offers import Offer

if TYPE_CHECKING:
    from slmopt.backends.tvm.lower import Lowering
    from slmopt.ir.graph import Op

__all__ = ["CODEGEN", "Lowerings", "Rule"]

CODEGEN = "tvm"

Rule = Callable[["Lowering", "Op"], None]


class Lowerings:
    """The lowerings for one instruction set, by op. A function is imported when its op is first met."""

    def __init__(self, offers: Mapping[str, Offer], isa: str) -> None:
        self._offers: dict[str, Offer] = {}
        self._rules: dict[str, Rule] = {}
        for name, offer in offers.items():
            codegen, _, rest = name.partition(":")
            op, _, only = rest.partition("@")
            if codegen == CODEGEN and (only == isa or (not only and op not in self._offers)):
                self._offers[op] = offer

    def __contains__(self, op: object) -> bool:
        return op in self._offers

    def lower(self, lowering: Lowering, op: Op) -> None:
        """Call the lowering of `op`.

        UnsupportedError where it does not take the op as it is; InputError, naming the owner, where it is broken.
        """
        offer = self._offers[op.name]
        if op.name not in self._rules:
            found = offer.load()
            if not callable(found):
                raise InputError(f"{offer.kind} {offer.name!r}, offered by {offer.source}: {offer.place} cannot be "
                                 "called; expected a function of (lowering, op)")  # fmt: skip
            self._rules[op.name] = found
        try:
            self._rules[op.name](lowering, op)
        except SlmError:
            raise
        except Exception as error:  # whatever a plugin's function does
            raise InputError(f"{op.describe()}: the lowering {offer.place}, offered by {offer.source}, raised "
                             f"{type(error).__name__}: {error}") from error  # fmt: skip
        if missing := [result.name for result in op.results if not lowering.is_placed(result)]:
            raise InputError(f"{op.describe()}: the lowering {offer.place}, offered by {offer.source}, says of "
                             f"%{missing[0]} not where it lies; it must call lowering.allocate")  # fmt: skip

    def refuse(self, op: Op) -> UnsupportedError:
        """The error that says that nothing lowers `op`, and what to do."""
        hint = nearest(op.name, self._offers)
        return UnsupportedError(
            f"{op.describe()}: the code generator has no kernel for {op.name!r}{hint}; a plugin offers one through the "
            f"hook slmopt_lowerings, as '{CODEGEN}:{op.name}' (docs/writing-an-op.md)"
        )
