"""Instruction sets as data: vector width, dot-product instruction, processor features; one TOML file each."""

from __future__ import annotations

import re
import tomllib
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args, get_type_hints

from slmopt.backends.tvm.tuning_table import MOST, TunedLinear, check_fields, read_entries
from slmopt.cross import host_machine
from slmopt.errors import InputError, PluginWarning, nearest
from slmopt.offers import Offer

__all__ = ["DOTS", "DotKind", "Isa", "Isas", "missing_flags", "read_isa"]


@dataclass(frozen=True)
class DotKind:
    """A way of summing 8-bit products that `dot_products` knows: what its weights and its vectors must be."""

    instructions: str  # what it is made of, in words
    machine: str
    unsigned: bool = False  # whether 8-bit weights are stored as 0..255, not as -128..127
    lanes: int | None = None  # the only width it is made for, if there is one


DOTS = {
    "vpdpbusd": DotKind("VNNI instructions", "x86_64", unsigned=True),
    "maddubs": DotKind("AVX2 instructions", "x86_64", lanes=8),
    "maddwd": DotKind("SSE2 instructions", "x86_64"),
    "sdot": DotKind("NEON instructions", "aarch64", lanes=4),
    "smull": DotKind("NEON instructions", "aarch64", lanes=4),
}
_DEFAULTS = {"bf16_dot": "", "triple": "x86_64-unknown-linux-gnu", "usual": False}  # fields that a file may leave out
_CPU_INFO = Path("/proc/cpuinfo")
_FEATURE = re.compile(r"[a-z0-9][a-z0-9_.-]*")
_WORDS = {str: "text", int: "a whole number", bool: "true or false", tuple: "a list of texts"}


@dataclass(frozen=True)
class Isa:
    """What the kernel generators must know of a processor."""

    name: str
    summary: str
    rank: int  # the host's best ISA is the one of highest rank it has
    cpu: str  # LLVM's -mcpu
    attributes: tuple[str, ...]  # LLVM's -mattr, such as "+avx2"
    cpu_features: tuple[str, ...]  # checked when an artifact is opened: names that runtime/c/cpu.c knows
    flags: tuple[str, ...]  # the same as /proc/cpuinfo spells them
    lanes: int  # float32 numbers in a vector register
    dot: str  # how 8-bit products are summed: one of DOTS
    dot_intrinsic: str  # LLVM intrinsic of the dot product
    half: bool  # whether it converts float16 in hardware
    fused: bool  # whether it multiplies and adds in one instruction
    registers: int  # vector registers
    streams: int  # blocks of quantized weights that are read at once for one token
    token_tile: int  # tokens that share a block of quantized weights once it is unpacked
    block_tile: int  # blocks of quantized weights that share an input once it is read
    prefetch: int  # bytes of weights fetched ahead
    bf16_dot: str = ""  # LLVM intrinsic that adds products of pairs of bfloat16 numbers to float32 sums, if it has one
    linear: tuple[TunedLinear, ...] = ()  # what was measured for single shapes
    triple: str = "x86_64-unknown-linux-gnu"  # LLVM's target triple; its first part is the machine
    usual: bool = False  # whether a machine of another kind compiles for it where nothing else is said

    @property
    def machine(self) -> str:
        """The kind of processor, as LLVM and Linux call it: x86_64, aarch64."""
        return self.triple.partition("-")[0]

    @property
    def unsigned(self) -> bool:
        """Whether 8-bit weights are stored as 0..255, not as -128..127."""
        return DOTS[self.dot].unsigned


def read_isa(path: Path, name: str | None = None) -> Isa:
    """The instruction set that a TOML file describes, called `name` or as the file is.

    InputError names the file, the field and what it should be.
    """
    try:
        data: dict[str, Any] = {**_DEFAULTS, **tomllib.loads(path.read_text())}
    except OSError as error:
        raise InputError(f"instruction set {path} cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"instruction set {path} is not TOML: {error}") from error
    types = {field: kind for field, kind in get_type_hints(Isa).items() if field not in ("name", "linear")}
    check_fields(f"instruction set {path}", data, list(types), "linear where shapes were measured")
    entries = data.pop("linear", [])
    for field, kind in types.items():
        _check_type(path, field, kind, data[field])
    values: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in data.items()}
    try:
        isa = Isa(name=path.stem if name is None else name, linear=read_entries(entries), **values)
    except InputError as error:
        raise InputError(f"instruction set {path}: {error}") from error
    if wrong := _find_nonsense(isa):
        raise InputError(f"instruction set {path}: {wrong}")
    return isa


def _check_type(path: Path, field: str, kind: Any, value: Any) -> None:
    plain = tuple if get_args(kind) else kind
    fits = isinstance(value, list) and all(isinstance(x, str) for x in value) if plain is tuple else type(value) is kind
    if not fits:
        raise InputError(f"instruction set {path}: {field} must be {_WORDS[plain]}, got {value!r}")


