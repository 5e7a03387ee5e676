"""Transposed convolutions on codes: bit for bit the simulation on LiteRT, its interpreter for microcontrollers and emulated chips."""

import importlib.util
import shutil

import numpy as np
import pytest
import torch
from torch import nn

from gossamer.apply.engine import apply
from gossamer.errors import PlanError
from gossamer.plan.edits import SplitTransposed
from gossamer.plan.plan import Plan
from gossamer.plan.quantization import plan_quantization
from gossamer.plan.scheme import Scheme
from gossamer.program.capture import capture
from gossamer.search.diagnosis.patient import rebuilt_plan
from gossamer.targets.cortex_m.run import COMPILER, EMULATOR
from gossamer.targets.export import export
from gossamer.targets.parity import check_parity, parity_problems
from gossamer.targets.target import targets
from gossamer.targets.tflite.flat import schema
from gossamer.targets.verify import verify
from own_networks import UNet

PACKAGES = {"litert": "ai_edge_litert", "tflm": "tflite_micro", "openvino": "openvino"}
TARGETS = ["litert", "tflm", "cortex_m"]


def needs(target):
    if target in PACKAGES and importlib.util.find_spec(PACKAGES[target]) is None:
        pytest.skip(f"needs {PACKAGES[target]}")
    if target == "cortex_m" and not (shutil.which(COMPILER) and shutil.which(EMULATOR)):
        pytest.skip("needs the cross compiler and the emulator")


def coded(network, samples, target, folder, **options):
    """The float program, its plan, and the exported network of codes."""
    program = capture(network.eval(), samples[:2])
    plan = plan_quantization(program, samples, target, weights=targets[target].exact_weights(), **options)
    return program, plan, export(apply(program, Plan.from_json(plan.to_json())), folder / f"net{targets[target].suffix}", target)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(
    "layer",
    [
        nn.ConvTranspose2d(6, 5, 2, 2),
        nn.ConvTranspose2d(6, 5, 4, 2, 1, bias=False),
        nn.ConvTranspose2d(6, 5, 3, 2, 1, 1),
        nn.ConvTranspose2d(6, 5, (3, 1), 3, (1, 0), (2, 1), dilation=(2, 1)),
        nn.ConvTranspose2d(6, 5, 3, 1, 1),
        nn.ConvTranspose1d(6, 5, 5, 2, 1),
    ],
    ids=["2", "4", "3", "mixed", "stride 1", "one axis"],
)
def test_every_geometry_is_bit_exact(target, layer, tmp_path):
    needs(target)
    torch.manual_seed(0)
    plain = nn.Conv1d if isinstance(layer, nn.ConvTranspose1d) else nn.Conv2d
    samples = torch.randn(16, 3, *[7] * (layer.weight.dim() - 2))
    network = nn.Sequential(plain(3, 6, 1), layer, nn.ReLU(), plain(5, 3, 1))
    _, plan, artifact = coded(network, samples, target, tmp_path)
    assert not plan.frozen
    parity = check_parity(artifact, targets[target].open(artifact.path, threads=1), (samples[:3],))
    assert (parity.max_steps, parity.output_error) == (0, 0)
    assert len(parity.layers) == 5


@pytest.fixture(scope="module")
def unet():
    torch.manual_seed(0)
    samples = torch.randn(8, 3, 32, 32)
    network = UNet(4, 3)
    network(samples)  # gives the batch norm statistics
    return network.eval(), samples


@pytest.mark.parametrize("target", [*TARGETS, "openvino"])
@pytest.mark.parametrize("rounding", ["nearest", "second-order"])
def test_a_u_net_is_whole_in_integers(unet, target, rounding, tmp_path):
    needs(target)
    network, samples = unet
    _, plan, artifact = coded(network, samples, target, tmp_path, scheme=Scheme(rounding=rounding))
    assert not plan.frozen
    assert sum(isinstance(edit, SplitTransposed) for edit in plan.edits) == 3
    parity = check_parity(artifact, targets[target].open(artifact.path, threads=1), (samples[:2],))
    if target == "openvino":
        assert parity_problems(parity, artifact, "u-net") == []
    else:
        assert (parity.max_steps, parity.output_error) == (0, 0)
    if target == "cortex_m":
        assert "_f32" not in artifact.path.read_text()
    if artifact.path.suffix == ".tflite":
        graph = schema().ModelT.InitFromPackedBuf(artifact.path.read_bytes(), 0).subgraphs[0]
        ends = {*graph.inputs, *graph.outputs}
        types = {tensor.type for number, tensor in enumerate(graph.tensors) if number not in ends}
        assert types <= {schema().TensorType.INT8, schema().TensorType.INT32}  # codes, biases and shapes


