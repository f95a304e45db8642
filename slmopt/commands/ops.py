"""List every op of the IR; with a name, all that there is to know of it: meaning, attributes, an example, its cost.

--markdown writes the manual of the whole IR: its grammar, its types, and every op of the core.
"""

from __future__ import annotations

import argparse
import warnings
from typing import TYPE_CHECKING, Any

from slmopt.commands.console import add_json, print_json

if TYPE_CHECKING:
    from slmopt.ir.spec import OpSpec

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    shown = parser.add_mutually_exclusive_group()
    shown.add_argument("name", nargs="?", help="show this op alone")
    shown.add_argument("--markdown", action="store_true", help="write the manual of the IR")
    add_json(parser)


def run(arguments: argparse.Namespace) -> int:
    from slmopt.ir.manual import describe_op, write_manual
    from slmopt.ir.ops import registry as ops
    from slmopt.plugins.discovery import registry

    registry().add_ops()
    if arguments.markdown:
        print(write_manual(), end="")
    elif arguments.json:
        specs = _specs() if arguments.name is None else [ops.lookup(arguments.name)]
        print_json([{**_describe(spec), "owner": ops.owner(spec.name)} for spec in specs])
    elif arguments.name is not None:
        print(describe_op(ops.lookup(arguments.name)))
        print(f"\nFrom {ops.owner(arguments.name)}.")
    else:
        for spec in _specs():
            print(f"{spec.name}({', '.join(spec.operands)})\n    {spec.summary}")
    return 0


def _specs() -> list[OpSpec]:
    """Every op that can be looked up; of the others it is said why they cannot."""
    from slmopt.errors import IRError, PluginWarning
    from slmopt.ir.ops import registry as ops

    found = []
    for name in ops.names():
        try:
            found.append(ops.lookup(name))
        except IRError as error:
            warnings.warn(f"op {name} is left out: {error}", PluginWarning, stacklevel=2)
    return found


def _describe(spec: OpSpec) -> dict[str, Any]:
    from slmopt.ir.spec import Required

    attributes = {
        name: {"required": default.type.__name__} if isinstance(default, Required) else {"default": default}
        for name, default in spec.attributes.items()
    }
    return {
        "name": spec.name, "operands": list(spec.operands), "attributes": attributes, "summary": spec.summary,
        "meaning": spec.meaning, "example": spec.example, "mixes": spec.mixes is not None,
        "incremental": spec.step is not None,
    }  # fmt: skip