def _find_nonsense(isa: Isa) -> str:
    """What no kernel can be made for, or nothing."""
    limits = {"registers": 256, "streams": MOST["streams"], "token_tile": MOST["tokens"], "block_tile": MOST["blocks"]}
    for field, most in limits.items():
        if not 1 <= getattr(isa, field) <= most:
            return f"{field} must lie in 1 to {most}, got {getattr(isa, field)}"
    if isa.lanes not in (4, 8, 16):
        return f"lanes must be 4, 8 or 16, got {isa.lanes}"
    if isa.prefetch < 0:
        return f"prefetch must not be negative, got {isa.prefetch}"
    if isa.dot not in DOTS:
        return f"dot {isa.dot!r} is unknown{nearest(isa.dot, DOTS)}; expected {', '.join(DOTS)}"
    kind = DOTS[isa.dot]
    if kind.machine != isa.machine:
        return f"dot {isa.dot} is made of {kind.instructions} of {kind.machine}, and the triple is {isa.triple!r}"
    if kind.lanes not in (None, isa.lanes):
        return f"dot {isa.dot} is made of {kind.instructions} and needs lanes = {kind.lanes}, got {isa.lanes}"
    if not isa.dot_intrinsic.startswith("llvm."):
        return f"dot_intrinsic must be an LLVM intrinsic such as llvm.x86.sse2.pmadd.wd, got {isa.dot_intrinsic!r}"
    if isa.bf16_dot and not isa.bf16_dot.startswith("llvm."):
        return f'bf16_dot must be an LLVM intrinsic, or "" for none, got {isa.bf16_dot!r}'
    if wrong := [feature for feature in isa.cpu_features if not _FEATURE.fullmatch(feature)]:
        return f"cpu_features {wrong[0]!r} is no name of a feature that __builtin_cpu_supports knows"
    if wrong := [attribute for attribute in isa.attributes if attribute[:1] not in ("+", "-")]:
        return f"attributes {wrong[0]!r} must begin with + or -, as LLVM's -mattr"
    return ""


class Isas:
    """The instruction sets on offer for a kind of processor, by name; a file is read when it is first asked for.

    One that is offered but wrong is an error where it is named, and a PluginWarning where the best one is looked for.
    """

    def __init__(self, offers: Mapping[str, Offer], machine: str | None = None) -> None:
        """`machine`: x86_64, aarch64, ...; without it, this machine's."""
        self._offers = offers
        self.machine = host_machine() if machine is None else machine
        self._loaded: dict[str, Isa] = {}
        self._broken: set[str] = set()

    def load(self, name: str) -> Isa:
        """The description of an instruction set, by name or by its file (a path that ends in .toml).

        InputError suggests the nearest name, and names the owner of a file that is wrong.
        """
        if name.endswith(".toml"):
            return self._check_machine(read_isa(Path(name)))
        if name not in self._offers:
            names = sorted(self.names())
            known = ", ".join(names) or "none"
            raise InputError(f"unknown instruction set {name!r}{nearest(name, names)}; known are {known}; "
                             "a file of your own is named by its path, isa=PATH.toml")  # fmt: skip
        return self._check_machine(self._read(name))

    def _read(self, name: str) -> Isa:
        if name not in self._loaded:
            offer = self._offers[name]
            path = offer.file()
            try:
                self._loaded[name] = read_isa(path, name)
            except InputError as error:
                raise InputError(f"{error}; {offer.source} offers it as {name!r}") from error
        return self._loaded[name]

    def _check_machine(self, isa: Isa) -> Isa:
        if isa.machine != self.machine:
            raise InputError(f"instruction set {isa.name} is one of {isa.machine} processors, and this target compiles "
                             f"for {self.machine}, which has {', '.join(sorted(self.names())) or 'none'}")  # fmt: skip
        return isa

    def names(self) -> list[str]:
        """The names of all instruction sets that can be used, best first."""
        return [isa.name for isa in self._usable()]

    def detect(self) -> Isa:
        """The best instruction set this processor has, or the usual one where it is of another kind.

        InputError where there is none.
        """
        foreign, host = self.machine != host_machine(), _host_flags()
        for isa in self._usable():
            if isa.usual if foreign else set(isa.flags) <= host:
                return isa
        known = ", ".join(self.names()) or "none"
        why = f"this machine is no {self.machine}, and none is usual there" if foreign else (
            f"this processor has none of the instruction sets on offer ({known})"
        )  # fmt: skip
        raise InputError(f"{why}; name the one to compile for: isa=NAME")

    def _usable(self) -> list[Isa]:
        found = []
        for name in self._offers:
            try:
                isa = self._read(name)
            except InputError as error:
                if name not in self._broken:
                    self._broken.add(name)
                    warnings.warn(str(error), PluginWarning, stacklevel=3)
                continue
            if isa.machine == self.machine:
                found.append(isa)
        return sorted(found, key=lambda isa: (-isa.rank, isa.name))


def missing_flags(isa: Isa) -> list[str]:
    """What this processor lacks of an instruction set, as /proc/cpuinfo spells it."""
    if isa.machine != host_machine():
        return [isa.machine]
    return sorted(set(isa.flags) - _host_flags())


def _host_flags() -> set[str]:
    """What /proc/cpuinfo says this processor has: x86 calls them flags, ARM features."""
    try:
        text = _CPU_INFO.read_text()
    except OSError:
        return set()
    return set(next((line for line in text.splitlines() if line.startswith(("flags", "Features"))), "").split())
