"""Weights of fewer bits whose layers compute in float, and products that quantize their input while they run."""

import pytest
import torch
from torch import nn

from gossamer.apply.engine import apply
from gossamer.errors import ConfigError
from gossamer.plan.dynamic import plan_dynamic_quantization
from gossamer.plan.plan import Plan
from gossamer.plan.quantization import plan_quantization
from gossamer.plan.weight_only import plan_weight_quantization
from gossamer.program.bundle import load, save
from gossamer.program.capture import capture
from gossamer.program.ops.own import dynamic_rows
from gossamer.targets.export import export
from gossamer.targets.parity import check_parity
from gossamer.targets.target import targets
from gossamer.targets.verify import verify

pytest.importorskip("ai_edge_litert")


class Words(nn.Module):
    """An embedding, a convolution over its places, and linear layers of every rank."""

    def __init__(self):
        super().__init__()
        self.table, self.conv = nn.Embedding(700, 64), nn.Conv1d(64, 64, 3, padding=1)
        self.norm, self.mix, self.head = nn.LayerNorm(64), nn.Linear(64, 64), nn.Linear(64, 5)

    def forward(self, ids):
        x = self.norm(self.table(ids))
        x = torch.relu(self.conv(x.transpose(1, 2))).transpose(1, 2)
        return self.head(nn.functional.dropout(self.mix(x), 0.1, self.training).mean(1))


@pytest.fixture(scope="module")
def made():
    torch.manual_seed(0)
    ids = torch.randint(0, 700, (32, 12))
    return capture(Words().eval(), ids[:2]), ids


def checked(program, plan, samples, folder):
    """The artifact of a plan that went through JSON, of a network that went through a bundle, and its parity."""
    quantized = apply(program, Plan.from_json(plan.to_json()))
    save(quantized, folder / "m.gossamer")
    artifact = export(load(folder / "m.gossamer"), folder / "m.tflite", "litert")
    return artifact, check_parity(artifact, targets["litert"].open(artifact.path, threads=1), (samples,))


def test_dynamic_range(made, tmp_path):
    program, ids = made
    artifact, parity = checked(program, plan_dynamic_quantization(program, "litert"), ids, tmp_path)
    assert parity.output_error < 1e-5
    assert parity.values_compared > 32 * 12 * 64  # what the kernels round is among them
    weights = sum(tensor.numel() for tensor in program.state.values())
    assert artifact.size_bytes < 1.03 * weights + 4 * 1500 + 9000  # a byte each, scales, and the other operators
    report = verify(artifact, reference=program, data=(ids, program(ids).argmax(1)), batch=8)
    assert report.passed, report.problems


def test_rows_are_coded_as_the_kernel_codes_them(tmp_path):
    torch.manual_seed(0)
    rows = torch.randn(4000, 128) * torch.rand(4000, 1) * 4 + torch.randn(4000, 1)
    rows[0], rows[1], rows[2] = 0.0, rows[1].abs(), -rows[2].abs()
    program = capture(nn.Linear(128, 16).eval(), rows[:2])
    quantized = apply(program, plan_dynamic_quantization(program, "litert"))
    artifact = export(quantized, tmp_path / "m.tflite", "litert")
    got = torch.from_numpy(targets["litert"].open(artifact.path, threads=1).run(rows.numpy()))
    torch.testing.assert_close(got, quantized(rows).detach(), rtol=1e-5, atol=1e-5)  # a code is worth a hundred times that


def test_rows_of_codes_are_near_and_hold_zero():
    torch.manual_seed(0)
    rows = torch.randn(50, 40) + torch.randn(50, 1) * 3
    coded = dynamic_rows(rows, 8)
    step = (rows.amax(1).clamp_min(0) - rows.amin(1).clamp_max(0)) / 255
    assert bool(((coded - rows).abs().amax(1) <= step * 1.01).all())
    assert all(len(row.unique()) <= 256 for row in coded)
    assert bool((dynamic_rows(torch.zeros(2, 3), 8) == 0).all())


def test_weights_stored_in_half_precision(made, tmp_path):
    program, ids = made
    artifact, parity = checked(program, plan_weight_quantization(program, "litert", weights="fp16"), ids, tmp_path)
    assert parity.output_error < 1e-5
    weights = sum(tensor.numel() for tensor in program.state.values())
    assert artifact.size_bytes < 1.03 * 2 * weights + 5000


