"""Files are no larger than the network that they hold, but for 3 % and 5 kB.

A network takes what Program.cost says: each code of a weight its bits, each number of a bias and of what stays float 4 bytes, and 4 more for the scale of
each channel of a weight. LiteRT opens no file and runs no fast kernel without two more things, which come on top for it: a scale for each number of a bias,
and a zero point of 8 bytes for each scale (equal rows of these are stored once).
"""

import importlib.util
import itertools
from pathlib import Path

import pytest
import torch

from gossamer.apply.engine import apply
from gossamer.plan.quantization import plan_quantization
from gossamer.plan.scheme import Scheme
from gossamer.program.capture import capture
from gossamer.targets.export import export
from gossamer.targets.target import targets

_spec = importlib.util.spec_from_file_location("tiny_networks", Path(__file__).parents[2] / "benchmarks" / "tiny_networks.py")
tiny = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(tiny)

TARGETS = ("onnxruntime", "openvino", "tensorrt", "tflm", "litert")
CASES = [*itertools.product(tiny.NETWORKS, TARGETS), ("mobilenet_v2", "onnxruntime"), ("mobilenet_v2", "litert")]
NEEDS = {"litert": "ai_edge_litert", "tflm": "ai_edge_litert"}  # ONNX files are written without their runtimes


def network_and_samples(name):
    torch.manual_seed(0)
    if name not in tiny.NETWORKS:
        zoo = pytest.importorskip("zoo")
        return zoo.torchvision_model(name)[0].eval(), torch.randn(2, 3, 64, 64)
    make, shape = tiny.NETWORKS[name]
    network, samples = make(), torch.randn(4, *shape)
    network(samples)  # gives the batch norm statistics
    return network.eval(), samples


def demanded_by_litert(program):
    """Bytes of scales of biases and zero points."""
    channels = [len(quantizer.scale) for name, quantizer in program.quantizers.items() if name in program.state]
    return 4 * sum(channels) + 8 * sum(set(channels))


@pytest.mark.parametrize(("name", "target"), CASES)
def test_no_file_is_larger_than_it_must_be(name, target, tmp_path):
    pytest.importorskip(NEEDS.get(target, "onnx"))
    network, samples = network_and_samples(name)
    program = capture(network, samples[:2])
    quantized = apply(program, plan_quantization(program, samples, target, scheme=Scheme(rounding="nearest", weight_ranges="min-max")))
    artifact = export(quantized, tmp_path / f"m{targets[target].suffix}", target)
    limit = 1.03 * quantized.cost().size_bytes + 5000
    assert artifact.size_bytes <= limit + (demanded_by_litert(quantized) if target == "litert" else 0)
