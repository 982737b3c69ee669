"""A forward pass is a straight line of leaves: it can be traced, and only leaves and `+` compute."""

import operator

import pytest
from every_model import MODELS

from model.program.lowering import LeafTracer

# Sums, and the fields of the batch: the cache's layers.
ALLOWED = {operator.add, operator.getitem, getattr}


@pytest.mark.parametrize("name", MODELS)
def test_only_leaves_compute(name: str) -> None:
    graph = LeafTracer().trace(MODELS[name]())
    strangers = [
        node.format_node()
        for node in graph.nodes
        if node.op == "call_method" or (node.op == "call_function" and node.target not in ALLOWED)
    ]
    assert strangers == []