@pytest.mark.parametrize("rules", [{"0": "fp16"}, {"2": "fp16", "4": "float"}])
def test_mixed_with_integer_layers(rules, tmp_path):
    torch.manual_seed(0)
    images = torch.randn(16, 3, 8, 8)
    layers = [nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=8), nn.ReLU(), nn.Conv2d(8, 4, 1)]
    program = capture(nn.Sequential(*layers).eval(), images[:2])
    _, parity = checked(program, plan_quantization(program, images, "litert", rules=rules), images, tmp_path)
    assert parity.max_steps <= 1  # floats coded afterwards may lie on a tie
    assert parity.output_error < 1e-5


def test_formats_that_microcontrollers_do_not_have(made):
    program, _ = made
    with pytest.raises(ConfigError, match=r"products that quantize their input while they run \(litert, onnxruntime\); got 'tflm'"):
        plan_dynamic_quantization(program, "tflm")
    with pytest.raises(ConfigError, match="a format that litert computes with"):
        plan_weight_quantization(program, "litert", weights="bf16")


@pytest.mark.parametrize("width", [64, 65])
@pytest.mark.parametrize("way", ["static", "dynamic"])
def test_weights_of_four_bits(way, width, tmp_path):
    torch.manual_seed(0)
    rows = torch.randn(24, width)
    program = capture(nn.Sequential(nn.Linear(width, 130), nn.ReLU(), nn.Linear(130, 67), nn.ReLU(), nn.Linear(67, 5)).eval(), rows[:2])
    rules = {"4": "int8"}
    plan = (
        plan_quantization(program, rows, "litert", weights="int4", rules=rules)
        if way == "static"
        else plan_dynamic_quantization(program, "litert", weights="int4", rules=rules)
    )
    artifact, parity = checked(program, plan, rows, tmp_path)
    assert parity.max_steps == 0
    assert parity.output_error < 1e-5
    first = width * 130 / (1 if width % 2 else 2)
    assert artifact.size_bytes < first + 130 * 67 / 2 + 67 * 5 + 202 * 17 + 5000


def test_convolutions_of_four_bits_take_a_byte_for_each(tmp_path):
    """LiteRT's kernel for halves of bytes is slower than float and rounds otherwise."""
    torch.manual_seed(0)
    images = torch.randn(8, 3, 9, 9)
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=8), nn.ReLU(), nn.Conv2d(8, 5, 1))
    program = capture(network.eval(), images[:2])
    _, parity = checked(program, plan_quantization(program, images, "litert", weights="int4"), images, tmp_path)
    assert parity.max_steps == 0
    assert parity.output_error == 0


@pytest.mark.parametrize("way", ["int8", "int4", "fp16"])
@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Conv3d(6, 12, 3, padding=1), (6, 4, 5, 6)),
        (nn.ConvTranspose1d(24, 12, 7, stride=2), (24, 9)),
        (nn.ConvTranspose2d(8, 12, 3, stride=2, padding=1, output_padding=1), (8, 5, 6)),
        (nn.ConvTranspose2d(8, 12, 3, dilation=2), (8, 5, 6)),
        (nn.ConvTranspose2d(8, 12, 3, stride=2, groups=2), (8, 5, 6)),
    ],
)
def test_weights_that_are_stored_in_another_order(layer, shape, way, tmp_path):
    """Whatever a plan gives codes or halves to can be exported, and computes the same."""
    torch.manual_seed(0)
    samples = torch.randn(5, *shape)
    program = capture(nn.Sequential(layer, nn.Flatten(2), nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(12, 3)).eval(), samples[:2])
    halves = way == "fp16"
    plan = plan_weight_quantization(program, "litert", weights=way) if halves else plan_dynamic_quantization(program, "litert", weights=way)
    artifact, parity = checked(program, plan, samples, tmp_path)
    assert parity.output_error < 1e-5
    kept = [found.reason for found in plan.frozen if found.where == "0"]
    if layer.groups == 1 or halves:
        bytes_each = 2 if halves else 1
        spread = (
            25 if layer.dilation == (2, 2) else 16 if layer.stride == (2, 2) else 8 if layer.stride == (2,) else layer.kernel_size[0] ** 3
        )
        assert artifact.size_bytes < layer.in_channels * 12 * spread * bytes_each + 6000
        assert kept in ([], ["a convolution: its weight has codes, its products are computed in float"])
    else:
        assert kept == ["litert has no codes for the weight of a transposed convolution with groups"]
