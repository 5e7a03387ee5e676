"""PReLU and leaky ReLU on codes: bit for bit the simulation on LiteRT, its interpreter for microcontrollers and emulated chips."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from gossamer.plan.quantization import plan_quantization
from gossamer.program.capture import capture
from gossamer.targets.export import export
from gossamer.targets.parity import check_parity
from gossamer.targets.target import targets
from targets.tflite.test_transposed import TARGETS, coded, needs


class Leaky(nn.Module):
    def __init__(self, slope):
        super().__init__()
        self.slope = slope

    def forward(self, x):
        return F.leaky_relu(x, self.slope)


def network(function, seed, scale=1.0):
    torch.manual_seed(seed)
    last = nn.Conv2d(4, 3, 1)
    first = nn.Conv2d(3, 4, 1)
    nn.init.normal_(first.weight, std=scale)
    return nn.Sequential(first, function, last)


def slopes(numbers):
    layer = nn.PReLU(len(numbers))
    layer.weight.data = torch.tensor(numbers)
    return layer


NUMBERS = st.integers(-1024, 2048).map(lambda number: number / 1000) | st.sampled_from([0.0, 0.25, 0.01, 1.0, -1.0, 1e-4])


@pytest.mark.parametrize("target", ["litert", "tflm"])
@given(st.lists(NUMBERS, min_size=4, max_size=4), NUMBERS, st.integers(0, 999), st.sampled_from([0.05, 1.0, 6.0]))
@settings(max_examples=15, deadline=None)
def test_slopes_of_any_size(tmp_path_factory, target, numbers, one, seed, scale):
    needs(target)
    samples = torch.randn(8, 3, 6, 7, generator=torch.Generator().manual_seed(seed))
    for function in (slopes([one]), Leaky(one), slopes(numbers)):
        _, plan, artifact = coded(network(function, seed, scale), samples, target, tmp_path_factory.mktemp("slopes"))
        assert [item.where for item in plan.frozen] == ([] if target == "tflm" or one_slope(function) else ["1 (PRelu)"])
        parity = check_parity(artifact, targets[target].open(artifact.path, threads=1), (samples[:3],))
        assert parity.max_steps == 0


def one_slope(function):
    return isinstance(function, Leaky) or function.weight.numel() == 1


@pytest.mark.parametrize("numbers", [[0.25], [0.1, -0.4, 0.0, 1.5]])
def test_chips_compute_the_same(numbers, tmp_path):
    needs("cortex_m")
    samples = torch.randn(8, 3, 6, 7)
    program, plan, artifact = coded(network(slopes(numbers), 0), samples, "cortex_m", tmp_path)
    assert not plan.frozen
    assert ("gs_lookup_s8" if len(numbers) == 1 else "gs_prelu_s8") in artifact.path.read_text()
    parity = check_parity(artifact, targets["cortex_m"].open(artifact.path, threads=1), (samples[:3],))
    assert (parity.max_steps, parity.output_error) == (0, 0)
    path = export(program, tmp_path / "float.c", "cortex_m").path
    got = targets["cortex_m"].open(path, threads=1).run(samples[:3].numpy())
    torch.testing.assert_close(torch.from_numpy(got), program(samples[:3]))


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("make", [lambda: nn.Linear(12, 16), lambda: nn.Conv1d(3, 16, 1)], ids=["rows", "one axis"])
def test_slopes_meet_their_channels_wherever_those_lie(target, make, tmp_path):
    needs(target)
    torch.manual_seed(0)
    first = make()
    samples = torch.randn(8, 12) if isinstance(first, nn.Linear) else torch.randn(8, 3, 9)
    net = nn.Sequential(
        first,
        slopes(torch.linspace(-0.5, 1.5, 16).tolist()),
        nn.Flatten(),
        nn.Linear(16 * samples[0].numel() // (12 if samples.dim() == 2 else 3), 3),
    )
    program, _, artifact = coded(net, samples, target, tmp_path)
    parity = check_parity(artifact, targets[target].open(artifact.path, threads=1), (samples[:3],))
    assert parity.max_steps == 0
    runner = targets[target].open(export(program, tmp_path / f"float{artifact.path.suffix}", target).path, threads=1)
    torch.testing.assert_close(torch.from_numpy(runner.run(samples.numpy())), program(samples), atol=1e-5, rtol=1e-4)


def test_flattened_channels_meet_their_slopes(tmp_path):
    """They lie in another order in the file than in the network."""
    needs("litert")
    torch.manual_seed(0)
    samples = torch.randn(8, 3, 2, 3)
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Flatten(), slopes(torch.linspace(-1, 2, 24).tolist()), nn.Linear(24, 3)).eval()
    program = capture(net, samples[:2])
    runner = targets["litert"].open(export(program, tmp_path / "m.tflite", "litert").path, threads=1)
    torch.testing.assert_close(torch.from_numpy(runner.run(samples.numpy())), program(samples), atol=1e-5, rtol=1e-4)


def test_computed_slopes_say_why_they_stay_float():
    class Computed(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.slope = nn.Conv2d(3, 4, 1), nn.Parameter(torch.ones(1))

        def forward(self, x):
            return F.prelu(self.conv(x), self.slope.tanh())

    samples = torch.randn(8, 3, 6, 7)
    plan = plan_quantization(capture(Computed().eval(), samples[:2]), samples, "tflm")
    assert any(item.reason == "its slopes are computed, not stored" for item in plan.frozen)
