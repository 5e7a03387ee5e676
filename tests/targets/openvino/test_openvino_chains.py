"""OpenVINO computes what the simulation does: random networks, and what it gets wrong unless files are written another way.

GOSSAMER_CHAINS=1000 runs as many networks.
"""

import os

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import nn

from chains import random_network
from gossamer.apply.engine import apply
from gossamer.errors import UnsupportedOp
from gossamer.plan.quantization import plan_quantization
from gossamer.plan.scheme import Scheme
from gossamer.program.capture import capture
from gossamer.targets.export import export
from gossamer.targets.openvino.run import open_model
from gossamer.targets.parity import check_parity, parity_problems
from gossamer.targets.target import targets

pytest.importorskip("openvino")
SIGNED = "int8" if targets["openvino"].exact_weights() == "int8" else "uint8"  # see test_signed_values_are_warned_of
EXAMPLES = int(os.environ.get("GOSSAMER_CHAINS", "2"))


def problems_of(network, x, path, *, quantized=True, scheme=None, **formats) -> list[str]:
    """What parity finds wrong with a network."""
    program = capture(network.eval(), x[:2])
    if quantized:
        formats = {"weights": targets["openvino"].exact_weights()} | formats
        program = apply(program, plan_quantization(program, x, "openvino", scheme=scheme or Scheme(), **formats))
    artifact = export(program, path, "openvino")
    return parity_problems(check_parity(artifact, open_model(path, threads=1), (x[:4],)), artifact, "the network")


@settings(max_examples=EXAMPLES, deadline=None)
@given(seed=st.integers(0, 10**6))
@example(seed=4)  # a counted border of an average pool
@example(seed=16)  # a step behind padding
@example(seed=91)  # a transposed convolution behind a join
def test_random_chains_on_openvino(seed, tmp_path_factory):
    network, shape = random_network(seed)
    x = torch.randn(6, *shape, generator=torch.Generator().manual_seed(seed)) * (1 + seed % 3) + 0.3 * (seed % 2)
    formats = {"weights": (targets["openvino"].exact_weights(), "int7")[seed % 2], "activations": ("uint8", SIGNED)[seed // 2 % 2]}
    scheme = Scheme(rounding="nearest" if seed % 2 else "second-order")
    assert problems_of(network, x, tmp_path_factory.mktemp("chains") / "m.onnx", scheme=scheme, **formats) == []


PIXELS = {
    "same on all sides": nn.Conv2d(8, 8, 1, stride=2, padding=1),
    "a pad before it": nn.Sequential(nn.ZeroPad2d((1, 0, 0, 2)), nn.Conv2d(8, 8, 1, stride=(2, 3))),
    "more padding than step": nn.Conv2d(8, 8, 1, stride=2, padding=3),
    "along one axis": nn.Conv2d(8, 8, 1, stride=(2, 1), padding=(1, 0)),
}


@pytest.mark.parametrize("quantized", [False, True])
@pytest.mark.parametrize("layer", PIXELS.values(), ids=PIXELS)
def test_a_step_behind_padding_is_computed_right(layer, quantized, tmp_path):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(8, 8, 3), nn.ReLU(), layer)
    assert problems_of(network, torch.randn(8, 8, 11, 10), tmp_path / "m.onnx", quantized=quantized) == []


def test_one_that_reads_nothing_but_padding_is_refused(tmp_path):
    network = nn.Sequential(nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1, stride=20, padding=1))
    with pytest.raises(UnsupportedOp, match="reads nothing but padding"):
        problems_of(network, torch.randn(4, 8, 9, 9), tmp_path / "m.onnx", quantized=False)


@pytest.mark.parametrize("dims", [1, 3])
def test_so_it_is_along_other_numbers_of_axes(dims, tmp_path):
    torch.manual_seed(0)
    convolution = {1: nn.Conv1d, 3: nn.Conv3d}[dims]
    network = nn.Sequential(convolution(8, 8, 1), nn.ReLU(), convolution(8, 8, 1, stride=2, padding=1))
    assert problems_of(network, torch.randn(4, 8, *[5] * dims), tmp_path / "m.onnx", quantized=False) == []


class Extremes(nn.Module):
    """The largest and least numbers of a layer's results along some axes, which the next layer reads as codes."""

    def __init__(self, of):
        super().__init__()
        self.before, self.after, self.of = nn.Conv2d(8, 8, 3), nn.Conv2d(8, 8, 1), of

    def forward(self, x):
        return self.after(self.of(self.before(x))).mean((2, 3))


EXTREMES = {
    "pixels": lambda x: x.amax((2, 3), keepdim=True),
    "rows, without the axis": lambda x: x.amin(2).unsqueeze(2),
    "with positions": lambda x: x.max(3, keepdim=True)[0],
    "a function behind it": lambda x: nn.functional.gelu(x.amin((2, 3), keepdim=True)),
}


@pytest.mark.parametrize("of", EXTREMES.values(), ids=EXTREMES)
def test_codes_of_maxima_and_minima_are_right(of, tmp_path):
    torch.manual_seed(0)
    assert problems_of(Extremes(of), torch.randn(8, 8, 9, 9), tmp_path / "m.onnx") == []
