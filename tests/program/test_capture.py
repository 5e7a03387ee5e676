"""Capture: the eager module is the oracle, to the last bit."""

import copy
import operator
import re

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from torch import nn

from gossamer.apply.engine import apply
from gossamer.errors import CaptureError, DataError, GossamerError
from gossamer.plan.pruning import plan_pruning
from gossamer.plan.score import score
from gossamer.program.capture import capture, relative_error
from networks import networks


class Wrap(nn.Module):
    """A module from a function (module, *inputs) and named parts."""

    def __init__(self, run, **parts):
        super().__init__()
        self.run = run
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, x):
        return self.run(self, x)


def inplace_chain(self, x):
    y = self.conv(x)
    z = F.relu_(y)
    z += y
    z.mul_(2).clamp_(max=6)
    return z - y


def chunks(self, x):
    a, b = torch.chunk(self.conv(x), 2, dim=1)
    c, d, e = torch.split(b, [1, 1, 2], dim=1)
    return torch.cat([d, a, e.relu_(), c], dim=1)


NETWORKS = {
    "inplace": lambda: Wrap(inplace_chain, conv=nn.Conv2d(3, 8, 3)),
    "input written": lambda: Wrap(lambda self, x: x.mul_(2).sub_(1)),
    "inplace activations": lambda: nn.Sequential(
        nn.ReLU(True), nn.Conv2d(3, 4, 1), nn.Hardswish(True), nn.SiLU(True), nn.ReLU6(True), nn.ELU(0.5, True), nn.Hardtanh(-1, 2, True)
    ),
    "dropout": lambda: nn.Sequential(nn.Dropout(0.9), nn.Conv2d(3, 4, 1), nn.Dropout2d(0.9, inplace=True), nn.AlphaDropout(0.9)),
    "norms": lambda: nn.Sequential(nn.BatchNorm2d(3, affine=False), nn.InstanceNorm2d(3, affine=True), nn.GroupNorm(1, 3)),
    "chunk and cat": lambda: Wrap(chunks, conv=nn.Conv2d(3, 8, 3)),
    "depthwise": lambda: nn.Sequential(
        nn.Conv2d(3, 9, 3, groups=3, padding="same"), nn.Conv2d(9, 9, 3, groups=9, padding_mode="reflect", padding=1)
    ),
    "pools": lambda: nn.Sequential(
        nn.MaxPool2d(3, 2, 1, ceil_mode=True), nn.AvgPool2d(2, count_include_pad=False), nn.AdaptiveMaxPool2d(1)
    ),
    "transposed": lambda: nn.Sequential(nn.ConvTranspose2d(3, 4, 3, stride=2, output_padding=1), nn.Upsample(scale_factor=2)),
    "pixels": lambda: nn.Sequential(nn.Conv2d(3, 8, 1), nn.PixelShuffle(2), nn.ZeroPad2d(1), nn.ChannelShuffle(2)),
    "classifier": lambda: nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.PReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, 5), nn.Softmax(1)
    ),
    "sizes from the batch": lambda: Wrap(
        lambda self, x: x.reshape(x.shape[0] * 3, -1).sum(1).view(x.size(0), 3) + torch.zeros(x.shape[0], 1)
    ),
    "buffers and constants": lambda: Wrap(
        lambda self, x: x * self.scale + torch.tensor([1.0, 2.0, 3.0]).view(3, 1, 1), scale=nn.Buffer(torch.rand(3, 1, 1))
    ),
    "attention": lambda: Wrap(
        lambda self, x: self.attend(y := x.flatten(2), y, y)[0], attend=nn.MultiheadAttention(64, 4, batch_first=True)
    ),
    "identity": nn.Identity,
    "weight norm": lambda: nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 4, 1)),
}


def snapshot(module):
    hooks = [len(part._forward_hooks) + len(part._forward_pre_hooks) for part in module.modules()]
    content = {name: (id(t), t.clone(), getattr(t, "requires_grad", None), t.grad) for name, t in module.state_dict(keep_vars=True).items()}
    return hooks, [part.training for part in module.modules()], content


def assert_untouched(module, before):
    hooks, modes, content = snapshot(module)
    assert (hooks, modes) == before[:2]
    assert content.keys() == before[2].keys()
    for name, (identity, value, requires_grad, grad) in content.items():
        assert identity == before[2][name][0], name
        assert torch.equal(value, before[2][name][1]), name
        assert requires_grad == before[2][name][2] and grad is before[2][name][3]


