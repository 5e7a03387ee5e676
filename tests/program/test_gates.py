import torch
from torch import nn

from gossamer.program.capture import capture
from gossamer.program.gates import gated_activations, split_gates


def network():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.SiLU(), nn.Conv2d(4, 4, 3), nn.Hardswish(), nn.Conv2d(4, 2, 3)).eval()


def test_split_gates_compute_the_same():
    program = capture(network(), torch.randn(2, 3, 9, 9))
    split = split_gates(program)
    assert gated_activations(program) == ("silu", "hardswish")
    assert gated_activations(split) == ()
    assert [node.name for node in split.graph.nodes if node.name.startswith("silu")] == ["silu_gate", "silu"]
    (x,) = program.example_inputs()
    torch.testing.assert_close(split(x), program(x))


def test_only_named_ones_are_split():
    program = capture(network(), torch.randn(2, 3, 9, 9))
    assert gated_activations(split_gates(program, ("silu",))) == ("hardswish",)
    assert gated_activations(program) == ("silu", "hardswish")
