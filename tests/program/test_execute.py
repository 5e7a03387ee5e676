"""Execution: the eager module, in training and evaluation, is the oracle, to the last bit."""

import copy

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from torch import nn

from gossamer.errors import UnsupportedOp
from gossamer.program.capture import capture
from gossamer.program.execute import DEVICE, TRAINING, run_steps, schedule
from gossamer.program.graph import Graph, Node, Ref
from networks import networks


class Block(nn.Module):
    """A basic block of a residual network."""

    def __init__(self, inputs, outputs, stride):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs)
        self.conv2, self.bn2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False), nn.BatchNorm2d(outputs, momentum=0.3)
        self.relu = nn.ReLU(inplace=True)
        self.down = (
            nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)) if stride > 1 else nn.Identity()
        )

    def forward(self, x):
        y = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        y += self.down(x)
        return self.relu(y)


def resnet():
    torch.manual_seed(0)
    stem = [nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, 1)]
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.3), nn.Linear(32, 5)]
    return nn.Sequential(*stem, Block(8, 8, 1), Block(8, 16, 2), nn.Dropout2d(0.2), Block(16, 32, 2), *head)


def train(module, steps):
    """Losses, last gradients, and the state after some steps of SGD with fixed random numbers."""
    module.train()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9)
    losses = []
    with torch.random.fork_rng():
        torch.manual_seed(1)
        for _ in range(steps):
            loss = F.cross_entropy(module(torch.randn(8, 3, 16, 16)), torch.randint(0, 5, (8,)))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    return losses, {name: p.grad for name, p in module.named_parameters()}, module.state_dict()


def assert_trains_alike(program, module, steps):
    losses, gradients, state = train(program, steps)
    expected_losses, expected_gradients, expected_state = train(module, steps)
    assert losses == expected_losses
    assert gradients.keys() == expected_gradients.keys()
    for name, gradient in gradients.items():
        assert torch.equal(gradient, expected_gradients[name]), name
    assert set(expected_state) - set(state) == {name for name in expected_state if name.endswith("num_batches_tracked")}
    for name, tensor in state.items():
        assert torch.equal(tensor, expected_state[name]), name
    module.eval(), program.eval()
    inputs = torch.randn(3, 3, 16, 16)
    assert torch.equal(program(inputs), module(inputs))


def test_a_captured_resnet_trains_exactly_as_the_eager_module():
    """Loss, gradients and running statistics are equal, through dropout, in-place operations and batch norm."""
    module = resnet()
    program = capture(module, torch.zeros(2, 3, 16, 16))
    assert_trains_alike(program, module, steps=5)


def test_copies_train_exactly_as_well():
    module = resnet()
    program = capture(module, torch.zeros(2, 3, 16, 16))
    assert_trains_alike(copy.deepcopy(program), copy.deepcopy(module), steps=2)
    assert_trains_alike(program, module, steps=2)


@settings(max_examples=6, deadline=None)
@given(networks())
def test_random_networks_have_the_same_gradients(network):
    program = capture(network, torch.zeros(2, 3, 8, 8))
    inputs = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    for module in (network.train(), program.train()):
        with torch.random.fork_rng():
            torch.manual_seed(2)
            module(inputs).square().sum().backward()
    for name, parameter in program.named_parameters():
        assert torch.equal(parameter.grad, network.get_parameter(name).grad), name
    for name, buffer in program.named_buffers():
        assert torch.equal(buffer, network.get_buffer(name)), name


def test_mode_is_followed_at_each_call():
    program = capture(nn.Sequential(nn.Dropout(0.5), nn.BatchNorm1d(4)), torch.zeros(2, 4))
    inputs = torch.randn(64, 4) + 3
    assert torch.equal(program(inputs), program(inputs))
    program.train()
    assert not torch.equal(program(inputs), program(inputs))
    program.eval()
    before = program.get_buffer("1.running_mean").clone()
    program(inputs)
    assert torch.equal(program.get_buffer("1.running_mean"), before)
    assert float(before.abs().sum()) > 0


def test_a_norm_without_statistics_uses_the_batch_in_both_modes():
    module = nn.Sequential(nn.BatchNorm2d(3, track_running_stats=False), nn.InstanceNorm2d(3))
    program = capture(module, torch.zeros(2, 3, 4, 4))
    inputs = torch.randn(5, 3, 4, 4)
    assert torch.equal(program(inputs), module.eval()(inputs))
    assert torch.equal(program.train()(inputs), module.train()(inputs))


def test_instance_norm_with_statistics_switches():
    module = nn.InstanceNorm2d(3, track_running_stats=True)
    program = capture(module, torch.zeros(2, 3, 4, 4))
    inputs = torch.randn(5, 3, 4, 4) * 2 + 1
    assert torch.equal(program.train()(inputs), module.train()(inputs))
    assert torch.equal(program.get_buffer("running_mean"), module.running_mean)
    assert torch.equal(program.eval()(inputs), module.eval()(inputs))


CHAIN = Graph(
    ("x",),
    (
        Node("a", "aten.relu.default", (Ref("x"),)),
        Node("b", "aten.add.Tensor", (Ref("a"), Ref("w"))),
        Node("unused", "aten.exp.default", (Ref("x"),)),
        Node("c", "aten.mul.Tensor", (Ref("b"), Ref("a"))),
    ),
    ("b", "c"),
)


def test_values_are_freed_after_their_last_use_but_outputs_stay():
    values = {"x": torch.tensor([-1.0, 2.0]), "w": torch.tensor(3.0), TRAINING: False, DEVICE: torch.device("cpu")}
    alive = {}
    run_steps(schedule(CHAIN), values, lambda name, _: alive.__setitem__(name, set(values)))
    assert set(values) - {TRAINING, DEVICE} == {"b", "c"}
    assert torch.equal(values["c"], torch.tensor([0.0, 10.0]))
    assert "w" not in alive["unused"] and "x" not in alive["c"]
    assert "unused" not in alive["c"]


def test_observers_see_everything_or_what_they_ask_for_and_may_replace_it():
    steps = schedule(CHAIN)

    def run(observe):
        values = {"x": torch.tensor([-1.0, 2.0]), "w": torch.tensor(3.0), TRAINING: False, DEVICE: torch.device("cpu")}
        run_steps(steps, values, observe)
        return values["c"].tolist()

    seen = []
    assert run(lambda name, _: seen.append(name)) == [0.0, 10.0]
    assert seen == ["a", "b", "unused", "c"]
    assert run({"a": lambda name, value: torch.ones_like(value)}) == [4.0, 4.0]
    assert run({"nothing": lambda name, value: 1 / 0}) == [0.0, 10.0]


def test_ops_that_may_not_run_are_refused_when_prepared():
    with pytest.raises(UnsupportedOp, match="no execution rule for aten.relu_.default"):
        schedule(Graph(("x",), (Node("a", "aten.relu_.default", (Ref("x"),)),), ("a",)))


def test_tensors_are_made_where_the_program_is():
    module = nn.Sequential(nn.Linear(3, 3))
    module.forward = lambda x: module[0](x) + torch.arange(3, device=x.device, dtype=x.dtype)
    program = capture(module, torch.zeros(2, 3)).to("meta")
    assert program(torch.zeros(5, 3, device="meta")).device.type == "meta"


def test_frozen_weights_get_no_gradients():
    module = resnet()
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(name.startswith("11."))
    program = capture(module, torch.zeros(2, 3, 16, 16))
    program(torch.randn(4, 3, 16, 16)).sum().backward()
    assert [name for name, p in program.named_parameters() if p.grad is not None] == ["11.weight", "11.bias"]
