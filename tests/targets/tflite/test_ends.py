"""Files whose inputs and outputs are codes, on both runtimes of this format."""

import numpy as np
import pytest
import torch
from torch import nn

from gossamer.apply.engine import apply
from gossamer.numerics.affine import dequantize, quantize
from gossamer.plan.quantization import plan_quantization
from gossamer.plan.scheme import Scheme
from gossamer.program.capture import capture
from gossamer.targets.export import export
from gossamer.targets.simulate import Simulator
from gossamer.targets.target import targets
from gossamer.targets.verify import verify

pytest.importorskip("ai_edge_litert")
CODED = Scheme(code_ends=True, rounding="nearest")


class Read(nn.Module):
    """Reads its input and what it hands out more than once, in float as well."""

    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 1)

    def forward(self, x):
        y = torch.relu(self.one(x))
        return self.two(y) + y * nn.functional.silu(x.mean((1, 2, 3), keepdim=True))


class Token(nn.Module):
    """Joins a token of its own to what it makes of its input: a row for every sample, so the file asks the input for their number."""

    def __init__(self):
        super().__init__()
        self.token, self.layer, self.norm, self.head = nn.Parameter(torch.randn(1, 1, 3)), nn.Linear(3, 3), nn.LayerNorm(3), nn.Linear(3, 5)

    def forward(self, x):
        tokens = self.layer(x.flatten(2).transpose(1, 2))
        return self.head(self.norm(torch.cat([self.token.expand(x.shape[0], -1, -1), tokens], 1))[:, 0])


class Recurrent(nn.Module):
    """Computes in float between its ends."""

    def __init__(self):
        super().__init__()
        self.layer, self.head = nn.LSTM(8, 8, batch_first=True), nn.Linear(8, 5)

    def forward(self, x):
        return self.head(self.layer(x.flatten(1, 2))[0][:, -1])


NETWORKS = {
    "scores": lambda: nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 5)),
    "relu": lambda: nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU()),
    "read": Read,
    "token": Token,
    "recurrent": Recurrent,
}


def made(name, target):
    torch.manual_seed(0)
    samples = torch.randn(24, 3, 8, 8)
    program = capture(NETWORKS[name]().eval(), samples[:2])
    return program, apply(program, plan_quantization(program, samples, target, scheme=CODED)), samples


@pytest.mark.parametrize("io", ["uint8", "int8"])
@pytest.mark.parametrize("target", ["litert", "tflm"])
@pytest.mark.parametrize("name", NETWORKS)
def test_files_of_codes_compute_what_the_program_does(name, target, io, tmp_path):
    if target == "tflm":
        pytest.importorskip("tflite_micro")
    program, quantized, samples = made(name, target)
    artifact = export(quantized, tmp_path / "m.tflite", target, io=io)
    (source,), (result,) = artifact.input_codes.values(), artifact.output_codes.values()
    codes = quantize(samples[:6], source).numpy().astype(io)
    got = targets[target].open(artifact.path, threads=1).run(codes)
    assert got.dtype == np.dtype(io)
    simulated = Simulator(quantized).run(samples[:6])
    apart = (dequantize(torch.from_numpy(got), result) - simulated.outputs[0]).abs().max() / result.scale[0]
    assert apart <= (0.01 if name in ("scores", "relu") else 1.01)  # floats between codes may decide a tie
    report = verify(artifact, reference=program, data=(samples, torch.zeros(24)), batch=8, metric=lambda outputs, _: float(outputs.mean()))
    assert report.problems == ()
    assert quantized.inputs[0].name in {layer.name for layer in report.parity.layers}


def test_values_in_one_tensor_are_compared_under_the_first_name(tmp_path):
    _, quantized, samples = made("token", "litert")
    norm = next(node for node in quantized.graph.nodes if node.op == "aten.layer_norm.default")
    (moved,) = quantized.graph.users[norm.name]  # all of the samples: no operator
    assert {norm.name, moved.name} <= quantized.quantizers.keys()
    artifact = export(quantized, tmp_path / "m.tflite", "litert")
    exposed = targets["litert"].open(artifact.path, threads=1, values=True).run_values(samples[:6].numpy())
    assert norm.name in exposed and moved.name not in exposed  # rounded there: what passes it on is exact


def test_the_tensors_say_what_their_codes_stand_for(tmp_path):
    from ai_edge_litert.interpreter import Interpreter

    _, quantized, _ = made("scores", "litert")
    for io in ("uint8", "int8"):
        artifact = export(quantized, tmp_path / f"{io}.tflite", "litert", io=io)
        interpreter = Interpreter(str(artifact.path))
        ends = (interpreter.get_input_details()[0], interpreter.get_output_details()[0])
        for found, codes in zip(ends, (artifact.input_codes, artifact.output_codes), strict=True):
            (expected,) = codes.values()
            assert found["dtype"] == np.dtype(io)
            assert found["quantization"] == (pytest.approx(expected.scale[0]), expected.zero_point[0])
        kinds = [op["op_name"] for op in interpreter._get_ops_details()]
        assert "DEQUANTIZE" not in kinds
        assert kinds.count("QUANTIZE") == (2 if io == "uint8" else 0)
