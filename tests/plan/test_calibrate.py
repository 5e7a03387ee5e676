from dataclasses import replace

import pytest
import torch
from torch import nn

from gossamer.batches import as_batches
from gossamer.errors import DataError
from gossamer.numerics.patches import as_columns, conv_patches
from gossamer.plan import calibrate as module
from gossamer.plan.calibrate import calibrate
from gossamer.plan.placement import place_quantizers
from gossamer.plan.spec import specs
from gossamer.program.capture import capture
from gossamer.targets import onnx as onnx


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(8, 6, 3, padding=1, stride=2)
        self.second = nn.Conv2d(6, 6, 3, padding="same", groups=6)
        self.head = nn.Linear(6, 4)

    def forward(self, x):
        y = self.second(torch.relu(self.first(x)))
        return self.head(y.mean((2, 3)))


@pytest.fixture(scope="module")
def program():
    torch.manual_seed(0)
    return capture(Net().eval(), torch.randn(2, 8, 9, 9))


@pytest.fixture(scope="module")
def samples():
    return torch.randn(24, 8, 9, 9, generator=torch.Generator().manual_seed(1))


def run(program, data, **changes):
    arguments = {"ranges": "min-max", "second_moments": True} | changes
    return calibrate(program, as_batches(data, what="calibration"), place_quantizers(program, specs["onnxruntime"]), **arguments)


def test_extremes_are_those_of_the_values_whatever_the_batches(program, samples):
    seen = run(program, samples)
    parts = run(program, list(samples.split(5)))
    values = {}
    with torch.no_grad():
        program.run(samples, observe=lambda name, value: values.update({name: value}) if isinstance(value, torch.Tensor) else None)
    for name, spread in seen.spreads.items():
        assert spread.low == pytest.approx(float(values[name].min()), abs=1e-5)
        assert spread.high == pytest.approx(float(values[name].max()), abs=1e-5)
        assert parts.spreads[name].low == pytest.approx(spread.low, abs=1e-5)
        assert parts.spreads[name].high == pytest.approx(spread.high, abs=1e-5)


def test_moments_are_those_of_all_positions_where_there_are_few(program, samples, monkeypatch):
    monkeypatch.setattr(module, "FEWEST_SAMPLES", 10**6)
    seen = run(program, samples).moments
    every = {"stride": (2, 2), "padding": (1, 1), "dilation": (1, 1), "groups": 1, "limit": 10**6, "generator": torch.Generator()}
    columns = as_columns(conv_patches(samples, (3, 3), **every))[0]
    found = seen["conv2d"]
    torch.testing.assert_close(found.mean[0].float(), columns.mean(1), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(found.covariance(centred=True)[0], torch.cov(columns, correction=0), atol=1e-3, rtol=1e-3)
    assert found.count == columns.shape[1]
    assert seen["conv2d_1"].second.shape == (6, 9, 9)
    assert seen["linear"].count == len(samples)


def test_wide_layers_have_no_second_moments(program, samples, monkeypatch):
    monkeypatch.setattr(module, "WIDEST", 10)
    seen = run(program, samples).moments
    assert seen["conv2d"].second is None
    assert seen["conv2d_1"].second is not None
    assert run(program, samples, second_moments=False).moments["linear"].second is None


def test_wide_layers_that_are_asked_for_have_second_moments_in_blocks(program, samples, monkeypatch):
    whole = run(program, samples).moments["conv2d"]
    monkeypatch.setattr(module, "WIDEST", len(whole.total[0]) // 2)
    monkeypatch.setattr(module, "FEWEST_SAMPLES", 10**6)
    monkeypatch.setattr(module, "SAMPLES_PER_COLUMN", 10**6)
    found = run(program, samples, wide=["conv2d"]).moments["conv2d"]
    half = len(whole.total[0]) // 2
    assert found.second.shape == (2, half, half)
    monkeypatch.setattr(module, "WIDEST", 10**6)
    every = run(program, samples).moments["conv2d"].covariance(centred=True)[0]
    for block, place in zip(found.covariance(centred=True), (slice(0, half), slice(half, None)), strict=True):
        torch.testing.assert_close(block, every[place, place], atol=1e-3, rtol=1e-3)


def test_memory_does_not_grow_with_the_samples(program, samples):
    few, many = run(program, samples), run(program, [samples] * 20)
    size = [sum(moments.second.numel() for moments in seen.moments.values()) for seen in (few, many)]
    assert size[0] == size[1]
    assert many.moments["conv2d"].count < 20 * 600  # positions are spread over all samples


def test_mode_and_weights_of_the_program_stay(program, samples):
    before = {name: tensor.clone() for name, tensor in program.state.items()}
    program.train()
    run(program, samples)
    assert program.training
    assert all(torch.equal(before[name], tensor) and tensor.is_contiguous() for name, tensor in program.state.items())
    program.eval()


def test_a_network_of_a_fixed_batch_gets_whole_batches(program, samples, monkeypatch):
    monkeypatch.setattr(module, "CHUNK_ELEMENTS", samples[0].numel())
    sizes = []
    fixed = program.with_graph(program.graph)
    fixed.inputs = tuple(replace(spec, shape=(8, *spec.shape[1:])) for spec in fixed.inputs)
    for network in (program, fixed):
        parts = [chunk for inputs, _ in as_batches(list(samples.split(8)), what="x") for chunk in module.chunks(network, inputs)]
        sizes.append([chunk[0].shape[0] for chunk in parts])
    assert sizes == [[1] * 24, [8] * 3]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([], "the calibration data is empty"),
        (torch.zeros(4, 8, 9, 9), "never varies \\(every number of 'x' is 0\\); give real samples"),
        (torch.ones(4, 3, 9, 9), "got a tensor of shape"),
        (torch.full((4, 8, 9, 9), torch.nan), "holds NaN or infinite values"),
    ],
)
def test_data_that_cannot_be_used(program, data, message):
    with pytest.raises(DataError, match=message):
        run(program, data)


def test_nan_inside_the_network_names_the_value(samples):
    torch.manual_seed(0)
    program = capture(Net().eval(), samples[:2])
    with torch.no_grad():
        program.state["first.weight"].fill_(3e38)
    with pytest.raises(DataError, match="the value 'relu' is NaN or infinite on the calibration data; check the weights"):
        run(program, samples)
