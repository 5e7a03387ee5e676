"""Quantizers that learn: they start as planned, follow the paper's update, and stay within what the target runs to the bit."""

from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from gossamer.apply.engine import apply
from gossamer.errors import ConfigError, FileError
from gossamer.numerics.affine import clips_like, dequantize, quantize, spread_out
from gossamer.plan.dynamic import plan_dynamic_quantization
from gossamer.plan.pruning import plan_pruning
from gossamer.plan.quantization import plan_quantization
from gossamer.plan.score import score
from gossamer.plan.sparsity import plan_sparsity
from gossamer.plan.weight_only import plan_weight_quantization
from gossamer.program.bundle import load, save
from gossamer.program.capture import capture
from gossamer.targets.simulate import Simulator
from gossamer.targets.target import targets
from gossamer.train.fit import fit
from gossamer.train.qat import LearnedQuantizers
from gossamer.train.recipe import Recipe
from networks import networks

TARGET = "onnxruntime"
LEARNING = Recipe(learning_rate=0.02, quantizer_learning_rate=0.01, batch_size=16)


class Net(nn.Module):
    """A clamp, a residual, a pool, a gate and a classifier on (batch, 4, 8, 8)."""

    def __init__(self):
        super().__init__()
        self.stem, self.norm = nn.Conv2d(4, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.inner, self.gate = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 1)
        self.head = nn.Linear(8 * 16, 5)

    def forward(self, x):
        x = F.relu6(self.norm(self.stem(x)))
        x = x + self.inner(x)
        x = F.max_pool2d(x, 2)
        return self.head((x * F.hardsigmoid(self.gate(x))).flatten(1))


@pytest.fixture(scope="module")
def samples():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(96, 4, 8, 8, generator=generator), torch.randint(0, 5, (96,), generator=generator)


@pytest.fixture(scope="module")
def program(samples):
    with torch.random.fork_rng():
        torch.manual_seed(1)
        net = Net()
        net.norm.weight.data.uniform_(2, 4)  # so that relu6 clips
    return capture(net.eval(), samples[0][:2])


@pytest.fixture(scope="module")
def planned(program, samples):
    return apply(program, plan_quantization(program, samples[0]))


@pytest.fixture(scope="module")
def trained(planned, program, samples):
    return fit(planned, samples, teacher=program, epochs=2, recipe=LEARNING)


def check_exact(program, x, folder):
    """Simulated == executed, value by value and to the bit."""
    path = folder / "m.onnx"
    targets[TARGET].emit(program, path)
    executed = targets[TARGET].open(path, threads=1, values=True).run_values(x.numpy())
    coded = {name: array for name, array in executed.items() if name in program.quantizers}
    found = Simulator(program).run(x, codes=coded)
    assert coded
    for name, array in coded.items():
        assert np.array_equal(found.codes[name].numpy(), array), name


def same(left, right):
    mine, other = left.state_dict(), right.state_dict()
    return left.quantizers == right.quantizers and all(torch.equal(mine[name], other[name]) for name in mine)


def test_starts_at_the_planned_result_to_the_bit(planned, samples):
    learned = LearnedQuantizers(planned)
    assert torch.equal(planned.run(samples[0], coder=learned.code), planned(samples[0]))
    assert learned.finished() == planned.quantizers


def test_everything_learns_but_gates_and_stays_on_the_target(planned, trained, samples, tmp_path):
    before, after = planned.quantizers, trained.quantizers
    assert before.keys() == after.keys()
    clamp = next(node.name for node in planned.graph.nodes if clips(node))  # may already be as large as its clamp allows
    for name in before.keys() - {clamp}:
        assert (after[name] == before[name]) == (name == "hardsigmoid"), name
        assert after[name].format == before[name].format
    check_exact(trained, samples[0][:8], tmp_path)


def test_zero_points_learn_where_codes_do_not_end_at_zero(planned, samples, tmp_path):
    tuned = fit(planned, samples, epochs=3, recipe=Recipe(optimizer="adamw", learning_rate=1e-3, quantizer_learning_rate=0.01))
    moved = [name for name in planned.quantizers if tuned.quantizers[name].zero_point != planned.quantizers[name].zero_point]
    assert moved and not any(name in planned.graph.state_names or "relu" in name for name in moved)
    check_exact(tuned, samples[0][:4], tmp_path)


def test_values_whose_codes_are_passed_on_share_a_quantizer(planned, trained):
    pool = next(node for node in trained.graph.nodes if "max_pool" in node.op)
    assert trained.quantizers[pool.name] == trained.quantizers[pool.uses[0]] != planned.quantizers[pool.name]


