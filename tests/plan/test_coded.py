"""Which nodes run on codes, asked of a quantized program."""

import pytest
import torch
from torch import nn

import gossamer as gs
from gossamer.plan.coded import coded_nodes, coded_site, has_codes


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 16), nn.Sigmoid(), nn.Linear(16, 3)).eval()
    samples = torch.randn(32, 8)
    return gs.capture(model, samples[:2]), samples


def layers(program):
    return [node.name for node in program.graph.nodes if node.op == "aten.linear.default"]


def test_a_float_program_has_none(network):
    assert coded_nodes(network[0]) == {}


def test_a_layer_carries_its_codes_in_the_activation_that_it_absorbs(network):
    program, samples = network
    coded = gs.apply(program, gs.plan_quantization(program, samples, "litert"))
    found = coded_nodes(coded)
    first, second, last = layers(coded)
    relu = next(node.name for node in coded.graph.nodes if "relu" in node.op)
    assert found[first] == (relu,) and found[second] == (second,) and found[last] == (last,)
    assert coded_nodes(coded, coded_site(coded)) == found


def test_layers_kept_float_are_not_among_them(network):
    program, samples = network
    coded = gs.apply(program, gs.plan_quantization(program, samples, "litert", rules={"2": "float"}))
    first, second, last = layers(coded)
    found = coded_nodes(coded)
    assert first in found and last in found and second not in found
    weights = [node.args[1].name for node in coded.graph.nodes if node.name in (first, second)]
    assert [has_codes(coded.quantizers, name) for name in weights] == [True, False]


def test_a_node_says_where_it_is(network):
    node = network[0].graph.nodes[0]
    assert node.where == f"{node.module} (value {node.name!r})" or node.where == f"{node.module} at {node.source} (value {node.name!r})"
