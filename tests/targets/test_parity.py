"""Parity of quantized files: exact where nothing was tampered with, and the culprit alone is named where something was."""

import pytest
import torch
from torch import nn

from gossamer.apply.engine import apply
from gossamer.errors import FileError
from gossamer.plan.quantization import plan_quantization
from gossamer.plan.spec import specs
from gossamer.program.capture import capture
from gossamer.targets.export import export
from gossamer.targets.parity import check_parity, parity_problems, samples_to_compare, tolerance_steps
from gossamer.targets.results import LayerParity, Parity
from gossamer.targets.target import Artifact, targets
from gossamer.targets.verify import verify

TARGET = "onnxruntime"


class Residual(nn.Module):
    """Convolutions, an addition, a function that stays in float, and a linear layer with a float result."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(8, 16, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(16)
        self.second = nn.Conv2d(16, 16, 3, padding=1)
        self.third = nn.Conv2d(16, 24, 3, stride=2)
        self.fourth = nn.Conv2d(24, 24, 1)
        self.head = nn.Linear(24, 10)

    def forward(self, x):
        x = torch.relu(self.norm(self.first(x)))
        x = torch.relu(x + self.second(x))
        x = nn.functional.gelu(self.third(x))
        return self.head(self.fourth(x).mean((2, 3)))


@pytest.fixture(scope="module")
def samples():
    return torch.randn(48, 8, 12, 12, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def program(samples):
    torch.manual_seed(0)
    return capture(Residual().eval(), samples[:2])


@pytest.fixture(scope="module")
def quantized(program, samples):
    return apply(program, plan_quantization(program, samples, target=TARGET))


def opened(artifact):
    return targets[TARGET].open(artifact.path, threads=1)


def value_of(program, module):
    return next(node.name for node in program.graph.nodes if node.module == module and node.name in program.quantizers)


def test_an_untouched_file_is_exact(program, quantized, samples, tmp_path):
    artifact = export(quantized, tmp_path / "model.onnx", TARGET)
    report = verify(artifact, reference=program, data=(samples, program(samples).argmax(1)), batch=16)
    parity = report.parity
    assert report.passed
    assert parity.max_steps <= 1
    assert parity.output_error < 1e-6
    assert {layer.name for layer in parity.layers} <= set(quantized.quantizers)
    assert {"x", value_of(quantized, "second"), value_of(quantized, "third")} <= {layer.name for layer in parity.layers}
    assert parity.values_compared == 16 * 10 + sum(layer.values for layer in parity.layers)
    assert next(layer.values for layer in parity.layers if layer.name == "x") == samples[:16].numel()


@pytest.mark.parametrize("module", ["second", "third", "fourth"])
def test_only_the_layer_that_was_tampered_with_is_named(quantized, samples, tmp_path, module):
    weight = f"{module}.weight"
    other = quantized.with_graph(quantized.graph, {**quantized.state, weight: quantized.state[weight].detach().flip(0)})
    impostor = Artifact(export(other, tmp_path / "model.onnx", TARGET).path, TARGET, quantized)
    problems = parity_problems(check_parity(impostor, opened(impostor), (samples,)), impostor, "the artifact")
    assert len(problems) == 1
    assert problems[0].startswith(f"Parity of the artifact: {value_of(quantized, module)!r} is ")
    assert problems[0].endswith("code steps from the simulation, allowed is 0.")


def test_a_layer_with_float_results_shows_in_the_outputs(quantized, samples, tmp_path):
    other = quantized.with_graph(quantized.graph, {**quantized.state, "head.bias": quantized.state["head.bias"].detach() + 1})
    impostor = Artifact(export(other, tmp_path / "model.onnx", TARGET).path, TARGET, quantized)
    (problem,) = parity_problems(check_parity(impostor, opened(impostor), (samples,)), impostor, "the artifact")
    assert problem.startswith("The outputs of the artifact differ from what they must be by")


def test_tolerance_is_the_target_s_for_additions_and_none_for_layers(quantized):
    allowed = tolerance_steps(quantized, specs[TARGET])
    assert set(allowed) == set(quantized.quantizers)
    sums = {node.name for node in quantized.graph.nodes if node.op.startswith("aten.add")}
    after_sums = {node.name for node in quantized.graph.nodes if sums & set(node.uses)}
    after_gelu = {node.name for node in quantized.graph.nodes if node.op.startswith("aten.gelu")}
    for name, steps in allowed.items():
        want = specs[TARGET].add_tolerance_steps if name in sums | after_sums else 1 if name in after_gelu else 0
        assert steps == want, name


def test_problems_begin_beyond_the_tolerance(quantized, tmp_path):
    artifact = Artifact(tmp_path / "model.onnx", TARGET, quantized)
    allowed = tolerance_steps(quantized, specs[TARGET])
    layers = [LayerParity(name, steps, 10) for name, steps in allowed.items()]
    assert parity_problems(Parity(max_steps=1, values_compared=1, output_error=0.0, layers=tuple(layers)), artifact, "it") == []
    worse = tuple(LayerParity(layer.name, layer.max_steps + 1, 10) for layer in layers)
    problems = parity_problems(Parity(max_steps=2, values_compared=1, output_error=0.0, layers=worse), artifact, "it")
    assert len(problems) == 4
    assert problems[-1] == f"Parity of it: {len(worse) - 3} more values are farther from the simulation than allowed."


def test_outputs_that_are_no_numbers_are_a_problem(quantized, tmp_path):
    artifact = Artifact(tmp_path / "model.onnx", TARGET, quantized)
    (problem,) = parity_problems(Parity(max_steps=0, values_compared=1, output_error=float("nan")), artifact, "it")
    assert "by nan (relative)" in problem


def test_large_networks_are_compared_on_fewer_samples(program, samples, monkeypatch):
    assert samples_to_compare(program, 64) == 64
    monkeypatch.setattr("gossamer.targets.parity.MACS_TO_COMPARE", 5.5 * program.cost().macs)
    assert samples_to_compare(program, 64) == 5
    monkeypatch.setattr("gossamer.targets.parity.MACS_TO_COMPARE", 0.5 * program.cost().macs)
    assert samples_to_compare(program, 64) == 1
    fixed = capture(nn.Sequential(nn.Flatten(), nn.Linear(1152, 2)), samples[:8], dynamic_batch=False)
    assert samples_to_compare(fixed, 8) == 8


def test_a_runtime_that_gives_a_value_another_shape_is_told(tmp_path):
    torch.manual_seed(0)
    x = torch.randn(8, 8, 9, 9)
    layers = nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 1)
    programs = [capture(nn.Sequential(pad, *layers).eval(), x[:2]) for pad in (nn.ZeroPad2d(1), nn.ZeroPad2d(2))]
    ours, other = (apply(program, plan_quantization(program, x, target=TARGET)) for program in programs)
    artifact = Artifact(export(other, tmp_path / "m.onnx", TARGET).path, TARGET, ours)
    with pytest.raises(FileError, match=r"gives '\w+' the shape \(4, 8, \d+, \d+\), where the network has \(4, 8, \d+, \d+\)"):
        check_parity(artifact, opened(artifact), (x[:4],))
