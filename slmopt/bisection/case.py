"""A case: the smallest module found on which a pass still breaks the property, and how that is checked."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from slmopt.bisection.checks import Check, Limit
from slmopt.bisection.cut import Activations, shrink
from slmopt.bisection.hybrid import Hybrids
from slmopt.bisection.isolate import Isolated, Subject
from slmopt.bisection.properties import CommandCheck, CompilesCheck, OutputsCheck, TextCheck, Texts
from slmopt.errors import SlmError
from slmopt.ir.graph import Module, Op
from slmopt.ir.types import DType
from slmopt.stand_in import add_stand_ins

__all__ = ["Case", "make_case"]

_LIMIT = Limit(True, 1e-3, False)
_PLACE = re.compile(r"(?:.* at )?@(?P<graph>.+)/%(?P<value>\w+)\Z")
_LARGE = 1 << 20  # bytes of weights: where there are more, drawn ones are tried


@dataclass(frozen=True)
class Case:
    """What a reproducer consists of.

    allowed: the rewrites that the pass may make; None: all. check: what breaks; None: the pass raises. graph, inputs:
    the graph that is compared, and its inputs by name; None: as the check does on whole models. drawn: weights are
    drawn where the module is loaded, none are stored. why: what was kept of the model.
    """

    module: Module
    subject: Subject
    allowed: tuple[str, ...] | None
    check: Check | None
    texts: Texts
    graph: str = "forward"
    inputs: Mapping[str, Any] | None = None
    drawn: bool = False
    why: str = ""

    @property
    def stored_weights(self) -> bool:
        """Whether weights are stored beside the text."""
        return not self.drawn and bool(self.module.weight_types())

    def fails(self) -> bool:
        """Whether the pass breaks the property of this module."""
        subject = Subject(self.subject.item, self.module, None, self.subject.context, self.subject.error)
        allowed = None if self.allowed is None else frozenset(self.allowed)
        if self.check is None:
            return subject.raises(allowed)
        try:
            if not self.check.prepare(self.module).holds:
                return False
            after = subject.run(allowed)
            return not self.check.measure(after).holds
        except Exception:  # a part of a model is not what passes and checks are written for
            return False


def make_case(subject: Subject, isolated: Isolated, check: Check, texts: Texts) -> Case:
    """The smallest case that fails; the whole module before the pass where no part of it does."""
    allowed = isolated.names if isolated.means == "rewrites" else None
    found = None
    item = subject.item
    if not item.calibrated and not item.compares and not isinstance(check, CompilesCheck):
        found = _cut(subject, isolated, allowed, check, texts)
    return _simplify(found or _whole(subject, allowed, check, texts))


def _cut(
    subject: Subject, isolated: Isolated, allowed: tuple[str, ...] | None, check: Check, texts: Texts
) -> Case | None:
    name, roots = _roots(subject, isolated, allowed)
    if not roots:
        return None
    if subject.error is not None or isinstance(check, CommandCheck):
        made = None if subject.error is not None else check
        part = shrink(subject.before, name, roots, lambda cut: Case(cut, subject, allowed, made, texts, name).fails())
        if part is None:
            return None
        return Case(part, subject, allowed, made, texts, name, why=_kept(subject, part, name))
    limit = check.limit if isinstance(check, OutputsCheck) else _LIMIT
    words = f"; {check.name} cannot be measured on a part, outputs can" if isinstance(check, TextCheck) else ""
    try:
        activations = Activations(subject.before, name)
        found = _cut_outputs(subject, activations, roots, allowed, limit)
        if found is None and (own := _own_limit(subject, allowed)) is not None:
            found = _cut_outputs(subject, activations, roots, allowed, own)
            words += "; alone the pass stays within the limit, so half of what it does to the outputs is"
    except SlmError:  # the probe does not run through the graph
        return None
    return found and replace(found, texts=texts, why=_kept(subject, found.module, name) + words)


def _cut_outputs(
    subject: Subject, activations: Activations, roots: list[Op], allowed: tuple[str, ...] | None, limit: Limit
) -> Case | None:
    name = activations.graph.name

    def case_of(part: Module) -> Case:
        inputs = activations.of(part.graph(name))
        local = OutputsCheck(f"outputs<={limit.number:g}", limit, inputs, name)
        return Case(part, subject, allowed, local, Texts(), name, inputs)

    found = shrink(subject.before, name, roots, lambda part: case_of(part).fails())
    return None if found is None else case_of(found)


def _own_limit(subject: Subject, allowed: tuple[str, ...] | None) -> Limit | None:
    """Half of the difference of outputs that the pass alone makes."""
    check = OutputsCheck("outputs", _LIMIT)
    check.prepare(subject.before)
    after = subject.run(None if allowed is None else frozenset(allowed))
    error = check.measure(after).value
    return None if not error or error == math.inf else Limit(True, float(f"{error / 2:.2g}"), False)


def _kept(subject: Subject, part: Module, name: str) -> str:
    kept, total = (sum(1 for _ in module.graph(name).walk()) for module in (part, subject.before))
    return f"{kept} of {total} ops of @{name} are kept"


def _roots(subject: Subject, isolated: Isolated, allowed: tuple[str, ...] | None) -> tuple[str, list[Op]]:
    """The graph and the ops of it that are at fault: where the rewrites were made, or what they changed."""
    names: Iterable[str] = isolated.names
    found = _places(subject.before, names)
    if not found[1] and subject.error is None:
        after = subject.after
        if allowed is not None:
            after = subject.run(frozenset(allowed))
        if after is not None:
            found = _places(subject.before, Hybrids(subject.before, after).names)
    return found


def _places(module: Module, names: Iterable[str]) -> tuple[str, list[Op]]:
    chosen, ops = "", list[Op]()
    for name in names:
        match = _PLACE.match(name)
        graph = module.graphs.get(match["graph"].strip('"')) if match else None
        if match is None or graph is None or (chosen and graph.name != chosen):
            continue
        op = next((value.op for value in graph.values() if value.name == match["value"]), None)
        if op is not None:
            chosen, ops = graph.name, [*ops, op]
    return chosen, ops


def _whole(subject: Subject, allowed: tuple[str, ...] | None, check: Check, texts: Texts) -> Case:
    module = subject.before.copy()
    module.metadata = {key: value for key, value in module.metadata.items() if key != "tokenizer"}
    why = "no part of the model fails alone: the whole module before the pass is kept"
    if subject.error is not None:
        return Case(module, subject, allowed, None, texts, why=why)
    case = Case(module, subject, allowed, check, texts, why=why)
    return case if case.fails() else _with_own_limit(case)


def _with_own_limit(case: Case) -> Case:
    """The pass goes over the limit together with those before it: alone, half of what it does is allowed."""
    check = case.check
    if not isinstance(check, OutputsCheck | TextCheck):
        return case
    try:
        start = check.prepare(case.module).value or 0.0
        after = case.subject.run(None if case.allowed is None else frozenset(case.allowed))
        end = check.measure(after).value
    except SlmError:
        return case
    if end is None or end == start or abs(end) == float("inf"):
        return case
    limit = Limit(check.limit.below, float(f"{(start + end) / 2:.3g}"), False)
    kind = "outputs" if isinstance(check, OutputsCheck) else check.name
    text = f"{kind}{'<=' if limit.below else '>='}{limit.number:g}"
    why = f"{case.why}; alone the pass stays within {check.text}, so half of what it does is the limit"
    return replace(case, check=replace(check, text=text, limit=limit), why=why)


def _simplify(case: Case) -> Case:
    """Without naming rewrites, and without stored weights, where it fails so too."""
    if case.allowed is not None and (free := replace(case, allowed=None)).fails():
        case = free
    sizes = [type.bytes for type in case.module.weight_types().values()]
    if sum(size for size in sizes if isinstance(size, int)) > _LARGE and _may_draw(case.module):
        module = Module(case.module.name, case.module.graphs.values(), metadata=case.module.metadata)
        add_stand_ins(module, drawn=True)
        why = f"{case.why}; it fails with drawn weights, none are stored"
        drawn = replace(case, module=module, drawn=True, why=why)
        if drawn.fails():
            return drawn
    return case


def _may_draw(module: Module) -> bool:
    """Drawn integers are zeros: tables of positions would be others."""
    return all(type.element.is_float or type.element is DType.bool for type in module.weight_types().values())
