"""Structural differences, and the networkx view."""

from __future__ import annotations

import networkx
from hypothesis import given, settings

from slmopt.ir.diff import diff
from slmopt.ir.graph import Module
from slmopt.ir.text import parse_module
from slmopt.ir.view import to_dot
from slmopt.testing import modules

TEXT = """module @toy {
  metadata {"vocab": 16}
  graph @forward(%ids: i64[b, s]) {
    %e = embedding(%ids, weight @w : f32[16, 8]) : f32[b, s, 8] loc("model.embed")
    %g = silu(%e) : f32[b, s, 8]
    %h = sub(%g, %e) : f32[b, s, 8]
    %y = linear(%h, weight @w : f32[16, 8]) {activation = none, act = none} : f32[b, s, 16]
    return %y
  }
}
"""


def _changed(old: str, new: str) -> Module:
    assert old in TEXT
    return parse_module(TEXT.replace(old, new))


@settings(max_examples=50, deadline=None)
@given(modules())
def test_a_copy_does_not_differ(module: Module) -> None:
    assert diff(module, module.copy()).same


def test_names_of_values_do_not_count() -> None:
    found = diff(parse_module(TEXT), _changed("%g", "%gate"))
    assert found.same
    assert str(found) == "no difference\n"


def test_a_changed_op_shows_alone() -> None:
    (graph,) = diff(parse_module(TEXT), _changed("silu", "relu")).graphs
    assert graph.status == "changed"
    assert graph.lines == ("- %g = silu(%e) : f32[b, s, 8]", "+ %g = relu(%e) : f32[b, s, 8]")
    assert graph.ops == {"silu": (1, 0), "relu": (0, 1)}


def test_other_wiring_of_the_same_ops_shows() -> None:
    (graph,) = diff(parse_module(TEXT), _changed("sub(%g, %e)", "sub(%e, %g)")).graphs
    assert graph.lines == ("- %h = sub(%g, %e) : f32[b, s, 8]", "+ %h = sub(%e, %g) : f32[b, s, 8]")


def test_an_attribute_counts() -> None:
    assert not diff(parse_module(TEXT), _changed("act = none}", 'act = "q8"}')).same


def test_weights_metadata_and_graphs_show() -> None:
    other = parse_module(TEXT.replace("weight @w : f32[16, 8])", "weight @w : q8c[16, 8])").replace("16}", "17}"))
    other.graphs["step"] = other.graph().copy(name="step")
    found = diff(parse_module(TEXT), other)
    assert found.weights == ("~ weight @w : f32[16, 8] -> q8c[16, 8]",)
    assert found.metadata == ("~ metadata vocab: 16 -> 17",)
    assert [(graph.name, graph.status) for graph in found.graphs] == [("forward", "changed"), ("step", "added")]
    assert "graph @step: added" in str(found)


def test_a_removed_weight_shows() -> None:
    found = diff(parse_module(TEXT), parse_module(TEXT.replace("@w", "@v")))
    assert found.weights == ("- weight @w : f32[16, 8]", "+ weight @v : f32[16, 8]")


def test_the_view_has_ops_as_nodes_and_uses_as_edges() -> None:
    graph = parse_module(TEXT).graph()
    view = graph.view()
    assert list(networkx.topological_sort(view)) == ["ids", "e", "g", "h", "y"]
    assert view.nodes["e"]["weights"] == ("w",)
    assert view.nodes["e"]["location"] == "model.embed"
    assert view.nodes["ids"]["kind"] == "input"
    assert [name for name, data in view.nodes(data=True) if data["output"]] == ["y"]
    edges = {(source, to, data["index"]) for source, to, data in view.edges(data=True)}
    assert edges == {("ids", "e", 0), ("e", "g", 0), ("g", "h", 0), ("e", "h", 1), ("h", "y", 0)}


@settings(max_examples=50, deadline=None)
@given(modules())
def test_every_view_is_acyclic_and_draws(module: Module) -> None:
    for graph in module.graphs.values():
        view = graph.view()
        assert networkx.is_directed_acyclic_graph(view)
        assert view.number_of_nodes() == len(graph.inputs) + sum(1 for _ in graph.walk())
        assert to_dot(graph).count("->") == view.number_of_edges()
