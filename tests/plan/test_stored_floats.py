"""Weights stored with fewer bits: the file is smaller, and what the runtime computes is what the program computes."""

import pytest
import torch
from torch import nn

from gossamer.apply.engine import apply
from gossamer.errors import ConfigError, DataError, PlanError
from gossamer.numerics.formats import FLOAT_FORMATS
from gossamer.plan.plan import Plan
from gossamer.plan.quantization import plan_quantization
from gossamer.plan.weight_only import plan_weight_quantization
from gossamer.program.bundle import load, save
from gossamer.program.capture import capture
from gossamer.targets.export import export
from gossamer.targets.onnx.optimized import layers_in_float, optimized_ops
from gossamer.targets.onnx.weights import count_zeros
from gossamer.targets.target import targets
from gossamer.targets.verify import verify

NAMES = tuple(FLOAT_FORMATS)
BYTES = {name: fmt.bits // 8 for name, fmt in FLOAT_FORMATS.items()}


class Net(nn.Module):
    """Convolutions, one of them transposed, a linear layer of three axes and one of two."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(8, 32, 3, padding=1)
        self.norm = nn.BatchNorm2d(32)
        self.up = nn.ConvTranspose2d(32, 16, 2, stride=2)
        self.mix = nn.Linear(16, 24)
        self.head = nn.Linear(24, 10)

    def forward(self, x):
        y = self.up(torch.relu(self.norm(self.first(x))))
        return self.head(torch.relu(self.mix(y.flatten(2).transpose(1, 2))).mean(1))


@pytest.fixture(scope="module")
def samples():
    return torch.randn(24, 8, 6, 6, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def program(samples):
    torch.manual_seed(0)
    return capture(Net().eval(), samples[:2])


def labels(samples):
    return samples, torch.zeros(len(samples), dtype=torch.long)


@pytest.mark.parametrize("name", NAMES)
def test_files_hold_fewer_bits_and_compute_the_same(program, samples, tmp_path, name):
    plan = plan_weight_quantization(program, weights=name)
    assert Plan.from_json(plan.to_json()) == plan
    small = apply(program, plan)
    whole, artifact = export(program, tmp_path / "f.onnx"), export(small, tmp_path / "m.onnx")
    weights = {key: tensor.numel() for key, tensor in program.state.items() if tensor.dim() > 1}
    assert whole.size_bytes - artifact.size_bytes > sum(weights.values()) * (4 - BYTES[name]) - 300 * len(weights)
    assert not optimized_ops(artifact.path).keys() & {"Cast", "Mul", "Transpose"} - optimized_ops(whole.path).keys()
    report = verify(artifact, reference=program, data=labels(samples), batch=8)
    assert report.problems == ()
    with torch.no_grad():
        assert 0 < float((small(samples) - program(samples)).abs().max()) < (0.02 if BYTES[name] == 2 else 0.3)
    save(small, tmp_path / "p.safetensors")
    assert load(tmp_path / "p.safetensors").quantizers == small.quantizers
    assert count_zeros(artifact.path).keys() == weights.keys()


@pytest.mark.parametrize("name", NAMES)
def test_layers_kept_float_in_an_integer_network_can_be_stored_so(program, samples, tmp_path, name):
    plan = plan_quantization(program, samples, rules={"first": name, "mix": name})
    assert any(f"stored as {name} as asked (first), computed in float32" in item.reason for item in plan.frozen)
    small = apply(program, Plan.from_json(plan.to_json()))
    artifact = export(small, tmp_path / "m.onnx")
    report = verify(artifact, reference=program, data=labels(samples), batch=8)
    assert report.problems == ()
    assert "Conv" in {layer.op.removeprefix("Fused") for layer in layers_in_float(artifact.path)}


@pytest.mark.parametrize("op", ["conv", "up", "head"])
def test_float_layers_between_codes_keep_their_weights(op, samples, tmp_path):
    """ONNX Runtime would round them to int8 on its own, were they written plainly."""
    middle = {"conv": nn.Conv2d(16, 16, 1), "up": nn.ConvTranspose2d(16, 16, 1), "head": nn.Linear(576, 64)}[op]
    before = [nn.Conv2d(8, 16, 1), nn.ReLU(), *([nn.Flatten()] if op == "head" else [])]
    after = nn.Linear(64, 8) if op == "head" else nn.Conv2d(16, 8, 1)
    torch.manual_seed(0)
    net = nn.Sequential(*before, middle, nn.ReLU(), after).eval()
    with torch.no_grad():
        middle.weight[0] *= 300  # one scale for all would lose the others
    program = capture(net, samples[:2])
    name = str(len(before))
    quantized = apply(program, plan_quantization(program, samples, rules={name: "float"}))
    artifact = export(quantized, tmp_path / "m.onnx")
    assert (
        verify(artifact, reference=program, data=labels(samples), batch=8, metric=lambda outputs, _: float(outputs.mean())).problems == ()
    )


def test_the_programs_own_codes_are_those_of_torch(program):
    small = apply(program, plan_weight_quantization(program, weights="bf16", rules={"first": "float", "up": "float"}))
    assert set(small.quantizers) == {"mix.weight", "head.weight"}
    rounded = {name: program.state[name].detach().bfloat16().float() for name in small.quantizers}
    reference = program.with_graph(program.graph, {**program.state, **{name: nn.Parameter(value) for name, value in rounded.items()}})
    x = torch.randn(2, 8, 6, 6)
    with torch.no_grad():
        torch.testing.assert_close(small(x), reference(x))


def test_embeddings_are_stored_so_too(tmp_path):
    torch.manual_seed(0)
    program = capture(nn.Sequential(nn.Embedding(50, 16), nn.Linear(16, 8)).eval(), torch.zeros(2, 5, dtype=torch.long))
    small = apply(program, plan_weight_quantization(program, weights="fp16"))
    assert set(small.quantizers) == {"0.weight", "1.weight"}
    x = torch.randint(0, 50, (3, 5))
    found = targets["onnxruntime"].open(export(small, tmp_path / "m.onnx").path, threads=1).run(x.numpy())
    with torch.no_grad():
        torch.testing.assert_close(torch.from_numpy(found), small(x))


def test_bad_requests(program, samples):
    with pytest.raises(PlanError, match="rules name 'heads', which is no layer of this network; did you mean 'head'?"):
        plan_weight_quantization(program, weights="fp16", rules={"heads": "float"})
    with pytest.raises(PlanError, match="no layer whose weight could be stored with fewer bits"):
        plan_weight_quantization(program, weights="fp16", rules={"*": "float"})
    with pytest.raises(ConfigError, match="format must be one of fp16, bf16"):
        plan_quantization(program, samples, rules={"head": "fp32"})
    large = program.copy()
    with torch.no_grad():
        large.state["head.weight"][0, 0] = 1e5
    with pytest.raises(PlanError, match="'head.weight' reaches 100000, beyond the 65504 of fp16; take bf16"):
        plan_weight_quantization(large, weights="fp16")
    with torch.no_grad():
        large.state["head.weight"][0, 0] = torch.nan
    with pytest.raises(DataError, match="'head.weight' holds NaN or infinity"):
        plan_weight_quantization(large, weights="bf16")
