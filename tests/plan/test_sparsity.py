"""Sparsity plans: counts, allocations, patterns, nesting, and one sentence for each bad argument."""

import json

import pytest
import torch
from torch import nn

from gossamer.apply.engine import apply
from gossamer.errors import ConfigError, DataError, PlanError
from gossamer.numerics.packing import unpack_mask
from gossamer.numerics.sparsity import erk_zeros
from gossamer.plan import sparsity as module
from gossamer.plan.edits import KeepChannels
from gossamer.plan.plan import Plan
from gossamer.plan.sparsity import ALLOCATIONS, METHODS, plan_sparsity
from gossamer.program.capture import capture

WEIGHTS = ("first.weight", "depth.weight", "second.weight", "head.weight")


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(4, 16, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(16)
        self.depth = nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.second = nn.Conv2d(16, 8, 1)
        self.head = nn.Linear(8, 5)

    def forward(self, x):
        y = torch.relu(self.depth(torch.relu(self.norm(self.first(x)))))
        return self.head(torch.relu(self.second(y)).mean((2, 3)))


@pytest.fixture(scope="module")
def data():
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(32, 4, 6, 6, generator=generator)
    return inputs.cumsum(3) / 2, torch.arange(32) % 5


@pytest.fixture(scope="module")
def program(data):
    torch.manual_seed(0)
    return capture(Net().eval(), data[0][:2])


def masks(program, plan):
    return {edit.value: unpack_mask(edit.mask, tuple(program.state[edit.value].shape)) for edit in plan.edits}


def zeros(found):
    return {name: int((~mask).sum()) for name, mask in found.items()}


SIZE = 16 * 4 * 9 + 16 * 9 + 16 * 8 + 40


@pytest.mark.parametrize("method", [name for name in METHODS if name != "threshold"])
@pytest.mark.parametrize("allocation", ALLOCATIONS)
def test_every_method_reaches_the_sparsity(program, data, method, allocation):
    if method == "dynamic_threshold" and allocation != "layerwise":
        return
    before = {name: tensor.clone() for name, tensor in program.state.items()}
    plan = plan_sparsity(program, 0.5, method=method, allocation=allocation, batches=data)
    assert sum(zeros(masks(program, plan)).values()) == round(0.5 * SIZE)
    assert Plan.from_json(json.loads(json.dumps(plan.to_json()))) == plan
    assert plan == plan_sparsity(program, 0.5, method=method, allocation=allocation, batches=data)
    assert all(torch.equal(before[name], tensor) for name, tensor in program.state.items())
    sparse = apply(program, plan)
    assert sum(int((sparse.state[name] == 0).sum()) for name in WEIGHTS) == round(0.5 * SIZE)
    assert program.masks == {}


def test_magnitude_takes_the_smallest(program):
    found = masks(program, plan_sparsity(program, 0.6))
    for name in WEIGHTS:
        size = program.state[name].detach().abs()
        assert size[found[name]].min() >= size[~found[name]].max()
        assert int((~found[name]).sum()) == pytest.approx(0.6 * size.numel(), abs=1)


def test_allocations(program, data):
    everything = torch.cat([program.state[name].detach().abs().flatten() for name in WEIGHTS])
    limit = everything.sort().values[round(0.5 * SIZE) - 1]
    for name, mask in masks(program, plan_sparsity(program, 0.5, allocation="global")).items():
        assert torch.equal(mask, program.state[name].detach().abs() > limit)
    shapes = [tuple(program.state[name].shape) for name in WEIGHTS]
    found = zeros(masks(program, plan_sparsity(program, 0.5, allocation="erk")))
    assert [found.get(name, 0) for name in WEIGHTS] == erk_zeros(shapes, round(0.5 * SIZE))


def test_thresholds(program):
    fixed = plan_sparsity(program, method="threshold", threshold=0.1)
    dynamic = plan_sparsity(program, method="dynamic_threshold", threshold=0.8)
    for name in WEIGHTS:
        weight = program.state[name].detach()
        assert torch.equal(masks(program, fixed)[name], weight.abs() >= 0.1)
        assert torch.equal(masks(program, dynamic)[name], weight.abs() >= 0.8 * float(weight.double().std(correction=0)))


@pytest.mark.parametrize("method", ["magnitude", "sparsegpt", "obc", "fisher"])
def test_n_of_m(program, data, method):
    plan = plan_sparsity(program, pattern="2:4", method=method, batches=data)
    found = masks(program, plan)
    assert found.keys() == set(WEIGHTS) - {"depth.weight"}
    for mask in found.values():
        assert (mask.movedim(1, -1).reshape(-1, 4).sum(1) == 2).all()
    assert any(item.where == "depth.weight" and "no multiple of 4" in item.reason for item in plan.frozen)


@pytest.mark.parametrize("allocation", ALLOCATIONS)
def test_blocks(program, data, allocation):
    found = masks(program, plan_sparsity(program, 0.5, pattern="4x1", allocation=allocation, batches=data))
    for name, mask in found.items():
        rows = mask.flatten(1)
        assert rows.shape[0] % 4 == 0 or name == "head.weight"
        whole = rows[: len(rows) // 4 * 4].reshape(-1, 4, rows.shape[1])
        assert (whole.all(1) | ~whole.any(1)).all()
    assert sum(zeros(found).values()) == pytest.approx(0.5 * SIZE, abs=4 * len(WEIGHTS))


@pytest.mark.parametrize("method", ["magnitude", "fisher", "sparsegpt", "obc", "dynamic_threshold", "random"])
def test_rising_sparsities_nest(program, data, method):
    sparse, before = program, {}
    for sparsity in (0.3, 0.6, 0.8, 0.5):
        plan = plan_sparsity(sparse, sparsity, method=method, batches=data)
        sparse = apply(sparse, plan)
        assert all(not bool((sparse.masks[name] & ~mask).any()) for name, mask in before.items())
        before = sparse.masks
        count = sum(zeros(before).values())
        assert count == pytest.approx(max(sparsity, 0.8 if sparsity == 0.5 else 0) * SIZE, abs=SIZE * 0.005)


def test_the_same_mask_serves_other_weights(program):
    plan = plan_sparsity(program, 0.5)
    other = program.copy()
    with torch.no_grad():
        other.state["head.weight"].add_(1.0)
    assert torch.equal(apply(other, plan).state["head.weight"] == 0, ~masks(program, plan)["head.weight"])


def test_skip_and_only(program):
    plan = plan_sparsity(program, 0.5, skip=("first", "head.weight"))
    assert {edit.value for edit in plan.edits} == {"depth.weight", "second.weight"}
    assert any(item.where == "first.weight" and item.reason == "skipped as asked (first)" for item in plan.frozen)
    plan = plan_sparsity(program, 0.5, only=("second",))
    assert {edit.value for edit in plan.edits} == {"second.weight"}
    assert any(item.where == "head.weight" and "only=" in item.reason for item in plan.frozen)


class Odd(nn.Module):
    """Tied, transposed, recurrent, computed and embedded weights."""

    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(20, 8)
        self.memory = nn.LSTM(8, 8, batch_first=True)
        self.inner = nn.Linear(8, 8)
        self.up = nn.ConvTranspose1d(8, 8, 2, stride=2)
        self.scaled = nn.utils.parametrizations.weight_norm(nn.Linear(8, 8))
        self.out = nn.Linear(8, 20, bias=False)
        self.out.weight = self.words.weight

    def forward(self, tokens):
        y = self.memory(self.words(tokens))[0]
        y = self.inner(self.inner(y))
        y = self.up(y.transpose(1, 2)).transpose(1, 2)
        return self.out(self.scaled(y).mean(1))


@pytest.mark.filterwarnings("ignore:The tensor attributes")  # torch.export about an LSTM
def test_tied_recurrent_and_computed_weights():
    torch.manual_seed(0)
    program = capture(Odd().eval(), torch.zeros(2, 6, dtype=torch.int64))
    plan = plan_sparsity(program, 0.5)
    sparse = apply(program, plan)
    assert {"memory.weight_ih_l0", "memory.weight_hh_l0", "inner.weight", "up.weight"} <= sparse.masks.keys()
    tied = [name for name in ("words.weight", "out.weight") if name in sparse.state]
    assert all(name in sparse.masks for name in tied)
    assert any("computed from others" in item.reason for item in plan.frozen)
    tokens = torch.randint(0, 20, (8, 6), generator=torch.Generator().manual_seed(0))
    plan = plan_sparsity(program, 0.5, method="sparsegpt", batches=tokens)
    assert "inner.weight" in {edit.value for edit in plan.edits}
    assert any(item.where == "up.weight" and "not gathered" in item.reason for item in plan.frozen)
    with pytest.raises(PlanError, match="'obc' knows the inputs of none of these layers"):
        plan_sparsity(program, 0.5, method="obc", only=("up",), batches=tokens)
    skipped = {item.where for item in plan_sparsity(program, pattern="2:4").frozen}
    assert "up.weight" in skipped


@pytest.mark.parametrize(
    ("settings", "error", "match"),
    [
        ({"sparsity": 1.0}, ConfigError, r"sparsity must be a share of zeros in \[0, 1\); got 1.0"),
        ({"sparsity": -0.1}, ConfigError, r"sparsity must be a share"),
        ({"sparsity": float("nan")}, ConfigError, r"sparsity must be a share"),
        ({"sparsity": "half"}, ConfigError, "sparsity must be a number"),
        ({}, ConfigError, "given a sparsity"),
        ({"sparsity": 0.5, "threshold": 0.1, "method": "dynamic_threshold"}, ConfigError, "given a sparsity"),
        ({"sparsity": 0.5, "method": "threshold"}, ConfigError, "a threshold"),
        ({"sparsity": 0.5, "threshold": 0.1}, ConfigError, "it belongs to 'threshold'"),
        ({"threshold": -1.0, "method": "threshold"}, ConfigError, "0 or a positive number"),
        ({"sparsity": 0.5, "pattern": "diagonal"}, ConfigError, "pattern must be 'unstructured', 'N:M'"),
        ({"sparsity": 0.3, "pattern": "2:4"}, ConfigError, "the pattern 2:4 makes 0.5 of each layer zero"),
        ({"pattern": "2:4", "allocation": "erk"}, ConfigError, "the pattern 2:4"),
        ({"pattern": "4x1", "sparsity": 0.5, "method": "obc"}, ConfigError, "'unstructured' or 'N:M' with the method 'obc'"),
        ({"pattern": "4x1", "threshold": 0.5, "method": "threshold"}, ConfigError, "'unstructured' with the method 'threshold'"),
        ({"sparsity": 0.5, "method": "magnitud"}, ConfigError, "did you mean 'magnitude'"),
        ({"sparsity": 0.5, "allocation": "even"}, ConfigError, "allocation must be one of layerwise"),
        ({"sparsity": 0.5, "allocation": "erk", "method": "dynamic_threshold"}, ConfigError, "sets the zeros of each layer itself"),
        ({"sparsity": 0.5, "method": "obc"}, DataError, "'obc' needs runs of the network; pass batches="),
        ({"sparsity": 0.5, "method": "fisher"}, DataError, "needs gradients; pass batches= with labels"),
        ({"sparsity": 0.5, "allocation": "sensitivity"}, DataError, "'sensitivity' needs runs of the network"),
        ({"sparsity": 0.5, "skip": ("secnd",)}, PlanError, "skip names 'secnd', which is no layer that can hold zeros; did you mean 'second'"),
        ({"sparsity": 0.5, "only": ("headd",)}, PlanError, "only names 'headd'.*did you mean 'head'"),
        ({"sparsity": 0.5, "skip": ("first", "depth", "second", "head")}, PlanError, "no layer of this network can hold zeros"),
        ({"pattern": "2:5"}, PlanError, "no layer of this network can hold zeros of the pattern '2:5'"),
        ({"threshold": 9.0, "method": "threshold"}, PlanError, "would keep no weight"),
    ],
)  # fmt: skip
def test_bad_arguments(program, settings, error, match):
    with pytest.raises(error, match=match):
        plan_sparsity(program, **settings)


def test_too_large_for_the_exact_solver(program, data, monkeypatch):
    monkeypatch.setattr(module, "OBC_COST", 10)
    with pytest.raises(PlanError, match="'obc' would take about .* use the method 'sparsegpt'"):
        plan_sparsity(program, 0.5, method="obc", batches=data)


def test_weights_and_data_that_are_not_finite(program, data):
    broken = program.copy()
    with torch.no_grad():
        broken.state["second.weight"][0] = torch.nan
    with pytest.raises(PlanError, match="'second.weight' holds NaN"):
        plan_sparsity(broken, 0.5)
    with pytest.raises(DataError, match="NaN"):
        plan_sparsity(program, 0.5, method="obc", batches=torch.full((2, 4, 6, 6), torch.nan))
    huge = program.copy()
    with torch.no_grad():
        huge.state["first.weight"].fill_(1e38)
    with pytest.raises(DataError, match="NaN or infinite inputs"):
        plan_sparsity(huge, 0.5, method="sparsegpt", batches=data[0])


def test_a_plan_of_its_own(program):
    plan = plan_sparsity(program, 0.5)
    mixed = Plan((*plan.edits, KeepChannels("first", (0,), 16)), program.digest)
    with pytest.raises(PlanError, match="makes weights zero and changes the network otherwise"):
        apply(program, mixed)


@pytest.mark.parametrize("size", [2.0**-95, 2.0**95])
@pytest.mark.parametrize("pattern", ["unstructured", "2:4", "4x1"])
def test_weights_of_any_size_lose_the_same(pattern, size):
    network = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 8)).eval()
    plain = capture(network, torch.zeros(2, 8))
    with torch.no_grad():
        for layer, factor in ((network[0], size), (network[2], 1 / size)):
            layer.weight.mul_(factor)
    sized = capture(network, torch.zeros(2, 8))
    expected, found = (masks(p, plan_sparsity(p, 0.5, pattern=pattern, allocation="layerwise")) for p in (plain, sized))
    assert all(torch.equal(found[name], expected[name]) for name in expected)
