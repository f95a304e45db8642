"""`check_pass`: a pass on random modules, until one shows that it breaks what every pass must hold."""

from __future__ import annotations

import contextlib
import time
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from hypothesis import HealthCheck, Phase, Verbosity, given, settings
from hypothesis import seed as with_seed
from hypothesis import strategies as st

from slmopt.errors import ContractError
from slmopt.ir.graph import Module
from slmopt.options import describe_pass
from slmopt.pipeline import Pass
from slmopt.testing.checks import CHECKS, find_transformation
from slmopt.testing.compiled import Candidates, check_compiled
from slmopt.testing.failures import Failure, describe_failure
from slmopt.testing.language_models import language_models
from slmopt.testing.modules import modules
from slmopt.testing.options import options as draw_options
from slmopt.testing.reduce import reduce
from slmopt.testing.trial import BrokenError, RefusalError, Trial, prepare, run_pass
from slmopt.testing.weights import kinds_of

__all__ = ["check_pass"]

_SHRINK_SECONDS = 3.0
_REDUCE_SECONDS = 10.0
_LEAST = 0.1  # the share of examples that a pass must not refuse


def check_pass(
    given_pass: type[Pass] | Pass, *, examples: int = 50, seed: int = 0,
    strategy: st.SearchStrategy[Module] | None = None,
    options: st.SearchStrategy[Mapping[str, Any]] | Mapping[str, Any] | None = None, compile: int = 1,
    shrink: bool = True,
) -> None:  # fmt: skip
    """Prove a pass on `examples` random modules; ConformanceError shows the smallest module on which it fails.

    given_pass: a class, whose options are drawn too, or a pass as it is. strategy: of modules, instead of
    `language_models()` and `modules()` in turn. options: a strategy of options, or options that are always given.
    seed: the same modules for the same seed. compile: so many results are compiled for the CPU, run and compared.
    shrink: look for a smaller module where one fails.

    The pass runs as in a pipeline, after the passes that establish what it requires; see docs/testing-a-pass.md for
    what is checked. A pass may refuse modules with UnsupportedError, but not nearly all of them.
    """
    search = _Search()
    found = strategy if strategy is not None else st.one_of(language_models(), modules(), language_models())
    quiet = settings(
        max_examples=examples, deadline=None, database=None, verbosity=Verbosity.quiet, print_blob=False,
        phases=(Phase.generate, Phase.shrink) if shrink else (Phase.generate,),
        suppress_health_check=list(HealthCheck), report_multiple_bugs=False,
    )  # fmt: skip
    run = quiet(with_seed(seed)(given(found, _items(given_pass, options))(search.try_example)))
    with contextlib.suppress(_FoundError):
        run()
    failure = search.failure
    if failure is not None and shrink:
        failure = search.reduced(_explained(failure))
    if failure is None and compile:
        failure = check_compiled(search.candidates, compile)
    if failure is not None:
        raise describe_failure(failure, tried=search.tried, examples=examples, seed=seed) from None
    if search.passed < _LEAST * search.tried:
        raise ContractError(
            f"pass {given_pass.name} refused {search.tried - search.passed} of {search.tried} modules, so that "
            f"little was checked; the last time it said: {search.refusal}. Give check_pass a strategy of modules it "
            "supports"
        )


def _explained(failure: Failure) -> Failure:
    """A failure of the check that does much at once, with the part of it that makes the difference."""
    if failure.check != "transformed":
        return failure
    after = failure.module.copy()
    trial = Trial(failure.item, failure.module, after, run_pass(failure.item, after))
    broken = find_transformation(trial)
    if broken is None or broken.module is None:
        return failure
    return replace(failure, detail=str(broken), shown=broken.module)


def _items(
    given_pass: type[Pass] | Pass, options: st.SearchStrategy[Mapping[str, Any]] | Mapping[str, Any] | None
) -> st.SearchStrategy[Pass]:
    if isinstance(given_pass, Pass):
        return st.just(given_pass)
    if isinstance(options, Mapping):
        return st.builds(given_pass, **{name: st.just(value) for name, value in options.items()})
    drawn = draw_options(given_pass) if options is None else options
    return drawn.map(lambda values: given_pass(**values))


class _FoundError(Exception):
    """Tells hypothesis that an example fails."""


@dataclass
class _Search:
    """Examples as hypothesis gives them. Each is looked at once: what was found is kept, a pass may keep state.

    tried: examples until the first that fails; passed: those that hold. candidates: those of them that may be compiled.
    failure: the last one that does not hold, which is the smallest when hypothesis ends.
    """

    tried: int = 0
    passed: int = 0
    refusal: str = ""
    failure: Failure | None = None
    candidates: Candidates = field(default_factory=Candidates)
    _seen: dict[str, Failure | None] = field(default_factory=dict)
    _until: float = float("inf")

    def try_example(self, module: Module, item: Pass) -> None:
        """Look at one example; raises _FoundError where it fails."""
        key = f"{module}{kinds_of(module)}{describe_pass(item)}"
        if key not in self._seen:
            if time.process_time() > self._until:
                return
            self._seen[key] = self._look_as_drawn(module, item)
        failure = self._seen[key]
        if failure is None:
            return
        if self.failure is None:
            self._until = time.process_time() + _SHRINK_SECONDS
        self.failure = failure
        raise _FoundError

    def reduced(self, failure: Failure) -> Failure:
        """The failure on a smaller module than hypothesis found."""
        only, start = self._checks(failure), failure
        if failure.shown is not None:  # what the transformation made of it fails without being transformed
            found = self._look(failure.shown, failure.item, (False, False), {"numbers", "contract"})
            if found is not None:
                only, start = {found.check}, found
        smaller = reduce(
            start, lambda module: self._look(module, failure.item, (False, False), only), _REDUCE_SECONDS
        )
        return smaller if start is failure else replace(failure, shown=smaller.module)

    def _checks(self, failure: Failure) -> set[str]:
        """What a smaller module may fail: the same, and what a transformation is not needed for."""
        return {failure.check, "numbers"} if failure.check == "transformed" else {failure.check}

    def _look_as_drawn(self, module: Module, item: Pass) -> Failure | None:
        """Look at a module; what is established on it first depends on its text alone."""
        draw = zlib.crc32(str(module).encode())
        drawn = (draw % 2 == 0, draw % 3 == 0)
        if self.failure is None:
            self.tried += 1
            return self._look(module, item, drawn, None)
        checks = self._checks(self.failure)
        simple = self._look(module.copy(), item, (False, False), checks)
        return simple if simple is not None or drawn == (False, False) else self._look(module, item, drawn, checks)

    def _look(self, module: Module, item: Pass, facts: tuple[bool, bool], only: set[str] | None) -> Failure | None:
        """What fails; of `only` these checks."""
        try:
            prepare(item, module, follow=facts[0], decode=facts[1])
            after = module.copy()
            trial = Trial(item, module, after, run_pass(item, after))
            for name, check in CHECKS.items():
                if only is None or name in only:
                    check(trial)
        except RefusalError as refused:
            self.refusal = str(refused)
            return None
        except BrokenError as broken:
            found = only is None or broken.check in only
            return Failure(broken.check, str(broken), item, module, broken.module) if found else None
        self.passed += 1
        self.candidates.offer(item, module)
        return None
