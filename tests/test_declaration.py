"""What a pass declares is checked when its class is made, when it is made, and before it runs."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import pytest

from slmopt.declaration import check_declaration, option
from slmopt.errors import InputError
from slmopt.ir.graph import Module
from slmopt.options import build_pass, describe_pass, list_options
from slmopt.pipeline import Context, Lossy, Pass, Pipeline


@dataclass(frozen=True)
class Sample(Pass):
    """x -> x, in words

    More of it.

    rate:  how much,
        in all
    """

    name: ClassVar[str] = "sample"

    bits: int = option(4, choices=(2, 4, 8), help="of a weight")
    rate: float = option(0.5, minimum=0, maximum=1)
    group: int | None = option(None, minimum=32, multiple_of=32)
    sizes: tuple[int, ...] = option((), minimum=1)
    kind: Literal["a", "b"] = "a"
    least: float = option(1.0, maximum=9)

    def run(self, module: Module, context: Context) -> dict[str, int]:
        return {}


# --- options ---------------------------------------------------------------------------------------------------------
def test_help_comes_from_the_field_or_the_docstring_and_limits_are_said() -> None:
    found = {item.name: item for item in list_options(Sample)}
    assert (found["bits"].help, found["bits"].limits, found["bits"].default) == ("of a weight", "2, 4 or 8", "4")
    assert (found["rate"].help, found["rate"].limits) == ("how much, in all", "0 to 1")
    assert found["group"].limits == "at least 32, a multiple of 32"
    assert found["least"].limits == "at most 9"
    assert (found["kind"].help, found["kind"].limits) == ("", "")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"bits": 3}, "option bits must be 2, 4 or 8, got 3"),
        ({"bits": "4"}, "option bits must be integer, got '4'"),
        ({"bits": True}, "option bits must be integer, got True"),
        ({"rate": 1.5}, "option rate must be 0 to 1, got 1.5"),
        ({"rate": float("nan")}, "option rate must be 0 to 1, got nan"),
        ({"group": 48}, "option group must be at least 32, a multiple of 32, got 48"),
        ({"sizes": (1, 0)}, "option sizes must be at least 1, got 0"),
        ({"sizes": [1]}, "option sizes must be [integer,...], got [1]"),
        ({"kind": "c"}, "option kind must be a|b, got 'c'"),
        ({"least": None}, "option least must be number, got None"),
    ],
)
def test_limits_hold_in_python(values: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=re.escape(f"pass sample: {message}")):
        Sample(**values)


def test_what_is_within_the_limits_is_taken() -> None:
    item = Sample(8, 1, 64, (1, 2), "b", -3)
    assert (item.bits, item.rate, item.group) == (8, 1, 64)
    assert build_pass(describe_pass(item), lambda name: Sample) == item


def test_limits_hold_in_recipes() -> None:
    with pytest.raises(InputError, match="pass sample: option bits must be 2, 4 or 8, got 5"):
        build_pass("sample{bits=5}", lambda name: Sample)


def test_an_option_without_default_is_required() -> None:
    @dataclass(frozen=True)
    class Requires(Pass):
        """x -> x"""

        name: ClassVar[str] = "requires"
        amount: int = option(minimum=1)

        def run(self, module: Module, context: Context) -> dict[str, int]:
            return {}

    assert [item.default for item in list_options(Requires)] == ["required"]
    with pytest.raises(InputError, match=re.escape("pass requires needs the option 'amount': requires{amount=...}")):
        build_pass("requires", lambda name: Requires)
    assert build_pass("requires{amount=3}", lambda name: Requires) == Requires(3)


# --- the class -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"requires": "raised"}, "pass odd: requires = 'raised', expected frozenset({'raised'})"),
        ({"ensures": 3}, "pass odd: ensures = 3, expected a set of texts"),
        ({"contract": Lossy}, "expected Lossy()"),
        ({"contract": "lossy"}, "pass odd: contract = 'lossy', expected Exact(), Exact(tolerance) or Lossy()"),
        ({"name": "Odd One"}, "name = 'Odd One', expected lower-case letters, digits, - and _"),
        ({"bits": 4}, "pass odd: bits = 4 is no option without its type: write `bits: int = 4`"),
    ],
)
def test_a_class_that_declares_nonsense_is_an_error_at_once(body: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        type("Odd", (Pass,), {"name": "odd", "__doc__": "x -> x", **body})


def test_facts_may_be_written_as_any_set() -> None:
    made = type("Odd", (Pass,), {"name": "odd", "requires": {"raised"}, "ensures": ("a", "b")})
    assert (made.requires, made.ensures) == (frozenset({"raised"}), frozenset({"a", "b"}))  # type: ignore[attr-defined]


def _run(self: Any, module: Module, context: Context) -> dict[str, int]:
    return {}


def made(*, frozen: bool | None = True, document: str | None = "x -> x", **body: Any) -> Any:
    cls = type("Odd", (Pass,), {"name": "odd", "run": _run, "__doc__": document, **body})
    return cls if frozen is None else dataclass(frozen=frozen)(cls)


@pytest.mark.parametrize(
    ("cls", "message"),
    [
        (made(name=None), 'pass Odd has no name: write `name: ClassVar[str] = "..."`'),
        (made(frozen=None), "pass odd is no dataclass: decorate Odd with @dataclass(frozen=True)"),
        (made(frozen=False), "pass odd is not frozen: decorate Odd with @dataclass(frozen=True)"),
        (made(run=Pass.run), "pass odd has no run(module, context)"),
        (made(document=None), "pass odd has no docstring: its first line is the rewrite"),
        (made(document=" "), "pass odd has no docstring"),
        (made(__annotations__={"name": "str"}), "pass odd: name has become an option: annotate it as ClassVar"),
    ],
)
def test_a_class_that_lacks_something_is_an_error_before_it_is_used(cls: Any, message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        check_declaration(cls, published=True)


def test_a_subclass_that_forgot_the_decorator_would_lose_its_options() -> None:
    class Forgot(Sample):
        """x -> x"""

        name: ClassVar[str] = "forgot"
        more: int = 3

    with pytest.raises(InputError, match="pass forgot is no dataclass: its option more would be lost"):
        Pipeline([Forgot()])


def test_a_pass_given_in_python_needs_no_docstring() -> None:
    check_declaration(made(document=None))
    check_declaration(Sample, published=True)
