"""Rewrites: rules of a few lines each, applied until none matches.

    @rule(op("mul", any_("x"), op("sigmoid", any_("x"))))
    def silu(at, m):
        \"\"\"x * sigmoid(x) -> silu(x)\"\"\"
        return at.add("silu", m["x"])

    rewrite(module, [silu])
"""

from slmopt.ir.derivation import derive_weight
from slmopt.rewrite.checks import check_rules
from slmopt.rewrite.driver import erase_unused, rewrite
from slmopt.rewrite.matches import Match, find_matches, match
from slmopt.rewrite.patterns import (
    COMMUTATIVE,
    Pattern,
    any_,
    constant,
    constant_value,
    either,
    on_last_axis,
    op,
    weight,
)
from slmopt.rewrite.rewrite_pass import RewritePass
from slmopt.rewrite.rewriter import Rewriter
from slmopt.rewrite.rules import Build, Rule, replace, rule

__all__ = [
    "COMMUTATIVE", "Build", "Match", "Pattern", "RewritePass", "Rewriter", "Rule", "any_", "check_rules",
    "constant", "constant_value", "derive_weight", "either", "erase_unused", "find_matches", "match",
    "on_last_axis", "op", "replace", "rewrite", "rule", "weight",
]  # fmt: skip
