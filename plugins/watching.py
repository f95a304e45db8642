"""Observers of plugins: what a pipeline tells them, so that they can neither harm it nor stop it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from slmopt.ir.weights import WeightStore
from slmopt.plugins.collection import Watcher
from slmopt.plugins.installed import Problem, describe

if TYPE_CHECKING:
    from slmopt.ir.graph import Module
    from slmopt.ledger import Ledger, Row
    from slmopt.pipeline import Pass

__all__ = ["PluginObserver"]


class PluginObserver:
    """A `slmopt.pipeline.Observer` that passes everything on to plugins.

    Each gets copies of its own, and only of what it asks for. One that raises is reported and not called again.
    """

    def __init__(self, watchers: Sequence[Watcher], report: Callable[[Problem], None]) -> None:
        self._watchers, self._report = watchers, report
        self._failed: set[int] = set()

    def before_pass(self, item: Pass, module: Module) -> None:
        """`item` is about to run on `module`."""
        self._tell("slmopt_before_pass", item=lambda: item, module=lambda: _copy(module))

    def after_pass(self, item: Pass, module: Module, row: Row) -> None:
        """`item` has run; `row` is what was measured."""
        told = {"item": lambda: item, "module": lambda: _copy(module), "row": lambda: deepcopy(row)}
        self._tell("slmopt_after_pass", **told)

    def on_ledger(self, ledger: Ledger, module: Module) -> None:
        """All passes have run."""
        rows = lambda: replace(ledger, rows=deepcopy(ledger.rows), baseline=None)  # noqa: E731
        self._tell("slmopt_on_ledger", ledger=rows, module=lambda: _copy(module))

    def _tell(self, hook: str, **given: Callable[[], Any]) -> None:
        for index, watcher in enumerate(self._watchers):
            if watcher.hook != hook or index in self._failed:
                continue
            try:
                watcher.call(**{name: given[name]() for name in watcher.wants})
            except Exception as error:
                self._failed.add(index)
                self._report(Problem(watcher.plugin, f"raised {describe(error)}; it is not called again", hook))


class _CopyingStore(WeightStore):
    """A branch of a store that gives copies of its tensors."""

    def load(self, key: str) -> Any:
        """The stored tensor, to do with as one likes."""
        return deepcopy(super().load(key))


def _copy(module: Module) -> Module:
    """A module that shares nothing with `module` that could be written to."""
    copied = module.copy()
    copied.metadata, copied.weights, copied.ledger = deepcopy(module.metadata), _CopyingStore(module.weights), None
    return copied
