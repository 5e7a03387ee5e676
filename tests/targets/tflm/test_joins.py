"""The interpreter takes ten parts of a join at once; networks may join more."""

import pytest
import torch
from torch import nn

from gossamer.apply.engine import apply
from gossamer.plan.quantization import plan_quantization
from gossamer.program.capture import capture
from gossamer.targets.export import export
from gossamer.targets.parity import check_parity
from gossamer.targets.target import targets

pytest.importorskip("tflite_micro.python.tflite_micro")


class Joined(nn.Module):
    """`parts` convolutions of one value, joined by channel."""

    def __init__(self, parts):
        super().__init__()
        self.parts = nn.ModuleList(nn.Conv2d(3, 1 + place % 3, 1) for place in range(parts))
        self.last = nn.Conv2d(sum(1 + place % 3 for place in range(parts)), 4, 1)

    def forward(self, x):
        return self.last(torch.cat([part(x) for part in self.parts], 1))


@pytest.mark.parametrize("parts", [10, 11, 21, 102])
def test_joins_of_any_length_run(parts, tmp_path):
    torch.manual_seed(0)
    samples = torch.randn(8, 3, 4, 4)
    program = capture(Joined(parts).eval(), samples[:2])
    path = export(program, tmp_path / "float.tflite", "tflm").path
    got = targets["tflm"].open(path, threads=1).run(samples.numpy())
    torch.testing.assert_close(torch.from_numpy(got), program(samples), atol=1e-5, rtol=1e-4)
    artifact = export(apply(program, plan_quantization(program, samples, "tflm")), tmp_path / "int8.tflite", "tflm")
    parity = check_parity(artifact, targets["tflm"].open(artifact.path, threads=1), (samples,))
    assert (parity.max_steps, parity.output_error) == (0, 0)


def test_a_recurrent_network_of_many_steps_runs(tmp_path):
    torch.manual_seed(0)

    class Recurrent(nn.Module):
        def __init__(self):
            super().__init__()
            self.steps, self.head = nn.GRU(4, 6, batch_first=True), nn.Linear(6, 3)

        def forward(self, x):
            return self.head(self.steps(x)[0])

    samples = torch.randn(4, 20, 4)
    program = capture(Recurrent().eval(), samples[:2])
    path = export(program, tmp_path / "net.tflite", "tflm").path
    got = targets["tflm"].open(path, threads=1).run(samples.numpy())
    torch.testing.assert_close(torch.from_numpy(got), program(samples), atol=1e-5, rtol=1e-4)
