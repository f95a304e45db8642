"""The errors a user of slmopt meets: each says what, where, what was expected, and what to do."""

from __future__ import annotations

from collections.abc import Iterable

__all__ = [
    "ArtifactError",
    "ContractError",
    "IRError",
    "InputError",
    "PluginWarning",
    "SlmError",
    "UnsupportedError",
    "nearest",
]


class SlmError(Exception):
    """Base of every error slmopt raises on purpose. `exit_code` is what the command line returns for it."""

    exit_code = 1


class InputError(SlmError):
    """Wrong use: a missing file, an unknown option, a model directory that cannot be read."""

    exit_code = 2


class IRError(SlmError):
    """The IR text does not parse, or a graph breaks one of the IR's rules. `op`: the op it is about, where one is."""

    op: object = None


class UnsupportedError(SlmError):
    """The model or graph asks for something that is not implemented; the message names it."""


class ContractError(SlmError):
    """A pass broke its contract: it drifted, left the budget, or ran without what it requires."""


class ArtifactError(SlmError):
    """A compiled artifact cannot be opened or run."""


class PluginWarning(UserWarning):
    """Something is wrong with an installed plugin; it says which, and everything else goes on working."""


def nearest(name: str, known: Iterable[str]) -> str:
    """`; did you mean 'x'?`, or nothing where no known name is near."""
    import difflib

    near = difflib.get_close_matches(name, list(known), 1)
    return f"; did you mean {near[0]!r}?" if near else ""
