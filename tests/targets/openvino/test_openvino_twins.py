"""Layers with equal weights and biases of their own that read one value, which OpenVINO merges: each keeps its bias."""

import copy

import pytest
import torch
from torch import nn

import gossamer as gs
from gossamer.targets.parity import check_parity
from gossamer.targets.target import targets

pytest.importorskip("openvino")


class Twins(nn.Module):
    """Three layers that read one value with one weight (`tied`: one parameter, else equal ones) and different biases."""

    def __init__(self, layer, head, *, tied):
        super().__init__()
        self.layers, self.head = nn.ModuleList(copy.deepcopy(layer) for _ in range(3)), head
        for place, twin in enumerate(self.layers):
            twin.bias.data = torch.randn(twin.bias.shape) * (1 + place)
            if tied:
                twin.weight = self.layers[0].weight

    def forward(self, x):
        one, two, three = (layer(x).relu() for layer in self.layers)
        return self.head(one * two + three)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(
    ("layer", "head", "shape"),
    [
        (nn.Linear(8, 8), nn.Linear(8, 4), (8,)),
        (nn.Linear(8, 8), nn.Linear(8, 4), (5, 8)),
        (nn.Conv2d(4, 8, 3, 2, 1), nn.Conv2d(8, 4, 1), (4, 8, 9)),
        (nn.Conv2d(4, 8, 3, groups=4), nn.Conv2d(8, 4, 1), (4, 6, 6)),
        (nn.Conv1d(4, 8, 3, padding=1), nn.Conv1d(8, 4, 1), (4, 9)),
    ],
    ids=["linear", "rows", "strided", "depthwise", "one axis"],
)
def test_equal_layers_of_one_value_keep_their_biases(layer, head, shape, tied, tmp_path):
    torch.manual_seed(0)
    samples = torch.randn(16, *shape)
    program = gs.capture(Twins(layer, head, tied=tied).eval(), samples[:2])
    plan = gs.plan_quantization(
        program, samples, "openvino", weights=targets["openvino"].exact_weights(), scheme=gs.Scheme(rounding="nearest")
    )
    for name, network in (("float", program), ("coded", gs.apply(program, plan))):
        artifact = gs.export(network, tmp_path / f"{name}.onnx", "openvino")
        runner = targets["openvino"].open(artifact.path, threads=1, values=name == "coded")
        if name == "float":
            torch.testing.assert_close(torch.from_numpy(runner.run(samples.numpy())), program(samples).detach(), rtol=1e-4, atol=1e-5)
            continue
        parity = check_parity(artifact, runner, (samples,))
        assert parity.max_steps <= 1, [layer for layer in parity.layers if layer.max_steps]  # sums and biases may decide a tie
        plain = torch.from_numpy(targets["openvino"].open(artifact.path, threads=1).run(samples.numpy()))
        far = (plain - gs.simulate(network, samples)).abs().max() / plain.abs().max()
        assert far < 0.05
