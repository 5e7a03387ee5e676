import pytest
import torch
from torch import nn

from gossamer.errors import PlanError
from gossamer.program.capture import capture
from gossamer.program.scale_inputs import scale_inputs


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(4, 6), nn.Linear(6, 3), nn.Linear(6, 3, bias=False)

    def forward(self, x):
        x = nn.functional.gelu(self.a(x))
        return self.b(x) + self.c(x)


@pytest.fixture(scope="module")
def program():
    torch.manual_seed(0)
    return capture(Net().eval(), torch.randn(2, 4))


def linears(program):
    return [node.name for node in program.graph.nodes if node.op == "aten.linear.default"]


def test_outputs_stay_and_equal_factors_share_a_node(program):
    _, second, third = linears(program)
    factor = torch.tensor([0.1, 0.5, 1.0, 2.0, 8.0, 30.0])
    x = torch.randn(5, 4)
    same = scale_inputs(program, {second: factor, third: factor})
    apart = scale_inputs(program, {second: factor, third: factor * 2})
    assert len(same.graph.nodes) == len(program.graph.nodes) + 1
    assert len(apart.graph.nodes) == len(program.graph.nodes) + 2
    with torch.no_grad():
        assert torch.allclose(same(x), program(x), atol=1e-5)
        assert torch.allclose(apart(x), program(x), atol=1e-5)
    assert torch.equal(same.state["b.weight"], program.state["b.weight"] / factor)


def test_errors(program):
    first, second, _ = linears(program)
    with pytest.raises(PlanError, match="'gelu', which is no linear layer"):
        scale_inputs(program, {"gelu": torch.ones(6)})
    with pytest.raises(PlanError, match="scales 6 inputs .* which has 4"):
        scale_inputs(program, {first: torch.ones(6)})
    with pytest.raises(PlanError, match="not positive and finite"):
        scale_inputs(program, {second: torch.zeros(6)})
