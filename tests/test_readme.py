"""The README's pass runs as it is printed."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from slmopt.api import optimize
from tests.passes.toys import toy

BODY = """
    %n = rms_norm(%x, weight @g : f32[64]) {eps = 1e-05} : f32[b, s, 64]
    %one = constant() {value = 1.0, element = "f32"} : f32[]
    %m = mul(%n, %one) : f32[b, s, 64]
    %y = linear(%m, weight @w : f32[8, 64], weight @b : f32[8]) : f32[b, s, 8]
    return %y
"""


def test_the_pass_of_the_readme() -> None:
    text = (Path(__file__).parent.parent / "README.md").read_text()
    (source,) = (block for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if "class " in block)
    names: dict[str, Any] = {"__name__": __name__}
    exec(source, names)
    found = optimize(toy(BODY), [names["FoldNorms"]()])
    assert found.ledger.rows[-1].changed == {"fold_norm": 1, "drop_one": 1}
    assert [(op.name, len(op.operands)) for op in found.graph().walk()] == [("rms_norm", 1), ("linear", 3)]