@pytest.mark.parametrize("pull", [1.0, -1.0])
def test_codes_still_clip_like_the_clamp_they_replace(planned, samples, pull):
    clamp = next(node.name for node in planned.graph.nodes if clips(node))
    assert clips_like(planned.quantizers[clamp], 0.0, 6.0)

    def loss(outputs, target):  # drives scales up, or down
        return pull * outputs.square().mean() * 10

    recipe = replace(LEARNING, loss=loss, quantizer_learning_rate=1.0, learning_rate=1e-3)
    moved = fit(planned, samples, epochs=2, recipe=recipe)
    assert moved.quantizers[clamp] != planned.quantizers[clamp] or pull < 0
    assert clips_like(moved.quantizers[clamp], 0.0, 6.0)
    for quantizer in moved.quantizers.values():
        assert all(np.float32(scale) == scale > 0 for scale in quantizer.scale)


def clips(node):
    return "relu6" in node.op or "hardtanh" in node.op


def test_weights_lie_on_their_codes(trained):
    coded = [name for name in trained.state if name in trained.quantizers]
    assert len(coded) == 4
    for name in coded:
        weight, quantizer = trained.state[name], trained.quantizers[name]
        assert torch.equal(weight, dequantize(quantize(weight, quantizer), quantizer))


def test_updates_are_adams_with_gradients_of_the_formula(planned, samples):
    """Scales of one weight as multiples of their start, by hand."""
    name = "inner.weight"
    start = planned.quantizers[name]
    factor = torch.ones(len(start.scale), requires_grad=True)
    optimizer = torch.optim.Adam([factor], lr=0.03)

    def code(value_name, value):
        if value_name != name:
            return planned._coded(value_name, value)
        scale = spread_out(torch.tensor(start.scale) * factor, start.granularity, value)
        levels = torch.clamp(value / scale, start.format.lo, start.format.hi)
        return (levels + (levels.round() - levels).detach()) * scale

    moved_weights = planned.copy()  # planned weights lie on their codes, where gradients of scales are all zero
    with torch.no_grad():
        moved_weights.get_parameter(name).mul_(1.003)
    F.cross_entropy(moved_weights.run(samples[0], coder=code), samples[1]).backward()
    optimizer.step()
    recipe = Recipe(learning_rate=1e-9, quantizer_learning_rate=0.03, momentum=0, warmup=0, batch_size=96)
    found = fit(moved_weights, [samples], epochs=1, recipe=recipe).quantizers[name]
    torch.testing.assert_close(torch.tensor(found.scale), torch.tensor(start.scale) * factor.detach(), rtol=1e-4, atol=0)
    assert found.scale != start.scale


def test_learned_scales_beat_constant_ones_from_a_bad_start(program, planned, samples):
    bad = {
        name: replace(quantizer, scale=tuple(float(np.float32(scale * 16)) for scale in quantizer.scale))
        if name in planned.graph.state_names
        else quantizer
        for name, quantizer in planned.quantizers.items()
    }
    coarse = planned.with_graph(planned.graph, planned.copy().state, quantizers=bad)
    recipe = Recipe(learning_rate=1e-4, optimizer="adamw", batch_size=16)
    wanted = program(samples[0])
    errors = {}
    for rate in (None, 0.05):  # 36 updates: at 0.02 scales get less than half of the way back
        tuned = fit(coarse, samples[0], teacher=program, epochs=6, recipe=replace(recipe, quantizer_learning_rate=rate))
        errors[rate] = float((tuned(samples[0]) - wanted).detach().square().mean())
    assert errors[0.05] < 0.8 * errors[None]


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_interrupted_and_resumed_equals_uninterrupted(planned, program, samples, optimizer, tmp_path):
    recipe = replace(LEARNING, optimizer=optimizer)
    whole = fit(planned, samples, teacher=program, epochs=2, recipe=recipe, seed=3)
    path = tmp_path / "fit.safetensors"
    again = {"teacher": program, "epochs": 2, "recipe": recipe, "seed": 3, "checkpoint": path}

    class Interrupted(Exception):
        pass

    def stop(progress):
        if progress.done == 9:
            raise Interrupted

    with pytest.raises(Interrupted):
        fit(planned, samples, on_progress=stop, **again)
    assert same(whole, fit(planned, samples, **again))
    assert same(whole, fit(planned, samples, teacher=program, epochs=2, recipe=recipe, seed=3))
    assert not same(whole, fit(planned, samples, teacher=program, epochs=2, recipe=recipe, seed=4))
    other = planned.with_graph(planned.graph, quantizers={**planned.quantizers, "head.weight": whole.quantizers["head.weight"]})
    with pytest.raises(FileError, match="another training run .quantizers is"):
        fit(other, samples, **again)