@pytest.mark.parametrize("name", NETWORKS)
def test_equals_eager_at_other_batch_sizes_and_leaves_the_model_alone(name):
    torch.manual_seed(0)
    model = NETWORKS[name]()
    for position, part in enumerate(model.modules()):
        part.training = position % 3 != 1  # some frozen, as in fine-tuning
    model.register_forward_hook(lambda *_: None)
    example = torch.randn(2, 3, 8, 8)
    kept, before, state = example.clone(), snapshot(model), torch.get_rng_state()
    program = capture(model, example)
    assert_untouched(model, before)
    assert torch.equal(example, kept)
    assert torch.equal(torch.get_rng_state(), state)
    assert not program.training
    shared = {tensor.untyped_storage().data_ptr() for tensor in model.state_dict().values()}
    assert not shared & {tensor.untyped_storage().data_ptr() for tensor in program.state.values()}
    model.eval()
    with torch.no_grad():
        for batch in (1, 2, 5):
            inputs = torch.randn(batch, 3, 8, 8)
            assert torch.equal(program(inputs.clone()), model(inputs.clone())), batch
    names = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    assert all(found in names or found.startswith("lifted") for found in program.state)


def test_weights_are_shared_when_asked():
    """So that a network of many gigabytes is held once; a removal still copies."""
    model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Linear(6, 2)).eval()
    program = capture(model, torch.randn(2, 4), copy_weights=False)
    assert all(program.state[name] is tensor for name, tensor in [*model.named_parameters(), ("1.running_mean", model[1].running_mean)])
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    small = apply(program, plan_pruning(program, score(program, "l1"), 0.5))
    shared = {tensor.untyped_storage().data_ptr() for tensor in model.state_dict().values()}
    assert not shared & {tensor.untyped_storage().data_ptr() for tensor in small.state.values()}
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


@settings(max_examples=15, deadline=None)
@given(networks())
def test_random_networks_equal_eager(network):
    program = capture(network, torch.zeros(2, 3, 8, 8))
    inputs = torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(program(inputs), network(inputs))
    assert {node.op.partition("_.")[1] for node in program.graph.nodes} == {""}  # no op writes


class Named(nn.Module):
    def forward(self, image, mask=None, *, scale):
        return image * scale if mask is None else image * scale + mask


def test_inputs_by_position_and_by_name():
    a, b, c = torch.randn(3, 2, 3).unbind()
    program = capture(Named(), {"scale": a, "image": b, "mask": c})
    assert [spec.name for spec in program.inputs] == ["scale", "image", "mask"]
    expected = Named()(b, c, scale=a)
    assert torch.equal(program(a, b, c), expected)
    assert torch.equal(program(mask=c, scale=a, image=b), expected)
    assert torch.equal(program(a, mask=c, image=b), expected)
    positional = capture(nn.Bilinear(3, 3, 2), (a, b))
    assert [spec.name for spec in positional.inputs] == ["input1", "input2"]
    with pytest.raises(DataError, match=r"takes the inputs input1 \(batch, 3\) float32, input2 \(batch, 3\) float32; got 1 by position"):
        positional(a)


def test_constants_and_nested_inputs():
    class Net(nn.Module):
        def forward(self, pair, times):
            return pair[0] * times + pair[1]

    a, b = torch.randn(2, 2, 3).unbind()
    program = capture(Net(), ([a, b], 3))
    assert len(program.inputs) == 2
    assert torch.equal(program(torch.cat([a, a]), torch.cat([b, b])), torch.cat([a, a]) * 3 + torch.cat([b, b]))


def test_an_example_of_one_sample_will_do():
    program = capture(nn.Conv2d(3, 4, 1), torch.zeros(1, 3, 5, 5))
    assert str(program.inputs[0]) == "input (batch, 3, 5, 5) float32"
    assert program(torch.zeros(7, 3, 5, 5)).shape == (7, 4, 5, 5)


@pytest.mark.parametrize("output", ["logits", operator.itemgetter("logits"), lambda result: result["logits"]])
def test_an_adapter_picks_the_output(output):
    model = Wrap(lambda self, x: {"logits": x * 2, "other": x})
    assert torch.equal(capture(model, torch.ones(2, 3), output=output)(torch.ones(4, 3)), torch.full((4, 3), 2.0))
    assert torch.equal(capture(Wrap(lambda self, x: (x, x * 3)), torch.ones(2, 3), output=1)(torch.ones(4, 3)), torch.full((4, 3), 3.0))


