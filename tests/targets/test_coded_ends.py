"""Files that take and give codes: what they compute is what the program computes, and what the codes mean is known."""

import json
from dataclasses import replace

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from gossamer.apply.engine import apply
from gossamer.errors import ConfigError, PlanError
from gossamer.numerics.affine import dequantize, quantize
from gossamer.plan.quantization import plan_quantization
from gossamer.plan.scheme import Scheme
from gossamer.program.capture import capture
from gossamer.targets.export import export
from gossamer.targets.onnx.ends import METADATA
from gossamer.targets.onnx.optimized import layers_in_float, optimized_ops
from gossamer.targets.simulate import Simulator
from gossamer.targets.target import targets
from gossamer.targets.verify import verify

CODED = Scheme(code_ends=True, rounding="nearest")


class Sum(nn.Module):
    """Ends in a residual sum, whose codes may be a step off."""

    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Conv2d(8, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1)

    def forward(self, x):
        y = torch.relu(self.one(x))
        return y + self.two(y)


NETWORKS = {
    "scores": (lambda: nn.Sequential(nn.Conv2d(8, 16, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16 * 36, 5)), 8),
    "float ends": (lambda: nn.Sequential(nn.Conv2d(3, 8, 3), nn.GELU(), nn.Conv2d(8, 4, 1), nn.Softmax(1)), 3),
    "sum": (Sum, 8),
    "relu": (lambda: nn.Sequential(nn.Conv2d(8, 8, 3), nn.ReLU()), 8),
}


def made(name):
    build, channels = NETWORKS[name]
    torch.manual_seed(0)
    samples = torch.randn(24, channels, 8, 8, generator=torch.Generator().manual_seed(1))
    return capture(build().eval(), samples[:2]), samples


@pytest.mark.parametrize("io", ["uint8", "int8"])
@pytest.mark.parametrize("name", NETWORKS)
def test_files_of_codes_compute_what_the_program_does(name, io, tmp_path):
    program, samples = made(name)
    quantized = apply(program, plan_quantization(program, samples, scheme=CODED))
    artifact = export(quantized, tmp_path / "m.onnx", io=io)
    (source,), (result,) = artifact.input_codes.values(), artifact.output_codes.values()
    codes = quantize(samples[:6], source).numpy().astype(io)
    got = targets["onnxruntime"].open(artifact.path, threads=1).run(codes)
    assert got.dtype == np.dtype(io)
    simulated = Simulator(quantized).run(samples[:6])
    apart = (dequantize(torch.from_numpy(got), result) - simulated.outputs[0]).abs().max() / result.scale[0]
    assert apart <= (1.01 if name in ("sum", "float ends") else 0.01)
    report = verify(artifact, reference=program, data=(samples, torch.zeros(24)), batch=8, metric=lambda outputs, _: float(outputs.mean()))
    assert report.problems == ()


def test_uint8_ends_cost_nothing(tmp_path):
    program, samples = made("scores")
    quantized = apply(program, plan_quantization(program, samples, scheme=CODED))
    artifact = export(quantized, tmp_path / "m.onnx", io="uint8")
    assert layers_in_float(artifact.path) == ()
    assert not optimized_ops(artifact.path).keys() & {"QuantizeLinear", "DequantizeLinear", "Identity"}


@pytest.mark.parametrize("io", ["uint8", "int8"])
def test_the_file_says_what_its_codes_mean(io, tmp_path):
    program, samples = made("scores")
    quantized = apply(program, plan_quantization(program, samples, scheme=CODED))
    artifact = export(quantized, tmp_path / "m.onnx", io=io)
    metadata = {entry.key: entry.value for entry in onnx.load(artifact.path).metadata_props}
    known = json.loads(metadata[METADATA])
    (name, source), ((_, result),) = next(iter(artifact.input_codes.items())), artifact.output_codes.items()
    assert known[name] == {"dtype": io, "scale": source.scale[0], "zero_point": source.zero_point[0]}
    assert known["output"] == {"dtype": io, "scale": result.scale[0], "zero_point": result.zero_point[0]}
    assert export(quantized, tmp_path / "f.onnx").input_codes == {}
    assert not onnx.load(tmp_path / "f.onnx").metadata_props


def test_pixels_are_the_codes_of_a_camera(tmp_path):
    program, _ = made("float ends")
    pixels = torch.randint(0, 256, (16, 3, 8, 8), generator=torch.Generator().manual_seed(0))
    pixels[0, 0, 0, :2] = torch.tensor([0, 255])
    samples = (pixels.float() - 127) / 128
    quantized = apply(program, plan_quantization(program, samples, scheme=Scheme(code_ends=True, ranges="min-max")))
    (source,) = export(quantized, tmp_path / "m.onnx", io="uint8").input_codes.values()
    assert source.zero_point == (127,)
    assert source.scale[0] == pytest.approx(1 / 128)


def test_ends_without_codes_are_refused(tmp_path):
    program, samples = made("scores")
    quantized = apply(program, plan_quantization(program, samples))
    with pytest.raises(PlanError, match=r"io='uint8' needs codes for 'linear', which has none; plan with scheme=Scheme\(code_ends=True\)"):
        export(quantized, tmp_path / "m.onnx", io="uint8")
    with pytest.raises(PlanError, match="io='int8' needs codes for 'input'"):
        export(program, tmp_path / "m.onnx", io="int8")
    with pytest.raises(ConfigError, match="io must be one of float, uint8, int8; got 'int4'"):
        export(quantized, tmp_path / "m.onnx", io="int4")
    assert not (tmp_path / "m.onnx").exists()


def test_targets_that_have_no_such_files_say_so(tmp_path, monkeypatch):
    program, samples = made("scores")
    quantized = apply(program, plan_quantization(program, samples, scheme=CODED))
    target = targets["onnxruntime"]
    monkeypatch.setattr("gossamer.targets.export.targets", {"onnxruntime": replace(target, emit_coded=None)})
    with pytest.raises(ConfigError, match="io must be 'float' for onnxruntime"):
        export(quantized, tmp_path / "m.onnx", io="uint8")
