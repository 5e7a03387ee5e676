import copy

import pytest
import torch
from torch import nn

from gossamer.errors import ConfigError, DataError
from gossamer.numerics.affine import Quantizer, fake_quantize
from gossamer.numerics.formats import IntFormat, PerTensor
from gossamer.program.capture import capture
from gossamer.program.graph import Graph, Node, Ref
from gossamer.program.network import InputSpec
from gossamer.program.program import Program

FLOAT = torch.float32


@pytest.fixture
def program():
    torch.manual_seed(0)
    return capture(nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU(), nn.Flatten(), nn.Linear(8, 3)), torch.zeros(2, 1, 4, 4))


COPIES = {"copy": lambda program: program.copy(), "deepcopy": copy.deepcopy}


@pytest.mark.parametrize("make", COPIES)
@pytest.mark.parametrize("training", [True, False])
def test_copies_are_equal_and_independent(program, make, training):
    program.train(training)
    program.get_parameter("0.weight").requires_grad_(False)
    fresh = COPIES[make](program)
    assert (fresh.training, fresh.digest, fresh.weights_digest()) == (training, program.digest, program.weights_digest())
    for name, parameter in program.named_parameters():
        assert fresh.get_parameter(name).requires_grad == parameter.requires_grad
    kept = {name: tensor.clone() for name, tensor in program.state.items()}
    fresh.eval()
    with torch.no_grad():
        for tensor in fresh.state.values():
            tensor.add_(1)
    assert program.training == training
    assert all(torch.equal(tensor, kept[name]) for name, tensor in program.state.items())


def test_copies_of_tied_tensors_stay_tied():
    graph = Graph(
        ("x",),
        (
            Node("a", "aten.linear.default", (Ref("x"), Ref("one"), Ref("left"))),
            Node("b", "aten.linear.default", (Ref("a"), Ref("two"), Ref("right"))),
        ),
        ("b",),
    )
    weight, bias = nn.Parameter(torch.randn(3, 3)), torch.randn(3)
    program = Program(graph, [InputSpec("x", (None, 3), FLOAT)], {"one": weight, "two": weight, "left": bias, "right": bias})
    for fresh in (program.copy(), program.with_graph(graph), program.copy().copy()):
        state = fresh.state
        assert state["one"] is state["two"] and state["left"] is state["right"]
        assert len(list(fresh.parameters())) == 1
        inputs = torch.randn(2, 3)
        assert torch.equal(fresh(inputs), program(inputs))


def test_hooks_are_not_copied(program):
    calls = []
    program.register_forward_hook(lambda *_: calls.append(1))
    copy.deepcopy(program)(torch.zeros(1, 1, 4, 4))
    assert not calls


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ((torch.zeros(2, 1, 4, 5),), r"input input \(batch, 1, 4, 4\) float32 got a tensor of shape \(2, 1, 4, 5\); reshape the data"),
        ((torch.zeros(1, 4, 4),), r"got a tensor of shape \(1, 4, 4\)"),
        ((torch.zeros(2, 1, 4, 4, dtype=torch.float64),), r"got a tensor of torch.float64; convert it with .to\(torch.float32\)"),
        (([[0.0]],), "input 'input' must be a tensor; got list"),
        ((), r"takes the inputs input \(batch, 1, 4, 4\) float32; got 0 by position and \[\] by name"),
        ((torch.zeros(2, 1, 4, 4), torch.zeros(1)), "got 2 by position"),
    ],
)
def test_inputs_are_checked(program, inputs, message):
    with pytest.raises(DataError, match=message):
        program(*inputs)
    with pytest.raises(DataError, match=r"got 1 by position and \['mask'\] by name"):
        program(torch.zeros(2, 1, 4, 4), mask=torch.zeros(1))


def test_observers_see_and_replace(program):
    inputs = torch.randn(2, 1, 4, 4)
    seen = {}
    result = program.run(inputs, observe=lambda name, value: seen.__setitem__(name, value))
    assert list(seen) == ["input", *(node.name for node in program.graph.nodes)]
    assert torch.equal(seen[program.graph.outputs[0]], result) and torch.equal(seen["input"], inputs)
    other = torch.randn(2, 1, 4, 4)
    assert torch.equal(program.run(inputs, observe={"input": lambda *_: other}), program(other))
    relu = next(node.name for node in program.graph.nodes if node.op == "aten.relu.default")
    zeroed = program.run(inputs, observe={relu: lambda _, value: torch.zeros_like(value)})
    assert torch.equal(zeroed, program.get_parameter("4.bias").expand(2, 3))