def test_names_that_program_uses_itself():
    parts = {
        name: nn.Linear(3, 3) for name in ("graph", "inputs", "state", "steps", "target", "cost", "copy", "quantizers", "digest", "_steps")
    }

    def run(self, x):
        for name in parts:
            x = getattr(self, name)(x)
        return x + self.device

    model = Wrap(run, **parts, device=nn.Parameter(torch.randn(3)))
    program = capture(model, torch.zeros(2, 3))
    inputs = torch.randn(4, 3)
    for one in (program, program.copy(), copy.deepcopy(program)):
        assert torch.equal(one(inputs), model(inputs))
    assert program.cost().params == 10 * 12 + 3
    assert set(program.state_dict()) == set(model.state_dict())


def test_tied_weights_stay_one_parameter():
    shared = nn.Linear(3, 3)
    program = capture(nn.Sequential(shared, nn.ReLU(), shared), torch.zeros(2, 3))
    assert len(list(program.parameters())) == 2
    one, other = nn.Linear(3, 3), nn.Linear(3, 3, bias=False)
    other.weight = one.weight
    assert len(list(capture(nn.Sequential(one, other), torch.zeros(2, 3)).parameters())) == 2


def test_frozen_parameters_stay_frozen():
    model = nn.Linear(3, 3)
    model.bias.requires_grad_(False)
    program = capture(model, torch.zeros(2, 3))
    assert [p.requires_grad for p in (program.get_parameter("weight"), program.get_parameter("bias"))] == [True, False]


def test_places_in_the_users_code_are_kept():
    program = capture(Wrap(inplace_chain, conv=nn.Conv2d(3, 8, 3)), torch.zeros(2, 3, 4, 4))
    nodes = {node.op: node for node in program.graph.nodes}
    assert nodes["aten.conv2d.default"].module == "conv"
    assert re.fullmatch(r"test_capture.py:\d+", nodes["aten.relu.default"].source)
    assert nodes["aten.relu.default"].module == ""


class Branches(nn.Module):
    def forward(self, x):
        if x.sum() > 0:  # this line decides
            return x
        return -x


class Counts(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.zeros(2))

    def forward(self, x):
        self.calls[0] += 1
        return x * 1.0


class Rejects(nn.Module):
    def forward(self, x):
        raise ValueError("no such mode:\nsecond line")


class Shrinks(nn.Module):
    def forward(self, x):
        return x[x > 0]  # as many as are positive


class Pairs(nn.Module):
    def forward(self, x):
        return x, x


class View(nn.Module):
    def forward(self, x):
        y = x.clone()
        y.diagonal(dim1=-2, dim2=-1).fill_(5.0)  # through a view that has no inverse
        return y


def with_nan():
    model = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3))
    with torch.no_grad():
        model[1].running_mean[1:] = float("nan")
    return model


