import math

import pytest
import torch
from torch import nn

from gossamer.apply.engine import apply
from gossamer.errors import DataError, PlanError
from gossamer.numerics.affine import fake_quantize
from gossamer.numerics.distance import sqnr_db
from gossamer.plan.edits import ScaleChannels
from gossamer.plan.quantization import plan_quantization
from gossamer.plan.scheme import Scheme
from gossamer.program.capture import capture
from gossamer.program.fold import fold_batch_norms
from gossamer.targets.value_errors import value_errors


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(8, 8, 3, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.last = nn.Conv2d(8, 4, 1)

    def forward(self, x):
        return self.last(nn.functional.silu(self.norm(self.conv(x))))


@pytest.fixture(scope="module")
def samples():
    return torch.randn(24, 8, 6, 6, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def program(samples):
    torch.manual_seed(0)
    return capture(Net().eval(), samples[:2])


@pytest.fixture(scope="module")
def quantized(program, samples):
    return apply(program, plan_quantization(program, samples))


def test_errors_are_those_of_the_values(program, quantized, samples):
    errors = value_errors(quantized, program, samples, samples=10)
    assert errors.keys() == {name for name in quantized.quantizers if name not in quantized.state}
    with torch.no_grad():
        x = samples[:12]  # whole chunks are used
        assert errors["x"] == pytest.approx(sqnr_db(x, fake_quantize(x, quantized.quantizers["x"])), abs=1e-3)
        assert errors["conv2d_1"] == pytest.approx(sqnr_db(program(x), quantized(x)), abs=1e-2)
        true, got = {}, {}
        fold_batch_norms(program).run(x, observe={"conv2d": lambda name, value: true.update({name: value})})
        quantized.run(x, observe={"conv2d": lambda name, value: got.update({name: value})})
    assert errors["conv2d"] == pytest.approx(sqnr_db(true["conv2d"], got["conv2d"]), abs=1e-2)  # behind the folded norm
    assert all(20 < error < math.inf for error in errors.values())


def test_programs_stay_in_their_mode(program, quantized, samples):
    program.train()
    value_errors(quantized, program, samples, samples=4)
    assert program.training
    program.eval()


def test_another_network_is_refused(quantized, samples):
    with pytest.raises(PlanError, match="the reference has no value"):
        value_errors(quantized, capture(nn.Sequential(nn.Tanh()), samples[:2]), samples)


def test_empty_data_is_refused(program, quantized):
    with pytest.raises(DataError, match="the reference data is empty"):
        value_errors(quantized, program, [])


def test_scale_that_was_moved_between_channels_is_no_error(samples):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 1)).eval()
    with torch.no_grad():
        network[0].weight[3] *= 50
    program = capture(network, samples[:2])
    plan = plan_quantization(program, samples, scheme=Scheme(equalization="smoothquant"))
    assert any(isinstance(edit, ScaleChannels) for edit in plan.edits)
    equalized = apply(program, plan)
    errors = value_errors(equalized, program, samples, plan=plan)
    assert min(errors.values()) > 25
    assert min(value_errors(equalized, program, samples).values()) < 20
