"""LiteRT for Microcontrollers on its own interpreter: bit for bit the simulation."""

import importlib.util
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from gossamer.apply.engine import apply
from gossamer.errors import ConfigError
from gossamer.numerics.fixed_point import divide_by_power, mean_multiplier, multiply, quantize_multiplier
from gossamer.plan.quantization import plan_quantization
from gossamer.program.capture import capture
from gossamer.targets.coded_ends import open_artifact
from gossamer.targets.export import export
from gossamer.targets.parity import check_parity, parity_problems
from gossamer.targets.simulate import simulate
from gossamer.targets.target import targets
from gossamer.targets.verify import verify

pytest.importorskip("tflite_micro")
_spec = importlib.util.spec_from_file_location("tiny_networks", Path(__file__).parents[3] / "benchmarks" / "tiny_networks.py")
tiny = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(tiny)


def quantized(network, samples):
    program = capture(network.eval(), samples[:2])
    return program, apply(program, plan_quantization(program, samples, "tflm"))


@pytest.mark.parametrize("name", tiny.NETWORKS)
def test_the_mlperf_tiny_networks_are_bit_exact(name, tmp_path):
    make, shape = tiny.NETWORKS[name]
    torch.manual_seed(0)
    samples = torch.randn(8, *shape)
    network = make()
    network(samples)  # gives the batch norm statistics
    _, coded = quantized(network, samples)
    artifact = export(coded, tmp_path / "m.tflite", "tflm")
    runner = targets["tflm"].open(artifact.path, threads=1)
    parity = check_parity(artifact, runner, (samples[:2],))
    assert parity.max_steps == 0
    assert parity.output_error == 0
    assert len(parity.layers) >= 10
    assert 0 < runner.arena_bytes() < 512 * 1024


class Mixed(nn.Module):
    """Joins, products and pads next to convolutions."""

    def __init__(self):
        super().__init__()
        self.one, self.two, self.three = nn.Conv2d(4, 8, 3, 2, 1), nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.Conv2d(16, 8, 1)
        self.head = nn.Linear(128, 6)

    def forward(self, x):
        x = torch.relu(self.one(x))
        y = self.two(x)
        y = nn.functional.relu6(self.three(torch.cat([x, y], 1))) * y
        return self.head(nn.functional.max_pool2d(y + x, 2).flatten(1))


def test_joins_products_and_sums(tmp_path):
    torch.manual_seed(1)
    samples = torch.randn(16, 4, 16, 16)
    program, coded = quantized(Mixed(), samples)
    artifact = export(coded, tmp_path / "m.tflite", "tflm")
    report = verify(artifact, reference=program, data=(samples, program(samples).argmax(1)), batch=4)
    assert report.passed, report.problems
    assert report.parity.max_steps == 0
    assert report.parity.values_compared > 16 * 1000


def test_rounding_of_both_runtimes_differs_somewhere():
    """The simulators of LiteRT's two runtimes are two: the same codes, and yet other results."""
    torch.manual_seed(2)
    samples = torch.randn(64, 8, 12, 12)
    program = capture(nn.Sequential(nn.Conv2d(8, 32, 3), nn.ReLU(), nn.Conv2d(32, 32, 3)).eval(), samples[:2])
    results = [simulate(apply(program, plan_quantization(program, samples, target)), samples) for target in ("litert", "tflm")]
    assert not torch.equal(*results)
    assert (results[0] - results[1]).abs().max() < 0.02 * results[0].abs().max()


def test_more_threads_than_one_are_refused(tmp_path):
    samples = torch.randn(8, 3, 8, 8)
    _, coded = quantized(nn.Sequential(nn.Conv2d(3, 4, 3)), samples)
    path = export(coded, tmp_path / "m.tflite", "tflm").path
    with pytest.raises(ConfigError, match="threads must be 1, as microcontrollers have"):
        targets["tflm"].open(path, threads=2)


@given(st.floats(1e-9, 100), st.lists(st.integers(-(2**24), 2**24), min_size=1, max_size=20))
@settings(deadline=None)
def test_fixed_point_is_multiplication_to_a_last_bit(factor, numbers):
    values = torch.tensor(numbers)
    got = multiply(values, *quantize_multiplier(factor))
    exact = values.double() * factor
    assert bool(((got - exact).abs() <= 1 + exact.abs() * 2.0**-30).all())


@given(st.integers(-(2**40), 2**40), st.integers(0, 20))
def test_halves_go_away_from_zero(value, exponent):
    got = int(divide_by_power(torch.tensor(value), torch.tensor(exponent)))
    size = (abs(value) + (1 << exponent >> 1)) >> exponent
    assert got == (size if value >= 0 else -size)


@given(st.floats(1e-4, 4), st.integers(1, 5000))
def test_the_multiplier_of_a_mean(factor, count):
    multiplier, exponent = mean_multiplier(factor, count)
    assert multiplier * 2.0 ** (exponent - 31) == pytest.approx(factor / count, rel=1e-6 * count**0.5 + 1e-7)
    assert multiplier < 2**31


def test_values_whose_batch_is_not_the_first_axis_are_compared_sample_by_sample(tmp_path):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 8)

        def forward(self, x):
            return self.second(torch.relu(self.first(x)).transpose(0, 1)).mean(0)

    torch.manual_seed(0)
    x = torch.randn(16, 4, 8)
    program = capture(Net().eval(), x[:2])
    artifact = export(apply(program, plan_quantization(program, x, "tflm")), tmp_path / "m.tflite", "tflm")
    parity = check_parity(artifact, open_artifact(artifact, threads=1), (x[:3],))
    assert parity_problems(parity, artifact, "the file") == []
