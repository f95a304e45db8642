"""The command line: `slmopt COMMAND ...`.

Exit codes: 0 success, 1 a failed check or budget, 2 wrong use, 3 a fault of slmopt or of a plugin. A command is a
module of `slmopt.commands` with `add_arguments(parser)` and `run(arguments) -> int`. This file and what it imports for
`--help` stay free of torch, tvm, transformers and numpy: a command imports what it needs when it runs.
"""

from __future__ import annotations

import argparse
import gc
import importlib
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from slmopt import __version__
from slmopt.errors import PluginWarning, SlmError

__all__ = ["build_parser", "main"]

_COMMANDS = {
    "compile": ("compile", "compile a model into a self-contained program"),
    "run": ("run", "generate text with a compiled model"),
    "opt": ("opt", "run passes on a model or on IR text, and print IR text"),
    "inspect": ("inspect", "show what a model, IR text or artifact is made of"),
    "diff": ("diff", "compare two models, IR texts or artifacts"),
    "eval": ("eval", "measure perplexity and other metrics of a model on a text"),
    "bisect": ("bisect", "find the pass and the rewrites that break a property, and write a reproducer"),
    "verify": ("verify", "check a compiled model against the interpreter, here or under an emulator"),
    "bench": ("bench", "measure the speed of a compiled model"),
    "tune": ("tune", "measure how a model's matrix products run best here, for an instruction set of its own"),
    "demo": ("demo", "compile the bundled model and let it write"),
    "passes": ("passes", "list passes and their options"),
    "targets": ("targets", "list targets and what this machine can do with them"),
    "ops": ("ops", "list the ops of the IR and what each means"),
    "recipes": ("recipes", "list recipes and their passes"),
    "plugins": ("plugins", "list plugins, what each offers, and what is wrong with it"),
    "new-plugin": ("new_plugin", "write an installable plugin with a pass and its tests"),
}
_NO_PLUGINS = "switch off plugins of third parties"
_INTERRUPTED = 130  # 128 + SIGINT, as shells have it
_FAULT = 3  # of slmopt itself or of a plugin
_BROKEN_PIPE = 141  # 128 + SIGPIPE


def build_parser() -> argparse.ArgumentParser:
    """The parser of all commands."""
    parser = argparse.ArgumentParser(
        prog="slmopt", description="A compiler for small language models.",
        epilog="exit codes: 0 success, 1 failed check or budget, 2 wrong use, 3 a fault of slmopt or of a plugin",
    )  # fmt: skip
    parser.add_argument("--version", action="version", version=f"slmopt {__version__}")
    parser.add_argument("--no-plugins", action="store_true", help=_NO_PLUGINS)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, (module_name, summary) in _COMMANDS.items():
        module = importlib.import_module(f"slmopt.commands.{module_name}")
        command = commands.add_parser(
            name, help=summary, description=module.__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        module.add_arguments(command)
        command.add_argument("--no-plugins", action="store_true", default=argparse.SUPPRESS, help=_NO_PLUGINS)
        command.set_defaults(run=module.run)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code. argparse itself exits with 2 on wrong use."""
    parsed = build_parser().parse_args(arguments)
    gc.set_threshold(100_000, 50, 50)  # graphs live long: looking for cycles in them took a twentieth of a compile
    try:
        with _plugin_warnings(), _plugins_off(parsed.no_plugins):
            code = int(parsed.run(parsed))
        sys.stdout.flush()
    except SlmError as error:
        print(f"error: {error}", *_short_notes(error), sep="\n  ", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return _INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or the interpreter complains on its way out
        return _BROKEN_PIPE
    except Exception as error:
        if os.environ.get("SLMOPT_TRACEBACK"):
            raise
        print(f"error: {_describe_fault(error)}", *_short_notes(error), sep="\n  ", file=sys.stderr)
        return _FAULT
    return code


def _short_notes(error: BaseException) -> list[str]:
    """What was being done when an error came up, line by line; longer accounts are left out."""
    return [note for note in getattr(error, "__notes__", ()) if "\n" not in note]


def _describe_fault(error: Exception) -> str:
    """An error that nobody foresaw: a fault of slmopt or of a plugin, and where it is."""
    import traceback

    place = traceback.extract_tb(error.__traceback__)[-1]
    where = f"at {place.filename}:{place.lineno} in {place.name}"
    how = "a fault of slmopt or of a plugin; SLMOPT_TRACEBACK=1 shows how it came about"
    return f"{type(error).__name__}: {error}\n  {where}: {how}"


@contextmanager
def _plugin_warnings() -> Iterator[None]:
    """What is wrong with plugins is said in one line on standard error; other warnings are shown as ever."""
    with warnings.catch_warnings():
        warnings.simplefilter("always", PluginWarning)
        show = warnings.showwarning

        def print_warning(message: Any, category: type[Warning], *place: Any, **options: Any) -> None:
            if issubclass(category, PluginWarning):
                print(f"warning: {message}", file=sys.stderr)
            else:
                show(message, category, *place, **options)

        warnings.showwarning = print_warning
        yield


@contextmanager
def _plugins_off(off: bool) -> Iterator[None]:
    """Switch third parties off for a command and the processes it starts."""
    if not off:
        yield
        return
    from slmopt.plugins.installed import DISABLE

    before = os.environ.get(DISABLE)
    os.environ[DISABLE] = "1"
    try:
        yield
    finally:
        os.environ.pop(DISABLE)
        os.environ.update({} if before is None else {DISABLE: before})