def test_argument_stays_as_it_is(planned, trained, samples):
    weights, quantizers = planned.weights_digest(), dict(planned.quantizers)
    fit(planned, samples, epochs=1, recipe=LEARNING)
    assert planned.weights_digest() == weights and planned.quantizers == quantizers
    assert planned.weights_digest() != trained.weights_digest()


def test_masks_hold(program, samples, tmp_path):
    sparse = apply(program, plan_sparsity(program, pattern="2:4", only=("inner", "gate")))
    assert sparse.masks
    quantized = apply(sparse, plan_quantization(sparse, samples[0]))
    tuned = fit(quantized, samples, teacher=program, epochs=1, recipe=LEARNING)
    assert tuned.masks.keys() == sparse.masks.keys()
    for name, mask in sparse.masks.items():
        assert torch.equal(tuned.masks[name], mask)
        assert not tuned.state[name][~mask].any()
        assert not quantize(tuned.state[name], tuned.quantizers[name])[~mask].any()
    check_exact(tuned, samples[0][:4], tmp_path)


def test_pruned_networks_train(program, samples, tmp_path):
    small = apply(program, plan_pruning(program, score(program, "l2"), 0.3))
    quantized = apply(small, plan_quantization(small, samples[0]))
    tuned = fit(quantized, samples, teacher=program, epochs=1, recipe=LEARNING)
    assert tuned.cost().params < program.cost().params
    check_exact(tuned, samples[0][:4], tmp_path)


def test_biases_keep_fitting_int32(program, samples, tmp_path):
    extreme = program.copy()
    with torch.no_grad():
        extreme.get_parameter("head.weight")[2] *= 1e-9
        extreme.get_parameter("head.bias")[2] = 50.0
    quantized = apply(extreme, plan_quantization(extreme, samples[0]))

    def loss(outputs, target):  # makes that bias grow
        return -outputs[:, 2].mean()

    recipe = Recipe(loss=loss, learning_rate=5.0, max_gradient_norm=1e3, quantizer_learning_rate=0.1, batch_size=16)
    tuned = fit(quantized, samples, epochs=2, recipe=recipe)
    assert tuned.state["head.bias"][2] > 60
    check_exact(tuned, samples[0][:4], tmp_path)  # refuses biases that do not fit


@pytest.mark.parametrize("plan", [plan_dynamic_quantization, plan_weight_quantization])
def test_programs_with_coded_weights_alone_learn(plan, samples):
    with torch.random.fork_rng():
        torch.manual_seed(3)
        mlp = capture(nn.Sequential(nn.Flatten(), nn.Linear(256, 32), nn.ReLU(), nn.Linear(32, 5)).eval(), samples[0][:2])
    quantized = apply(mlp, plan(mlp))
    assert torch.equal(quantized.run(samples[0], coder=LearnedQuantizers(quantized).code), quantized(samples[0]))
    tuned = fit(quantized, samples, teacher=mlp, epochs=1, recipe=LEARNING)
    assert all(tuned.quantizers[name] != quantizer for name, quantizer in quantized.quantizers.items())


def test_survives_a_file(trained, samples, tmp_path):
    save(trained, tmp_path / "m.gossamer")
    loaded = load(tmp_path / "m.gossamer")
    assert same(loaded, trained)
    assert torch.equal(loaded(samples[0]), trained(samples[0]))


@settings(max_examples=4)
@given(networks(), st.sampled_from(["uint8", "uint4"]))
def test_random_networks_stay_exact_on_the_target(network, activations):
    x = torch.randn(16, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    program = capture(network.eval(), x[:2])
    quantized = apply(program, plan_quantization(program, x, weights="int4", activations=activations))
    learned = LearnedQuantizers(quantized)
    assert torch.equal(quantized.run(x, coder=learned.code), quantized(x))
    recipe = Recipe(learning_rate=0.01, quantizer_learning_rate=0.1, batch_size=4)  # ten times what is sensible
    tuned = fit(quantized, x, teacher=program, epochs=2, recipe=recipe)
    with TemporaryDirectory() as folder:
        check_exact(tuned, x[:4], Path(folder))


def test_a_float_network_has_nothing_to_learn(program, samples):
    with pytest.raises(ConfigError, match=r"Recipe.quantizer_learning_rate must be None for a network without integer codes"):
        fit(program, samples, epochs=1, recipe=LEARNING)
