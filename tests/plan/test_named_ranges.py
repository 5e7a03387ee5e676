"""Every named way to choose ranges, from the plan to the runtime's file."""

import math

import pytest
import torch
from torch import nn

from gossamer.apply.engine import apply
from gossamer.numerics.ranges import range_methods, weight_range_methods
from gossamer.plan.quantization import plan_quantization
from gossamer.plan.scheme import Scheme
from gossamer.program.capture import capture
from gossamer.targets.export import export
from gossamer.targets.verify import verify


@pytest.fixture(scope="module")
def samples():
    return torch.randn(40, 8, 6, 6, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def program(samples):
    torch.manual_seed(0)
    layers = [nn.Conv2d(8, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.Flatten(), nn.Linear(64, 5)]
    return capture(nn.Sequential(*layers).eval(), samples[:2])


@pytest.mark.parametrize("scheme", [Scheme(ranges=name) for name in range_methods.names()], ids=lambda scheme: scheme.ranges)
def test_ranges_of_values_reach_the_file(program, samples, tmp_path, scheme):
    assert_reach_the_file(program, samples, tmp_path, scheme)


@pytest.mark.parametrize(
    "scheme", [Scheme(weight_ranges=name) for name in weight_range_methods.names()], ids=lambda scheme: scheme.weight_ranges
)
def test_ranges_of_weights_reach_the_file(program, samples, tmp_path, scheme):
    assert_reach_the_file(program, samples, tmp_path, scheme)


def assert_reach_the_file(program, samples, tmp_path, scheme):
    quantized = apply(program, plan_quantization(program, samples, scheme=scheme))
    report = verify(export(quantized, tmp_path / "m.onnx"), reference=program, data=(samples, torch.zeros(40, dtype=torch.long)), batch=8)
    assert report.problems == ()
    for name, quantizer in quantized.quantizers.items():
        chosen = scheme.weight_ranges if name.endswith("weight") else scheme.ranges
        if chosen == "integerization":
            assert {math.frexp(scale)[0] for scale in quantizer.scale} == {0.5}