def test_digest_sees_structure_and_weights_digest_sees_values(program):
    digest, weights = program.digest, program.weights_digest()
    with torch.no_grad():
        program.get_buffer("1.running_mean")[0] += 1e-6
    assert program.digest == digest
    assert program.weights_digest() != weights
    wider = program.with_graph(program.graph, {"4.weight": torch.zeros(4, 8), "4.bias": torch.zeros(4)})
    assert wider.digest != digest
    assert isinstance(wider.state["4.weight"], nn.Parameter)
    assert program.to(torch.float64).digest != digest


def test_missing_state_is_named(program):
    state = program.state
    del state["4.bias"]
    with pytest.raises(ConfigError, match="state must be present, since the graph reads it; got '4.bias'"):
        Program(program.graph, program.inputs, state)


def test_graphs_out_of_order_are_refused(program):
    backwards = Graph(program.graph.inputs, tuple(reversed(program.graph.nodes)), program.graph.outputs)
    with pytest.raises(ConfigError, match="before it is made"):
        Program(backwards, program.inputs, program.state)


def test_example_inputs_follow_the_seed():
    specs = [InputSpec("x", (None, 3), FLOAT), InputSpec("ids", (None, 2), torch.int64), InputSpec("fixed", (4,), torch.bfloat16)]
    program = Program(Graph(("x", "ids", "fixed"), (), ("x", "ids", "fixed")), specs, {})
    first, again, other = program.example_inputs(5, seed=1), program.example_inputs(5, seed=1), program.example_inputs(5, seed=2)
    assert [tuple(tensor.shape) for tensor in first] == [(5, 3), (5, 2), (4,)]
    assert [tensor.dtype for tensor in first] == [FLOAT, torch.int64, torch.bfloat16]
    assert all(torch.equal(one, two) for one, two in zip(first, again, strict=True))
    assert not torch.equal(first[0], other[0])
    assert len(program(*first)) == 3


def test_quantized_values_and_weights_are_rounded(program):
    inputs = torch.randn(2, 1, 4, 4)
    coarse = Quantizer(IntFormat(bits=4), PerTensor(), (0.25,), (0,))
    out = program.graph.outputs[0]
    quantized = program.with_graph(program.graph, quantizers={"input": coarse, "4.weight": coarse, out: coarse}, target="test")
    expected = program.copy()
    with torch.no_grad():
        expected.get_parameter("4.weight").copy_(fake_quantize(expected.get_parameter("4.weight"), coarse))
    assert torch.equal(quantized(inputs), fake_quantize(expected(fake_quantize(inputs, coarse)), coarse))
    seen = {}
    quantized.run(inputs, observe=lambda name, value: seen.__setitem__(name, value))
    assert torch.equal(seen["input"], fake_quantize(inputs, coarse))
    assert quantized.copy().quantizers == quantized.quantizers
    assert "3 quantizers for test" in repr(quantized)
    assert "quantizers" not in repr(program)


def test_it_is_an_ordinary_module(program):
    assert isinstance(program, nn.Module)
    assert set(program.state_dict()) == set(program.state)
    assert {name for name, _ in program.named_parameters()} == {"0.weight", "0.bias", "1.weight", "1.bias", "4.weight", "4.bias"}
    other = program.copy()
    with torch.no_grad():
        other.get_parameter("4.bias").add_(1)
    program.load_state_dict(other.state_dict())
    assert program.weights_digest() == other.weights_digest()
    assert program.device == torch.device("cpu")


def test_an_argument_may_be_called_observe():
    class Net(nn.Module):
        def forward(self, observe):
            return observe * 2

    program = capture(Net(), torch.ones(2, 3))
    assert torch.equal(program(observe=torch.ones(1, 3)), torch.full((1, 3), 2.0))
