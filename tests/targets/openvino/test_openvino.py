"""OpenVINO on the real runtime: numbers, integer kernels, parity with the simulation, and every error."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn

from gossamer.apply.engine import apply
from gossamer.data.source import Data
from gossamer.errors import MissingRuntime, PlanError
from gossamer.pipeline.loop import compress
from gossamer.plan.budget import Budget
from gossamer.plan.quantization import plan_quantization
from gossamer.program.capture import capture
from gossamer.targets.export import export
from gossamer.targets.openvino import TARGET
from gossamer.targets.openvino.run import compile_model, kernels_of, open_model
from gossamer.targets.target import Artifact, targets
from gossamer.targets.verify import verify

pytest.importorskip("openvino")
TARGET_NAME = "openvino"


class Residual(nn.Module):
    """A residual addition, activations that stay in float between codes, a gate, and a linear layer."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(16)
        self.second = nn.Conv2d(16, 16, 3, padding=1)
        self.third = nn.Conv2d(16, 32, 3, stride=2)
        self.deep = nn.Conv2d(32, 32, 3, padding=1, groups=32)
        self.gate = nn.Conv2d(32, 32, 1)
        self.head = nn.Linear(32, 10)

    def forward(self, x):
        x = torch.relu(self.norm(self.first(x)))
        x = nn.functional.max_pool2d(torch.relu(x + self.second(x)), 2)
        x = nn.functional.silu(self.third(x))
        x = nn.functional.hardswish(self.deep(x))
        x = x * torch.sigmoid(self.gate(x.mean((2, 3), keepdim=True)))
        return self.head(x.mean((2, 3)))


