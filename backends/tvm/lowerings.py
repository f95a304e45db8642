"""Which function lowers which op: what plugins and slmopt itself offer as "tvm:OP" or "tvm:OP@ISA"."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

from slmopt.backends.tvm.expansion import Expansion
from slmopt.errors import InputError, SlmError, UnsupportedError, nearest
from slmopt.offers import Offer

if TYPE_CHECKING:
    from collections.abc import Iterator

    from slmopt.backends.tvm.lower import Lowering
    from slmopt.ir.graph import Graph, Op

__all__ = ["CODEGEN", "Lowerings", "Rule"]

CODEGEN = "tvm"
_ROUNDS = 16  # of expansions: what expands into what expands again

Rule = Callable[["Lowering", "Op"], None]


class Lowerings:
    """The lowerings for one instruction set, by op. A function is imported when its op is first met."""

    def __init__(self, offers: Mapping[str, Offer], isa: str) -> None:
        self._offers: dict[str, Offer] = {}
        self._loaded: dict[str, Rule | Expansion] = {}
        for name, offer in offers.items():
            codegen, _, rest = name.partition(":")
            op, _, only = rest.partition("@")
            if codegen == CODEGEN and (only == isa or (not only and op not in self._offers)):
                self._offers[op] = offer

    def __contains__(self, op: object) -> bool:
        return op in self._offers

    def expand(self, graph: Graph) -> list[tuple[Op, UnsupportedError]]:
        """Replace each op whose lowering is an expansion; those that are not taken as they are, and why."""
        refused: dict[Op, UnsupportedError] = {}
        for _ in range(_ROUNDS):
            found = [op for op in graph.walk() if op.name in self and op not in refused]
            found = [op for op in found if isinstance(self._load(op), Expansion)]
            if not found:
                return list(refused.items())
            for op in found:
                expand = self._load(op)
                try:
                    with self._named(op):
                        expand.apply(graph, op)  # type: ignore[union-attr]
                except UnsupportedError as error:
                    refused[op] = error
        offer = self._offers[found[0].name]
        raise InputError(f"{found[0].describe()}: the lowering {offer.place}, offered by {offer.source}, expands into "
                         "itself")  # fmt: skip

    def lower(self, lowering: Lowering, op: Op) -> None:
        """Call the lowering of `op`.

        UnsupportedError where it does not take the op as it is; InputError, naming the owner, where it is broken.
        """
        offer, rule = self._offers[op.name], self._load(op)
        with self._named(op):
            rule(lowering, op)  # type: ignore[operator]
        if missing := [result.name for result in op.results if not lowering.is_placed(result)]:
            raise InputError(f"{op.describe()}: the lowering {offer.place}, offered by {offer.source}, says of "
                             f"%{missing[0]} not where it lies; it must call lowering.allocate")  # fmt: skip

    def _load(self, op: Op) -> Rule | Expansion:
        if op.name not in self._loaded:
            offer = self._offers[op.name]
            found = offer.load()
            if not callable(found) and not isinstance(found, Expansion):
                raise InputError(f"{offer.kind} {offer.name!r}, offered by {offer.source}: {offer.place} cannot be "
                                 "called; expected a function of (lowering, op)")  # fmt: skip
            self._loaded[op.name] = found
        return self._loaded[op.name]

    @contextmanager
    def _named(self, op: Op) -> Iterator[None]:
        """Whatever a plugin's function raises names the plugin."""
        try:
            yield
        except SlmError:
            raise
        except Exception as error:
            offer = self._offers[op.name]
            raise InputError(f"{op.describe()}: the lowering {offer.place}, offered by {offer.source}, raised "
                             f"{type(error).__name__}: {error}") from error  # fmt: skip

    def refuse(self, op: Op) -> UnsupportedError:
        """The error that says that nothing lowers `op`, and what to do."""
        hint = nearest(op.name, self._offers)
        return UnsupportedError(
            f"{op.describe()}: the code generator has no kernel for {op.name!r}{hint}; a plugin offers one through the "
            f"hook slmopt_lowerings, as '{CODEGEN}:{op.name}' (docs/writing-an-op.md)"
        )