def test_a_plan_is_rebuilt_from_the_two_networks(unet):
    network, samples = unet
    program = capture(network, samples[:2])
    plan = plan_quantization(program, samples, "litert")
    found = rebuilt_plan(apply(program, plan), program)
    kinds = (SplitTransposed,)
    assert [edit for edit in found.edits if isinstance(edit, kinds)] == [edit for edit in plan.edits if isinstance(edit, kinds)]


def test_verify_compares_with_the_float_network_on_a_chip(tmp_path):
    needs("cortex_m")
    torch.manual_seed(0)
    samples = torch.randn(16, 2, 6, 6)
    network = nn.Sequential(nn.ConvTranspose2d(2, 4, 3, 2, 1, 1), nn.ReLU(), nn.Flatten(), nn.Linear(576, 3))
    program, _, artifact = coded(network, samples, "cortex_m", tmp_path)
    report = verify(artifact, reference=program, data=(samples, program(samples).argmax(1)), batch=4)
    assert report.passed, report.problems


@pytest.mark.parametrize("target", ["onnxruntime", "litert"])
def test_rules_name_the_layer_as_before(target, tmp_path):
    needs(target)
    torch.manual_seed(0)
    samples = torch.randn(16, 4, 6, 6)
    network = nn.Sequential(nn.Conv2d(4, 4, 1), nn.ConvTranspose2d(4, 4, 2, 2), nn.Conv2d(4, 4, 1))
    _, plan, _ = coded(network, samples, target, tmp_path, rules={"1": "float"})
    assert not any(isinstance(edit, SplitTransposed) for edit in plan.edits)
    assert any(item.where == "1 (ConvTranspose)" for item in plan.frozen)
    _, plan, artifact = coded(network, samples, target, tmp_path, rules={"1": "int4"})
    quantizer = artifact.program.quantizers["1.weight"]
    assert (quantizer.format.bits, len(quantizer.scale)) == (4, 16)
    parity = check_parity(artifact, targets[target].open(artifact.path, threads=1), (samples[:3],))
    assert parity.max_steps == 0


def test_others_say_why_they_stay_float():
    program = capture(nn.Sequential(nn.Conv2d(4, 4, 1), nn.ConvTranspose2d(4, 4, 2, groups=2)).eval(), torch.randn(2, 4, 6, 6))
    plan = plan_quantization(program, torch.randn(8, 4, 6, 6), "litert")
    assert [item.reason for item in plan.frozen] == [
        "with groups, three axes or strides that differ, a transposed convolution has no integer kernel"
    ]


def test_a_plan_that_splits_something_else_is_refused():
    program = capture(nn.Sequential(nn.Conv2d(4, 4, 1)).eval(), torch.randn(2, 4, 6, 6))
    plan = plan_quantization(program, torch.randn(8, 4, 6, 6), "litert")
    wrong = Plan((SplitTransposed("conv2d"), *plan.edits), plan.model_digest, plan.weights_digest, target="litert")
    with pytest.raises(PlanError, match="'conv2d', which is no transposed convolution of this network that can be split"):
        apply(program, wrong)


def test_training_through_the_rounding_keeps_the_shapes(unet):
    network, samples = unet
    program = capture(network, samples[:2])
    quantized = apply(program, plan_quantization(program, samples, "tflm"))
    quantized(samples[:2]).square().mean().backward()
    weight = quantized.state["grow.0.weight"]
    assert weight.grad is not None and np.isfinite(weight.grad.numpy()).all()
