"""Sessions with session.x64quantprecision, which processors without VNNI need, on files that ONNX Runtime's replacing of weights has trouble with."""

import pytest
import torch
from torch import nn

import gossamer as gs
from gossamer.plan.dynamic import plan_dynamic_quantization
from gossamer.targets.onnx import run
from gossamer.targets.parity import check_parity, open_artifact


class Norms(nn.Module):
    """Batch norms in front of layers: their codes are all 127, so alike for both, and scales differ."""

    def __init__(self):
        super().__init__()
        self.norms = nn.ModuleList([nn.BatchNorm2d(8) for _ in range(2)])
        self.convs = nn.ModuleList([nn.Conv2d(8, 8, 3, padding=1) for _ in range(2)])
        for position, norm in enumerate(self.norms):
            nn.init.constant_(norm.weight, 0.5 + position)

    def forward(self, x):
        for norm, conv in zip(self.norms, self.convs, strict=True):
            x = x + conv(norm(x).relu())
        return x.mean((2, 3))


class Tied(nn.Module):
    """One linear layer, three times."""

    def __init__(self):
        super().__init__()
        self.layer, self.head = nn.Linear(16, 16), nn.Linear(16, 4)

    def forward(self, x):
        for _ in range(3):
            x = self.layer(x).relu()
        return self.head(x)


def by_channel():
    """A depthwise convolution whose codes stay what they are, since a function that has none follows."""
    return nn.Sequential(nn.Conv2d(8, 8, 3, groups=8), nn.Mish(), nn.Conv2d(8, 4, 1), nn.Softplus(), nn.ConvTranspose2d(4, 6, 2))


CASES = {
    "equal codes of two layers": (Norms, (8, 6, 6)),
    "codes that stay": (by_channel, (8, 6, 6)),
    "one layer several times": (Tied, (16,)),
    "rows": (Tied, (5, 16)),
}


@pytest.mark.parametrize("kind", ["static", "dynamic"])
@pytest.mark.parametrize("case", CASES)
def test_they_open_and_compute_what_is_simulated(case, kind, tmp_path, monkeypatch):
    monkeypatch.setattr(run, "saturates", lambda: True)
    make, shape = CASES[case]
    torch.manual_seed(0)
    samples = torch.randn(32, *shape)
    program = gs.capture(make().eval(), samples[:2])
    plan = gs.plan_quantization(program, samples) if kind == "static" else plan_dynamic_quantization(program)
    artifact = gs.export(gs.apply(program, plan), tmp_path / "m.onnx")
    parity = check_parity(artifact, open_artifact(artifact, threads=1), (samples,))
    assert parity.values_compared
    assert parity.max_steps <= 1
    assert parity.output_error < 1e-3


def test_files_that_cannot_saturate_run_without_the_setting(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(run, "saturates", lambda: asked.append(1) or True)
    torch.manual_seed(0)
    samples = torch.randn(32, 8, 6, 6)
    program = gs.capture(nn.Sequential(nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(128, 4)).eval(), samples[:2])
    for weights, needed in (("int7", False), ("int8", True)):
        asked.clear()
        artifact = gs.export(gs.apply(program, gs.plan_quantization(program, samples, weights=weights)), tmp_path / f"{weights}.onnx")
        for values in (False, True):
            run.open_session(artifact.path, threads=1, values=values)
        assert bool(asked) == needed
