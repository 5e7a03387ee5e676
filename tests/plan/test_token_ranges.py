import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from gossamer.apply.engine import apply
from gossamer.numerics.affine import fake_quantize, from_range
from gossamer.numerics.formats import IntFormat, PerTensor
from gossamer.plan.quantization import plan_quantization
from gossamer.plan.scheme import Scheme
from gossamer.plan.token_ranges import least_token_error
from gossamer.program.capture import capture

UINT8, INT8 = IntFormat(bits=8, signed=False), IntFormat(bits=8)


def relative_error(rows, weight, quantizer):
    """Of every output, not of probes."""
    out = rows @ weight.T
    wrong = fake_quantize(rows, quantizer) @ weight.T - out
    return float((wrong.square().sum(1) / out.square().sum(1)).mean())


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10**6), st.floats(1, 60), st.booleans())
def test_never_much_worse_than_the_full_range_and_far_better_beside_outliers(seed, outlier, symmetric):
    generator = torch.Generator().manual_seed(seed)
    rows, weight = torch.randn(256, 32, generator=generator), torch.randn(48, 32, generator=generator)
    rows[::64, 3] = outlier  # one number in each of a few tokens
    low, high = min(float(rows.min()), 0), float(rows.max())
    fmt = INT8 if symmetric else UINT8
    full = from_range(torch.tensor(low), torch.tensor(high), fmt, PerTensor(), symmetric=symmetric)
    found = least_token_error(rows, weight, low, high, fmt, symmetric=symmetric)
    assert relative_error(rows, weight, found) <= 1.1 * relative_error(rows, weight, full)
    assert found.scale[0] <= full.scale[0] * (1 + 1e-6)
    assert found.zero_point == (0,) or not symmetric


class Perceptron(nn.Module):
    """Tokens through two layers; some tokens are far larger than the others."""

    def __init__(self):
        super().__init__()
        self.up, self.down, self.norm = nn.Linear(16, 32), nn.Linear(32, 16), nn.LayerNorm(16)

    def forward(self, x):
        return self.norm(self.down(nn.functional.gelu(self.up(x))))


@pytest.fixture(scope="module")
def samples():
    x = torch.randn(32, 20, 16, generator=torch.Generator().manual_seed(0))
    x[::8, 0] *= 30
    return x


def test_tokens_behind_a_norm_lose_less_than_with_other_ranges(samples):
    torch.manual_seed(0)
    program = capture(Perceptron().eval(), samples[:2])
    with torch.no_grad():
        true = program(samples)
        noise = {
            ranges: float(
                (apply(program, plan_quantization(program, samples, scheme=Scheme(ranges=ranges))).eval()(samples) - true).square().sum()
            )
            for ranges in ("auto", "mse", "min-max")
        }
    assert noise["auto"] < 0.7 * min(noise["mse"], noise["min-max"])


@pytest.mark.parametrize(
    "network",
    [nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(288, 4)), nn.Sequential(nn.Flatten(), nn.Linear(192, 4))],
)
def test_networks_without_tokens_get_the_ranges_of_mse(network):
    images = torch.randn(16, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    program = capture(network.eval(), images[:2])
    one, two = (plan_quantization(program, images, scheme=Scheme(ranges=ranges)) for ranges in ("auto", "mse"))
    assert one.edits == two.edits
    assert plan_quantization(program, images).edits == one.edits  # the default
