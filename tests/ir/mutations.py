"""Wrong IR text made from right text: bytes and tokens dropped, doubled, swapped, moved; odd numbers, nests, names."""

from __future__ import annotations

import random
import re

__all__ = ["mutate"]

_TOKENS = re.compile(r'\s+|"(?:[^"\\]|\\.)*"|[%@]?[\w.]+|.', re.DOTALL)
_ODD = (
    *"{}[]()%@\"\\,:=+-*._0\n\0é²١İ", "9" * 30, "9" * 5000, "1e999", "-1", "1.5", "nan", "inf", "-inf", "-0.0", "none",
    "true", "weight", "state", "return", "graph", "metadata", "module", 'loc("', "//", "\u2028", "\ud800", "𝟙",
    '"\\ud800"', '"\\u', '"', "[" * 50, "[" * 3000, "{" * 3000, "-" * 3000, "b*" * 1000, "b" * 5000, "q4g32", "q9c",
    "q4g0", "q" + "9" * 5000 + "c", "f32", "i64", "%x", "%1", "%a, %b", "@w", "s*s", "s - s", "(b+s)", "b + s*t - 9",
    "a + b, c + d, e + f, g + h, i + j, k + l, m + n, o + p, q + r, u + v", "%y = silu(%x) : f32[b]",
    "metadata {" + '"a": [' * 3000, 'metadata {"a": 1e999}', 'metadata {"a": NaN}', "graph @f() { return }",
)  # fmt: skip
_VALUES = (
    "none", "true", "0", "-1", "2", "99", str(2**63), str(-(2**63)), "1.5", "1e308", "inf", "nan", "s", "-s", "b*s",
    "s - s", "--1", '"x"', '""', '"f32"', '"q4g32"', '"q8g32"', '"q8"', "[]", "[0]", "[1, 0]", "[b, s]", "[b, s, -8]",
    "[0, b]", "[none]", '["a"]', "[[0]]", "[true]", "[1.5]", "[-1, -2, -3]", "[a + b, s + b, b - s]",
)  # fmt: skip
_ELEMENTS = ("f32", "f16", "i64", "i32", "u8", "bool", "q4g32", "q8c", "q2g1a", "q8g32")
_SIZES = ("0", "1", "2", "8", "64", "b", "s", "t", "-1", "-s", "b*s", "s - 1", "s*s", str(2**63 - 1), "3*b*s - 7")


def mutate(text: str, generator: random.Random, names: tuple[str, ...]) -> str:
    """One to four edits of a text; `names`: ops to put in the place of others."""
    for _ in range(generator.randint(1, 4)):
        edit = generator.choice((_edit_bytes, _edit_tokens, _edit_tokens, _edit_meaning))
        text = edit(text, generator, names)
    return text


def _edit_bytes(text: str, generator: random.Random, names: tuple[str, ...]) -> str:
    place = generator.randrange(len(text) + 1)
    end = min(len(text), place + generator.randint(1, 12))
    other = generator.randrange(len(text) + 1)
    character = chr(generator.choice((generator.randrange(128), generator.randrange(0x110000))))
    return generator.choice((
        text[:place] + text[end:], text[:end] + text[place:], text[:place] + character + text[place + 1 :],
        text[:place] + text[other : other + 10] + text[end:], text[:place],
    ))  # fmt: skip


def _edit_tokens(text: str, generator: random.Random, names: tuple[str, ...]) -> str:
    tokens = _TOKENS.findall(text) or [""]
    one, other = generator.randrange(len(tokens)), generator.randrange(len(tokens))
    kind = generator.randrange(6)
    if kind == 0:
        del tokens[one]
    elif kind == 1:
        tokens.insert(one, tokens[other])
    elif kind == 2:
        tokens[one], tokens[other] = tokens[other], tokens[one]
    elif kind == 3:
        tokens.insert(one, tokens.pop(other))
    elif kind == 4:
        tokens[one] = generator.choice(_ODD)
    else:
        tokens.insert(one, generator.choice(_ODD))
    return "".join(tokens)


def _edit_meaning(text: str, generator: random.Random, names: tuple[str, ...]) -> str:
    """The text still parses, as a rule: another value of an attribute, element type, shape or op."""
    shape = f"[{', '.join(generator.choice(_SIZES) for _ in range(generator.randrange(5)))}]"
    pattern, new = generator.choice((
        (r'(?<= = )(?:\[[^\]]*\]|"[^"]*"|[^,}{()]+)(?=[,}])', generator.choice(_VALUES)),
        (r"\b(?:f32|f16|i64|bool|q\w+)(?=\[)", generator.choice(_ELEMENTS)),
        (r"(?<=f32|i64|f16)\[[^\]]*\]", shape),
        (r"(?<== )\w+(?=\()", generator.choice(names)),
        (r"%\w+(?=[,)])", generator.choice(("_", f"weight @w : {generator.choice(_ELEMENTS)}{shape}"))),
        (r", %\w+(?=[,)])", ""),
    ))  # fmt: skip
    found = list(re.finditer(pattern, text))
    if not found:
        return text
    match = generator.choice(found)
    return text[: match.start()] + new + text[match.end() :]
