"""Convolutions of several groups, and values that repeat along any axes: on every core the bits that the simulation says."""

import shutil

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import gossamer as gs
from gossamer.targets.cortex_m import cmsis
from gossamer.targets.cortex_m.run import COMPILER, EMULATOR, INSTALL, open_on
from gossamer.targets.parity import check_parity

pytestmark = pytest.mark.skipif(not (shutil.which(COMPILER) and shutil.which(EMULATOR)), reason=f"needs {INSTALL}")


class Grouped(nn.Module):
    """Groups of every kind: with steps, borders and dilation, of one input channel each, over one axis, and behind a float value."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 12, 3, padding=1)
        self.second = nn.Conv2d(12, 18, 3, 2, 1, groups=3)
        self.third = nn.Conv2d(18, 12, (1, 3), groups=6, padding=(0, 2), dilation=(1, 2))
        self.points, self.line = nn.Conv2d(12, 24, 1, groups=12), nn.Conv1d(24, 8, 3, groups=4)

    def forward(self, x):
        x = F.relu(self.third(F.relu6(self.second(F.relu(self.first(x))))))
        return self.line(self.points(x).flatten(2)).softmax(1)


def coded(network, samples, path, target="cortex_m"):
    program = gs.capture(network.eval(), samples[:2])
    plan = gs.plan_quantization(program, samples, target, scheme=gs.Scheme(rounding="nearest"))
    return plan, gs.export(gs.apply(program, plan), path, target)


def exact(artifact, samples, core="cortex-m55"):
    parity = check_parity(artifact, open_on(artifact.path, core, values=True), (samples,))
    assert parity.max_steps == 0, [layer for layer in parity.layers if layer.max_steps]
    assert parity.output_error < 1e-6
    return len(parity.layers)


@pytest.mark.parametrize(
    ("kernels", "core"),
    [
        ("cortex_m", "cortex-m4"),
        ("cortex_m", "cortex-m7"),
        ("cortex_m", "cortex-m55"),
        ("cmsis_nn", "cortex-m4"),
        ("cmsis_nn", "cortex-m55"),
    ],
)
def test_grouped_convolutions_on_every_core(kernels, core, tmp_path):
    if kernels == "cmsis_nn" and cmsis.sources() is None:
        pytest.skip(f"needs {cmsis.INSTALL}")
    torch.manual_seed(0)
    samples = torch.randn(6, 3, 11, 9)
    plan, artifact = coded(Grouped(), samples, tmp_path / "net.c", kernels)
    assert not [found for found in plan.frozen if "Conv" in found.where]
    assert exact(artifact, samples[:1], core) >= 6


def test_grouped_convolutions_of_floats(tmp_path):
    torch.manual_seed(0)
    samples = torch.randn(3, 4, 7, 6)
    network = nn.Sequential(nn.Conv2d(4, 6, 3, 2, 1, groups=2), nn.ReLU(), nn.ConvTranspose2d(6, 4, 3, 2, groups=2), nn.Flatten(2))
    program = gs.capture(network.eval(), samples[:2])
    artifact = gs.export(program, tmp_path / "net.c", "cortex_m")
    torch.testing.assert_close(
        torch.from_numpy(open_on(artifact.path, "cortex-m4").run(samples.numpy())), program(samples).detach(), rtol=1e-4, atol=1e-5
    )


class Pairs(nn.Module):
    """Sums, differences and products of codes along every mixture of axes."""

    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 3)

    def forward(self, x):
        a, b = self.one(x), self.two(x)
        rows, columns = F.max_pool2d(a, (1, a.shape[3])), F.max_pool2d(b, (b.shape[2], 1))
        return F.relu(rows + columns) * (a + columns) - rows * (b - rows) + b[:, :1] * a + (a[:, 1:2] - columns)


@pytest.mark.parametrize("core", ["cortex-m4", "cortex-m55"])
def test_values_that_repeat_along_any_axes(core, tmp_path):
    torch.manual_seed(0)
    samples = torch.randn(6, 3, 7, 8)
    plan, artifact = coded(Pairs(), samples, tmp_path / "net.c")
    assert not plan.frozen
    assert exact(artifact, samples[:2], core) > 12


def test_floats_that_repeat_along_any_axes(tmp_path):
    class Floats(nn.Module):
        def __init__(self):
            super().__init__()
            self.table, self.rows = nn.Parameter(torch.randn(4, 1, 8)), nn.Parameter(torch.randn(7, 1))

        def forward(self, x):
            return (x + self.table) * self.rows - (self.table - x[:, :1]) * (self.rows + self.table)

    torch.manual_seed(0)
    samples = torch.randn(3, 4, 7, 8)
    program = gs.capture(Floats().eval(), samples[:2])
    artifact = gs.export(program, tmp_path / "net.c", "cortex_m")
    found = torch.from_numpy(open_on(artifact.path, "cortex-m4").run(samples.numpy()))
    torch.testing.assert_close(found, program(samples).detach(), rtol=1e-5, atol=1e-5)
