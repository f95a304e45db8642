"""The README's pass runs as it is printed."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from slmopt.ir import Graph, Module, tensor
from slmopt.pipeline import Context


def test_the_pass_of_the_readme() -> None:
    text = (Path(__file__).parent.parent / "README.md").read_text()
    (source,) = (block for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if "class " in block)
    names: dict[str, Any] = {"__name__": __name__}
    exec(source, names)
    graph = Graph("forward")
    x = graph.add_input("x", tensor("f32", "b", 4))
    one, two = (graph.add("constant", [], {"value": v, "element": "f32"}).result for v in (1.0, 2.0))
    scaled = graph.add("mul", [graph.add("mul", [x, one]).result, two]).result
    graph.set_outputs([scaled])
    assert names["DropScaleByOne"]().run(Module("m", [graph]), Context()) == {"mul": 1}
    assert scaled.op is not None and scaled.op.operands[0] is x