FIXED = "compute sizes from x.shape.0., or pass dynamic_batch=False"
REFUSED = {
    "pair": (Pairs(), "it returns a tuple, not one tensor; pass output= a key, an index, or a function that picks the tensor"),
    "mapping": (Wrap(lambda self, x: {"b": x, "a": x}), r"it returns a dict with the keys \['a', 'b'\], not one tensor; pass output="),
    "number": (Wrap(lambda self, x: 3), "it returns a int, not one tensor"),
    "nan": (with_nan(), "the weight '1.running_mean' holds 2 NaN or infinite values; load weights that are finite"),
    "norm": (
        nn.Sequential(nn.BatchNorm2d(3, momentum=None)),
        "the norm '0' averages over all batches .momentum=None.*set its momentum to a number",
    ),
    "lazy": (nn.LazyConv2d(3, 1), "the weight 'weight' has no shape yet; run the model once on real data before"),
    "branch": (Branches(), r"at \S+test_capture.py:\d+ \(if x.sum\(\) > 0:.*\): torch.export refuses it .*does not depend on values"),
    "shape": (Shrinks(), r"at test_capture.py:\d+: the shape of a result depends on values; use operations whose result has a known shape"),
    "batch": (Wrap(lambda self, x: x.view(2, -1)), f"its code fixes the batch size to 2; {FIXED}"),
    "batch in a factory": (Wrap(lambda self, x: x + torch.zeros(2, 1, 1, 1)), f"its code fixes the batch size to 2; {FIXED}"),
    "batch limit": (
        Wrap(lambda self, x: x * 2 if x.shape[0] < 16 else x),
        r"takes another path for batches outside \[\d, 15\]; let the code not",
    ),
    "one sample": (Wrap(lambda self, x: x * 2 if x.shape[0] > 1 else x), "its code treats a single sample differently; let the code not"),
    "view": (
        View(),
        r"at test_capture.py:\d+: fill_ writes into memory that '\w+' also shows; use the form of that operation that returns a new",
    ),
    "buffer": (Counts(), r"at test_capture.py:\d+: its forward writes to 'calls' while evaluating; write to buffers only while training"),
    "random": (
        Wrap(lambda self, x: F.dropout(x, 0.5)),
        "it gives another output for the same input each time; let randomness such as dropout",
    ),
    "error": (
        Rejects(),
        r"at \S+test_capture.py:\d+ \(raise ValueError.*\): it fails on the example inputs \(ValueError: no such mode\); pass example",
    ),
    "wrong shape": (
        nn.Conv2d(5, 3, 1),
        r"it fails on the example inputs \(RuntimeError: Given groups=1.*; pass example_inputs of the shape and type",
    ),
    "float64": (
        nn.Conv2d(3, 3, 1).double(),
        r"it fails on the example inputs \(RuntimeError.*; call model.float\(\) first, since its weights are float64",
    ),
    "no number": (Wrap(lambda self, x: (x - 2).log()), "its output for the example inputs is NaN or infinite.*; pass example inputs for"),
    "numpy": (Wrap(lambda self, x: torch.from_numpy(x.detach().numpy() * 2)), "torch.export refuses it"),
    "no such key": (Wrap(lambda self, x: {"a": x}), r"fails on the example inputs \(KeyError: 'logits'\)"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_captured_is_said_in_one_sentence(name):
    model, message = REFUSED[name]
    model.train()
    lazy = name == "lazy"
    before = None if lazy else snapshot(model)
    with pytest.raises(CaptureError, match=message) as caught:
        capture(model, torch.ones(2, 3, 4, 4), output="logits" if name == "no such key" else None)
    assert str(caught.value).startswith("cannot capture the model")
    assert "\n" not in str(caught.value)
    if not lazy:
        state = snapshot(model)
        assert state[1] == before[1]
        assert all(torch.equal(state[2][key][1], before[2][key][1]) or name == "nan" for key in state[2])


def test_a_fixed_batch_can_be_asked_for():
    program = capture(Wrap(lambda self, x: x.view(2, -1)), torch.ones(2, 3, 4), dynamic_batch=False)
    assert program(torch.ones(2, 3, 4)).shape == (2, 12)
    with pytest.raises(DataError, match=r"input x \(2, 3, 4\) float32 got a tensor of shape \(4, 3, 4\)"):
        program(torch.ones(4, 3, 4))


def test_a_fixed_batch_of_one_stays_one():
    program = capture(Wrap(lambda self, x: x.flatten(1)), torch.ones(1, 3, 4), dynamic_batch=False)
    assert program.inputs[0].shape == (1, 3, 4)
    assert program(torch.ones(1, 3, 4)).shape == (1, 12)


def test_every_refusal_is_ours():
    for model, _ in REFUSED.values():
        with pytest.raises(GossamerError):
            capture(model, torch.ones(2, 3, 4, 4), output="logits")


def test_relative_error():
    assert relative_error(torch.zeros(3), torch.zeros(3)) == 0
    assert relative_error(torch.ones(3), torch.zeros(3)) > 1
    assert relative_error(torch.ones(3), torch.ones(4)) == float("inf")
    assert relative_error(torch.tensor([3.0, 4.0]), torch.tensor([3.0, 5.0])) == pytest.approx(1 / 34**0.5)
    infinite = torch.tensor([3.0, float("-inf"), 4.0])
    assert relative_error(infinite, infinite) == 0
    assert relative_error(torch.tensor([3.0, float("-inf"), 5.0]), infinite) == pytest.approx(1 / 5)
    assert not relative_error(torch.tensor([3.0, 1.0, 4.0]), infinite) < 1
    assert not relative_error(infinite[1:2], infinite[1:2]) < 1
    assert relative_error(torch.tensor([float("nan")]), torch.ones(1)) != relative_error(torch.ones(1), torch.ones(1))


def test_buffers_may_hold_infinite_limits():
    class Limited(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(3, 3)
            self.register_buffer("mask", torch.tensor([0.0, float("-inf"), 0.0]))

        def forward(self, x):
            return (self.layer(x) + self.mask).softmax(1)

    assert torch.isinf(capture(Limited(), torch.randn(2, 3)).state["mask"]).any()
