"""What a failed conformance check says: the pass, the fault, and a small module that shows it."""

from __future__ import annotations

from dataclasses import dataclass

from slmopt.errors import SlmError
from slmopt.ir.graph import Module
from slmopt.options import describe_pass
from slmopt.pipeline import Context, Pass, Pipeline
from slmopt.plugins.discovery import registry
from slmopt.testing.weights import kinds_of

__all__ = ["ConformanceError", "Failure", "describe_failure"]


class ConformanceError(AssertionError):
    """A pass does not hold what every pass must.

    check: the name of the check that failed. pass_text: the pass with its options, as recipes write it.
    text: the module that shows it, as IR text. examples: how many were tried until the first failure. seed: of the run.
    reproduces: whether `slmopt opt - -p PASS --check` fails on the text.
    """

    def __init__(
        self, message: str, *, check: str, pass_text: str, text: str, examples: int, seed: int, reproduces: bool
    ) -> None:
        super().__init__(message)
        self.check, self.pass_text, self.text = check, pass_text, text
        self.examples, self.seed, self.reproduces = examples, seed, reproduces


@dataclass(frozen=True)
class Failure:
    """A check that failed on a module. `shown`: another that was made of it, on which it fails."""

    check: str
    detail: str
    item: Pass
    module: Module
    shown: Module | None = None


def describe_failure(failure: Failure, *, tried: int, examples: int, seed: int) -> ConformanceError:
    """The error for a failure that was first seen after `tried` of `examples` examples."""
    item, text = failure.item, str(failure.shown or failure.module)
    shown = describe_pass(item)
    reproduces = _fails_in_pipeline(item, text)
    kinds = kinds_of(failure.module)
    numbers = "".join(f"\n  weight @{key}: {kind}" for key, kind in kinds.items())
    command = f"slmopt opt - -p '{shown}' --check"
    also = "fails on this text too" if reproduces else "does not show this fault: rerun the check"
    message = (
        f"pass {shown} fails the check {failure.check!r}: {failure.detail}\n"
        f"  found by example {tried} of {examples}, seed {seed}\n"
        f"  rerun: check_pass({type(item).__name__}, examples={examples}, seed={seed})\n"
        f"  {command} {also}{numbers}\n\n{text}"
    )
    return ConformanceError(
        message, check=failure.check, pass_text=shown, text=text, examples=tried, seed=seed, reproduces=reproduces
    )


def _fails_in_pipeline(item: Pass, text: str) -> bool:
    """Whether the pipeline finds the fault with the weights that IR text gets; where the pass raises, it fails too."""
    from slmopt.ir.text import parse_module
    from slmopt.stand_in import add_stand_ins

    module = parse_module(text)
    add_stand_ins(module, drawn=True)
    try:
        Pipeline([item]).run(module, Context(rules=registry().rules_for))
    except SlmError:
        return True
    except Exception:  # a fault in the pass: the command fails, too
        return True
    return False