@pytest.fixture(scope="module")
def samples():
    return torch.randn(48, 3, 16, 16, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def program(samples):
    torch.manual_seed(0)
    network = Residual()
    network(samples)  # gives the batch norm statistics
    return capture(network.eval(), samples[:2])


@pytest.fixture(scope="module")
def quantized(program, samples):
    return apply(program, plan_quantization(program, samples, TARGET_NAME, weights=targets[TARGET_NAME].exact_weights()))


@pytest.fixture
def path(program, tmp_path):
    return export(program, tmp_path / "m.onnx", TARGET_NAME).path


def test_the_float_file_equals_the_program_at_any_batch(program, path, samples):
    runner = open_model(path, threads=2)
    for batch in (1, 5):
        np.testing.assert_allclose(runner.run(samples[:batch].numpy()), program(samples[:batch]).detach().numpy(), atol=1e-5)
    assert set(open_model(path, threads=1, values=True).run_values(samples[:1].numpy())) == {"output"}


def test_layers_run_in_integers_as_the_spec_says(quantized, tmp_path):
    path = export(quantized, tmp_path / "q.onnx", TARGET_NAME).path
    kernels = kernels_of(compile_model(path, path.read_bytes(), threads=1))
    layers = [kernel for kernel in kernels if kernel.kind in ("Convolution", "FullyConnected")]
    assert len(layers) == 6
    assert all(kernel.name.endswith("_I8") for kernel in layers)
    third = next(kernel for kernel in layers if kernel.made[-1] == "silu/q")
    assert third.result == "u8"  # one kernel: the activation in between is computed in float without a trip to memory


@pytest.mark.parametrize("activations", ["uint8", "int8"])
def test_parity_with_the_simulation(program, samples, tmp_path, activations):
    quantized = apply(
        program, plan_quantization(program, samples, TARGET_NAME, weights=targets[TARGET_NAME].exact_weights(), activations=activations)
    )
    artifact = export(quantized, tmp_path / "q.onnx", TARGET_NAME)
    report = verify(artifact, reference=program, data=(samples, program(samples).argmax(1)), batch=16)
    assert report.passed, report.problems
    assert report.parity.max_steps <= 1
    assert report.parity.output_error < 1e-6
    assert len(report.parity.layers) >= 8
    assert "openvino" in report.versions


@pytest.mark.parametrize("module", ["second", "third"])
def test_a_layer_that_was_tampered_with_is_named(quantized, samples, tmp_path, module):
    weight = f"{module}.weight"
    other = quantized.with_graph(quantized.graph, {**quantized.state, weight: quantized.state[weight].detach().flip(0)})
    impostor = Artifact(export(other, tmp_path / "m.onnx", TARGET_NAME).path, TARGET_NAME, quantized)
    report = verify(
        impostor, reference=quantized.with_graph(quantized.graph, quantizers={}), data=(samples, torch.zeros(48, dtype=torch.long))
    )
    (problem,) = report.problems
    made = next(node.name for node in quantized.graph.nodes if node.module == module)
    named = {made, *(user.name for user in quantized.graph.users[made])}
    assert sum(f"{name!r} is" in problem for name in named) == 1


def test_an_output_that_is_off_is_found_though_kernels_are_fused(quantized, samples, tmp_path):
    """The last layer has no codes behind it: its float result is what is compared."""
    other = quantized.with_graph(quantized.graph, {**quantized.state, "head.weight": quantized.state["head.weight"].detach().flip(0)})
    impostor = Artifact(export(other, tmp_path / "m.onnx", TARGET_NAME).path, TARGET_NAME, quantized)
    report = verify(
        impostor, reference=quantized.with_graph(quantized.graph, quantizers={}), data=(samples, torch.zeros(48, dtype=torch.long))
    )
    assert any("outputs of the artifact differ" in problem for problem in report.problems)


def test_compress_takes_the_target(samples, tmp_path):
    torch.manual_seed(0)
    network = Residual().eval()
    data = (samples, network(samples).argmax(1))
    data = Data(train=data, validation=data)
    result = compress(network, data, TARGET_NAME, Budget(max_drop_points=90.0), work_dir=tmp_path)
    assert result.report.target == TARGET_NAME
    assert result.program.quantizers
    assert not result.report.problems


def test_a_network_quantized_for_another_target_is_refused(quantized, tmp_path):
    with pytest.raises(PlanError, match="was quantized for 'openvino', not for 'onnxruntime'"):
        export(quantized, tmp_path / "m.onnx", "onnxruntime")


def test_a_missing_runtime_names_the_command(path, monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(MissingRuntime, match=r"openvino.*run: pip install 'gossamer\[openvino\]'"):
        open_model(path, threads=1)


def test_importing_the_target_imports_no_runtime():
    code = "import sys, gossamer.targets.openvino; assert not {'onnx', 'onnxruntime', 'openvino'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
    assert targets[TARGET_NAME] is TARGET


def test_pools_and_sums_between_layers_read_and_write_codes(tmp_path):
    """Layers could hand out floats; what reads them computes on codes all the same where a layer comes next."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.left, self.right = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 16, 1), nn.Conv2d(16, 16, 3, padding=1)
            self.head = nn.Conv2d(16, 8, 1)

        def forward(self, x):
            x = nn.functional.max_pool2d(torch.relu(self.stem(x)), 2)
            return self.head(torch.relu(self.left(x) + self.right(x)))

    samples = torch.randn(8, 3, 16, 16)
    program = capture(Net().eval(), samples[:2])
    quantized = apply(program, plan_quantization(program, samples, TARGET_NAME, weights=targets[TARGET_NAME].exact_weights()))
    path = export(quantized, tmp_path / "q.onnx", TARGET_NAME).path
    kernels = [kernel for kernel in kernels_of(compile_model(path, path.read_bytes(), threads=1)) if kernel.kind != "Reshape"]
    assert {kernel.result for kernel in kernels if kernel.kind in ("Pooling", "Eltwise")} <= {"u8"}
    assert [kernel.result for kernel in kernels if kernel.kind == "Convolution"] == ["u8", "u8", "u8", "f32"]
