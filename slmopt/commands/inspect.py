"""Show what a model, IR text or artifact is made of: graphs, ops, weights, size and work; of an artifact, its ledger.

--graph NAME prints the IR text of a graph. --graph FILE draws: FILE.svg is a picture, FILE.html a page where blocks and
modules unfold at a click, FILE.dot text for Graphviz. Repeated blocks are drawn once.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slmopt.commands.console import add_json, print_json
from slmopt.commands.sources import is_artifact, open_module
from slmopt.errors import InputError

if TYPE_CHECKING:
    from slmopt.ir.graph import Module

__all__ = ["add_arguments", "run"]

_PICTURES = (".svg", ".html", ".dot")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", help="model directory, IR text (- for standard input) or artifact")
    shown = parser.add_mutually_exclusive_group()
    shown.add_argument(
        "--graph", metavar="NAME|FILE", help="print this graph's IR text, or draw into a .svg, .html or .dot"
    )
    shown.add_argument("--weights", action="store_true", help="list every weight with its type")
    parser.add_argument("--name", help="the graph to draw; default: the first, in HTML all of them")
    add_json(parser)


def run(arguments: argparse.Namespace) -> int:
    picture = arguments.graph is not None and Path(arguments.graph).suffix in _PICTURES
    if arguments.name is not None and not picture:
        raise InputError(f"--name says which graph to draw: give a file with --graph, ending in {', '.join(_PICTURES)}")
    module = open_module(arguments.source)
    if picture:
        _draw(module, Path(arguments.graph), arguments.name)
    elif arguments.graph is not None:
        print(module.graph(arguments.graph))
    elif arguments.json:
        print_json({**_describe(module, arguments.weights), **_describe_artifact(arguments.source)})
    else:
        _print(_describe(module, arguments.weights), _describe_artifact(arguments.source))
    return 0


def _draw(module: Module, file: Path, name: str | None) -> None:
    from slmopt.ir.drawing import draw_html, draw_svg
    from slmopt.ir.view import to_dot

    graphs = [module.graph(name)] if name is not None else list(module.graphs.values())
    if not graphs:
        raise InputError(f"module @{module.name} has no graph to draw")
    if file.suffix == ".html":
        text = draw_html(graphs, module.name)
    else:
        text = draw_svg(graphs[0]) if file.suffix == ".svg" else to_dot(graphs[0])
    try:
        file.write_text(text, encoding="utf-8")
    except OSError as error:
        raise InputError(f"cannot write {file}: {error.strerror}") from error


def _describe(module: Module, weights: bool) -> dict[str, Any]:
    from slmopt.ledger import measure_size

    elements = Counter(str(type.element) for type in module.weight_types().values())
    found: dict[str, Any] = {
        "name": module.name, "metadata": module.metadata, "size": asdict(measure_size(module)),
        "weights": dict(elements.most_common()),
        "graphs": {
            name: {
                "inputs": [repr(value) for value in graph.inputs], "outputs": [str(v.type) for v in graph.outputs],
                "states": graph.states, "ops": dict(Counter(op.name for op in graph.walk()).most_common()),
            }
            for name, graph in module.graphs.items()
        },
    }  # fmt: skip
    if weights:
        found["weight_types"] = {key: str(type) for key, type in module.weight_types().items()}
    return found


def _describe_artifact(source: str) -> dict[str, Any]:
    if source == "-" or not is_artifact(source):
        return {}
    from slmopt.artifact import read_manifest

    ledger = Path(source) / "ledger.json"
    return {
        "manifest": read_manifest(source),
        "ledger": json.loads(ledger.read_text()) if ledger.is_file() else None,
    }


def _print(module: dict[str, Any], artifact: dict[str, Any]) -> None:
    from slmopt.ledger import format_count

    size = module["size"]
    stored, work = format_count(size["weight_bytes"], "B"), format_count(size["flops_per_token"])
    print(f"{module['name']}: {format_count(size['parameters'])} parameters, {stored}, {work} FLOP per token")
    if manifest := artifact.get("manifest"):
        print(f"artifact: {manifest.get('target')}, recipe {manifest.get('recipe')}, context {manifest.get('context')}")
    if module["weights"]:
        print("weights: " + ", ".join(f"{count} {element}" for element, count in module["weights"].items()))
    for name, graph in module["graphs"].items():
        plain = graph["inputs"][: len(graph["inputs"]) - graph["states"]]
        states = f" and {graph['states']} states" if graph["states"] else ""
        print(f"graph @{name}({', '.join(plain)}){states}: {sum(graph['ops'].values())} ops")
        for op, count in graph["ops"].items():
            print(f"  {count:5d} {op}")
    for key, type in module.get("weight_types", {}).items():
        print(f"  @{key} : {type}")
    for row in (artifact.get("ledger") or {}).get("rows", []):
        changed = ", ".join(f"{count} {kind}" for kind, count in row["changed"].items())
        print(f"pass {row['name']}: {changed or 'nothing changed'}")
