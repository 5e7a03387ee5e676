"""Batch norms in front of layers on codes: what each target computes is what is simulated, and nothing of it stays float."""

import pytest
import torch
from torch import nn

import gossamer as gs
from gossamer.errors import PlanError
from gossamer.numerics.distance import sqnr_db
from gossamer.plan.edits import ConvolveBatchNorm
from gossamer.plan.plan import Plan
from gossamer.search.diagnosis.patient import rebuilt_plan
from gossamer.targets.parity import check_parity, open_artifact
from gossamer.targets.target import targets


class PreActivation(nn.Module):
    """Two blocks of norm, ReLU and convolution, as those of a DenseNet and of a pre-activation ResNet."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(4, 16, 3, padding=1)
        self.norm1, self.conv1 = nn.BatchNorm2d(16), nn.Conv2d(16, 16, 3, padding=1)
        self.norm2, self.conv2 = nn.BatchNorm2d(32), nn.Conv2d(32, 32, 3, padding=1)
        self.norm3, self.head = nn.BatchNorm2d(32), nn.Linear(32, 5)

    def forward(self, x):
        x = self.stem(x)
        x = torch.cat([x, self.conv1(torch.relu(self.norm1(x)))], 1)
        x = x + self.conv2(torch.relu(self.norm2(x)))
        return self.head(torch.relu(self.norm3(x)).mean((2, 3)))


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    model = PreActivation()
    with torch.no_grad():
        for norm in (model.norm1, model.norm2, model.norm3):
            norm.weight.copy_(torch.rand(norm.weight.shape) + 0.5)
            norm.weight[:3] = torch.tensor([-1.0, 1e-3, 0.0])
            norm.bias.normal_()
    model(torch.randn(64, 4, 8, 8))
    return model.eval()


@pytest.fixture(scope="module")
def samples():
    return torch.randn(64, 4, 8, 8, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("target", ["onnxruntime", "openvino", "litert", "tflm"])
def test_they_run_on_codes_and_as_simulated(network, samples, target, tmp_path):
    program = gs.capture(network, samples[:2])
    plan = gs.plan_quantization(program, samples, target, weights=targets[target].exact_weights())
    assert [edit.node for edit in plan.edits if isinstance(edit, ConvolveBatchNorm)] == ["batch_norm", "batch_norm_1", "batch_norm_2"]
    assert not any("BatchNormalization" in item.where + item.reason for item in plan.frozen)
    made = gs.apply(program, Plan.from_json(plan.to_json()))
    assert sqnr_db(network(samples).detach(), made(samples).detach()) > 25
    suffix = ".tflite" if target in ("litert", "tflm") else ".onnx"
    artifact = gs.export(made, tmp_path / f"m{suffix}", target=target)
    parity = check_parity(artifact, open_artifact(artifact, threads=1), (samples[:3],))
    assert {"batch_norm", "relu"} & {layer.name for layer in parity.layers}
    assert parity.max_steps <= 1


def test_one_whose_input_has_no_codes_stays_as_it_is(samples):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(4, 8, 3), nn.Softplus(), nn.BatchNorm2d(8), nn.Softplus(), nn.Conv2d(8, 4, 3)).eval()
    plan = gs.plan_quantization(gs.capture(model, samples[:2]), samples)
    assert not any(isinstance(edit, ConvolveBatchNorm) for edit in plan.edits)


def test_the_plan_can_be_read_off_the_network(network, samples):
    program = gs.capture(network, samples[:2])
    made = gs.apply(program, gs.plan_quantization(program, samples))
    again = gs.apply(program, rebuilt_plan(made, program))
    assert torch.equal(again(samples), made(samples))


def test_a_plan_that_names_another_node_is_refused(network, samples):
    program = gs.capture(network, samples[:2])
    plan = gs.plan_quantization(program, samples)
    wrong = Plan((ConvolveBatchNorm("conv2d"), *plan.edits), plan.model_digest, plan.weights_digest, target="onnxruntime")
    with pytest.raises(PlanError, match="'conv2d' a convolution, which is no batch norm"):
        gs.apply(program, wrong)
