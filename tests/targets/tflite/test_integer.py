"""Integer networks on LiteRT: bit for bit what the simulation says."""

import numpy as np
import pytest
import torch
from torch import nn

from gossamer.apply.engine import apply
from gossamer.data.source import Data
from gossamer.errors import ConfigError, PlanError
from gossamer.pipeline.loop import compress
from gossamer.pipeline.settings import Settings
from gossamer.plan.quantization import plan_quantization
from gossamer.program.capture import capture
from gossamer.targets.export import export
from gossamer.targets.parity import check_parity
from gossamer.targets.target import Artifact, targets
from gossamer.targets.verify import verify
from targets.tflite.layer_chains import LayerChain

pytest.importorskip("ai_edge_litert")


@pytest.mark.parametrize("target", ["litert", "tflm"])
@pytest.mark.parametrize(("mode", "pad"), [("circular", (-1, 2, 1, 0)), ("reflect", (2, 1, 1, 1)), ("constant", (-1, 1, 2, -1))])
def test_pads_of_own_numbers_and_negative_ones(target, mode, pad, tmp_path):
    class Padded(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 3)

        def forward(self, x):
            return self.second(nn.functional.pad(self.first(x), pad, mode=mode))

    if target == "tflm":
        pytest.importorskip("tflite_micro")
    torch.manual_seed(0)
    samples = torch.randn(6, 3, 9, 8) + 0.3
    program = capture(Padded().eval(), samples[:2])
    plan = plan_quantization(program, samples, target)
    assert not plan.frozen
    artifact = export(apply(program, plan), tmp_path / "m.tflite", target)
    parity = check_parity(artifact, targets[target].open(artifact.path, threads=1), (samples,))
    assert parity.max_steps == 0 and parity.output_error < 1e-6


@pytest.fixture(scope="module")
def samples():
    return torch.randn(64, 3, 16, 16, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def program(samples):
    torch.manual_seed(0)
    return capture(LayerChain(["add", "depthwise", "gate", "strided", "add"], 16, classes=4).eval(), samples[:2])


@pytest.fixture(scope="module")
def quantized(program, samples):
    return apply(program, plan_quantization(program, samples, "litert"))


def test_verify_passes_and_names_what_was_tampered_with(program, quantized, samples, tmp_path):
    data = (samples, program(samples).argmax(1))
    artifact = export(quantized, tmp_path / "q.tflite", "litert")
    report = verify(artifact, reference=program, data=data, batch=16)
    assert report.passed, report.problems
    assert report.parity.max_steps == 0
    assert "litert" in str(report.target)
    weight = "layers.0.weight"
    other = quantized.with_graph(quantized.graph, {**quantized.state, weight: quantized.state[weight].detach().flip(0)})
    impostor = Artifact(export(other, tmp_path / "x.tflite", "litert").path, "litert", quantized)
    assert not verify(impostor, reference=program, data=data, batch=16).passed


def test_weights_take_a_byte_each(tmp_path):
    torch.manual_seed(0)
    samples = torch.randn(8, 64, 8, 8)
    network = nn.Sequential(nn.Conv2d(64, 64, 3, padding=1), nn.ReLU(), nn.Conv2d(64, 64, 3, padding=1)).eval()
    program = capture(network, samples[:2])
    artifact = export(apply(program, plan_quantization(program, samples, "litert")), tmp_path / "q.tflite", "litert")
    weights = 2 * 64 * 64 * 9
    assert artifact.size_bytes < 1.03 * weights + 5000


def test_flattened_channels_meet_reordered_columns(tmp_path):
    torch.manual_seed(0)
    samples = torch.randn(16, 4, 6, 6)
    program = capture(nn.Sequential(nn.Conv2d(4, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(128, 5)).eval(), samples[:2])
    quantized = apply(program, plan_quantization(program, samples, "litert"))
    artifact = export(quantized, tmp_path / "q.tflite", "litert")
    parity = check_parity(artifact, targets["litert"].open(artifact.path, threads=1), (samples,))
    assert parity.max_steps == 0
    assert parity.output_error < 1e-6


def test_compress_reaches_this_target_without_a_word_more(samples, tmp_path):
    torch.manual_seed(0)
    network = LayerChain(["add", "depthwise"], 16, classes=4).eval()
    labels = network(samples).argmax(1)
    data = Data(train=None, calibration=samples, validation=(samples, labels))
    result = compress(network, data, target="litert", settings=Settings(epochs=0), work_dir=tmp_path)
    assert result.best.report.passed, result.best.report.problems
    assert result.best.report.compressed.size_bytes < result.best.report.original.size_bytes


def test_formats_of_another_target_are_refused(program, samples, quantized, tmp_path):
    with pytest.raises(ConfigError, match="a format that litert computes with \\(the nearest is 'int8'\\); got 'uint8'"):
        plan_quantization(program, samples, "litert", activations="uint8")
    with pytest.raises(PlanError, match="was quantized for 'litert', not for 'onnxruntime'"):
        export(quantized, tmp_path / "m.onnx", "onnxruntime")
    np.testing.assert_equal(len(quantized.quantizers) > 5, True)


@pytest.mark.parametrize("target", ["litert", "tflm"])
def test_inputs_on_the_edge_between_two_codes(target, tmp_path):
    """One of 150,528 pixels was a step off before: kernels multiply by the reciprocal, or round halves away from zero."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(2, 2, 1)).eval()
    samples = torch.randn(8, 2, 4, 4)
    program = capture(network, samples[:2])
    quantized = apply(program, plan_quantization(program, samples, target))
    scale = quantized.quantizers["x"].scale[0] if "x" in quantized.quantizers else quantized.quantizers["input"].scale[0]
    halves = (torch.arange(-100, 100) + 0.5) * scale
    edges = torch.cat([halves, halves.nextafter(torch.tensor(9e9)), halves.nextafter(torch.tensor(-9e9)), torch.randn(20_000) * 2])
    edges = torch.cat([edges, torch.zeros(-edges.numel() % 32)]).reshape(-1, 2, 4, 4)
    artifact = export(quantized, tmp_path / "m.tflite", target)
    parity = check_parity(artifact, targets[target].open(artifact.path, threads=1), (edges,))
    assert parity.max_steps == 0


def test_convolutions_over_three_axes_stay_float_and_the_rest_runs_on_codes(tmp_path):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv3d(2, 8, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 64, 10), nn.ReLU(), nn.Linear(10, 4))
    samples = torch.randn(16, 2, 4, 4, 4)
    program = capture(net.eval(), samples[:2])
    plan = plan_quantization(program, samples, "litert")
    assert any("three axes" in frozen.reason for frozen in plan.frozen)
    artifact = export(apply(program, plan), tmp_path / "m.tflite", "litert")
    parity = check_parity(artifact, targets["litert"].open(artifact.path, threads=1), (samples[:3],))
    assert parity.max_steps == 0 and parity.output_error < 1e-5


@pytest.mark.parametrize("target", ["litert", "tflm"])
def test_means_of_windows_of_any_number_stay_float(target, tmp_path):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(4, 8, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d((2, 4)), nn.Conv2d(8, 4, 1))
    samples = torch.randn(16, 4, 8, 8)
    program = capture(net.eval(), samples[:2])
    plan = plan_quantization(program, samples, target)
    assert [frozen.where for frozen in plan.frozen] == ["2 (AdaptiveAveragePool)"]
    artifact = export(apply(program, plan), tmp_path / "m.tflite", target)
    parity = check_parity(artifact, targets[target].open(artifact.path, threads=1), (samples[:3],))
    assert (parity.max_steps, parity.output_error) == (0, 0)
