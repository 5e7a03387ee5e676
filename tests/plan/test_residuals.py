"""Which side of a sum needs codes so that a layer's kernel can add it."""

import pytest
import torch
from torch import nn

from gossamer.plan.residuals import residual_inputs
from gossamer.plan.spec import TargetSpec
from gossamer.program.capture import capture
from gossamer.program.ops import op_of
from gossamer.program.ops.kinds import Convolution

SPEC = TargetSpec(name="any", fused_ops=frozenset({"Relu", "Add"}), transparent_ops=frozenset({"MaxPool"}))


class Sum(nn.Module):
    def __init__(self, form):
        super().__init__()
        self.form = form
        self.long, self.short, self.behind = (nn.Conv2d(4, 4, 3, padding=1) for _ in range(3))

    def forward(self, x):
        return self.form(self, torch.tanh(x))


def found(form, coded=lambda graph: {graph.nodes[-1].uses[0]}):
    program = capture(Sum(form).eval(), torch.randn(2, 4, 6, 6))
    graph = program.graph
    layers = {node.name for node in graph.nodes if isinstance(op_of(node).kind, Convolution)}
    named = {node.module or node.name: node.name for node in graph.nodes} | {"x": "x"}
    names = {value: key for key, value in named.items()}
    return {names[name] for name in residual_inputs(graph, SPEC, layers, coded(graph))}


@pytest.mark.parametrize(
    ("form", "residuals"),
    [
        (lambda m, x: m.behind(torch.relu(x + m.long(x))), {"tanh"}),  # the identity
        (lambda m, x: m.behind(m.long(x) + x), {"tanh"}),
        (lambda m, x: m.behind(torch.relu(m.short(x) + m.long(torch.relu(x)))), {"short"}),  # both are layers: fewer ops before it
        (lambda m, x: m.behind(torch.relu(m.long(torch.relu(x)) + m.short(x))), {"short"}),
        (lambda m, x: m.behind(nn.functional.max_pool2d(torch.relu(x + m.long(x)), 2)), {"tanh"}),  # the target moves codes past the pool
        (lambda m, x: m.behind(torch.sigmoid(x + m.long(x))), set()),  # a float op reads the sum
        (lambda m, x: m.behind(torch.relu(x + torch.relu(x))), set()),  # no layer
        (lambda m, x: m.behind(x + m.long(x).add(0.0).tanh()), set()),  # not the layer's own result
        (lambda m, x: m.behind(torch.add(x, m.long(x), alpha=2)), set()),
        (lambda m, x: m.behind(torch.relu(x + (y := m.long(x))) * y), set()),  # its result is read twice
    ],
)
def test_the_other_side_of_a_layers_sum_needs_codes(form, residuals):
    assert found(form) == residuals


def test_sums_behind_sums_are_found_one_after_the_other():
    def form(m, x):
        return m.behind(torch.relu(torch.relu(x + m.long(x)) + m.short(torch.tanh(x))))

    assert "relu" in found(form) and "tanh" in found(form)


def test_a_sum_that_nothing_codes_needs_none():
    assert found(lambda m, x: torch.relu(x + m.long(x)), coded=lambda graph: set()) == set()
