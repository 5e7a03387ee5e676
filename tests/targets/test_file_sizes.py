"""Files are no larger than what the format makes networks of codes store, but for 3 % and 5 kB.

What must be stored: a byte for each code of a weight, 4 for each number of a bias and of what stays float, and for each channel what the
format wants with its codes. That is a float32 scale for the weight; in ONNX and .tflite files another one for the bias, and in the
.tflite files that LiteRT reads two zero points of 8 bytes, of which equal ones are stored once.
"""

import importlib.util
from pathlib import Path

import pytest
import torch

from gossamer.apply.engine import apply
from gossamer.plan.quantization import plan_quantization
from gossamer.plan.scheme import Scheme
from gossamer.program.capture import capture
from gossamer.targets.export import export

_spec = importlib.util.spec_from_file_location("tiny_networks", Path(__file__).parents[2] / "benchmarks" / "tiny_networks.py")
tiny = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(tiny)


def needed(program, target):
    codes = {name: tensor for name, tensor in program.state.items() if name in program.quantizers}
    numbers = sum(tensor.numel() * (1 if name in codes else 4) for name, tensor in program.state.items())
    channels = [len(program.quantizers[name].scale) for name in codes]
    scales = 4 * sum(channels) * (1 if target == "tflm" else 2)
    return numbers + scales + (sum(8 * count for count in set(channels)) if target == "litert" else 0)


@pytest.mark.parametrize("target", ["litert", "tflm"])
@pytest.mark.parametrize("name", [*tiny.NETWORKS, "resnet18"])
def test_no_file_is_larger_than_it_must_be(name, target, tmp_path):
    pytest.importorskip("ai_edge_litert")
    torch.manual_seed(0)
    if name in tiny.NETWORKS:
        make, shape = tiny.NETWORKS[name]
        network, samples = make(), torch.randn(4, *shape)
        network(samples)  # gives the batch norm statistics
    else:
        zoo = pytest.importorskip("zoo")
        network, samples = zoo.torchvision_model(name)[0], torch.randn(2, 3, 64, 64)
    program = capture(network.eval(), samples[:2])
    quantized = apply(program, plan_quantization(program, samples, target, scheme=Scheme(rounding="nearest", weight_ranges="min-max")))
    artifact = export(quantized, tmp_path / "m.tflite", target)
    assert artifact.size_bytes <= 1.03 * needed(quantized, target) + 5000
