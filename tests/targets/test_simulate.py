"""Simulated == executed: random networks against ONNX Runtime, bit for bit."""

from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from torch import nn

from gossamer.apply.engine import apply
from gossamer.errors import ConfigError, DataError, PlanError
from gossamer.numerics.affine import Quantizer, quantize
from gossamer.numerics.distance import sqnr_db
from gossamer.numerics.formats import IntFormat, PerTensor
from gossamer.numerics.integer import add_codes
from gossamer.plan.quantization import plan_quantization
from gossamer.plan.spec import specs
from gossamer.program.capture import capture
from gossamer.targets.simulate import Simulator, simulate
from gossamer.targets.target import targets
from networks import RandomNetwork, networks

TARGET = "onnxruntime"


def executed(quantized, x):
    """Codes by value, and the output, as the runtime computes them."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "m.onnx"
        targets[TARGET].emit(quantized, path)
        values = targets[TARGET].open(path, threads=1, values=True).run_values(x.numpy())
    return {name: torch.from_numpy(array.astype(np.float32)) for name, array in values.items()}


def quantized(model, x, **arguments):
    program = capture(model.eval(), x[:2])
    return apply(program, plan_quantization(program, x, **arguments))


def check_exact(program, x, steps=0):
    """End to end, and value by value from the runtime's own codes."""
    got = executed(program, x)
    simulator = Simulator(program)
    codes = {name: value for name, value in got.items() if name in program.quantizers}
    for given_codes in (None, {name: value.numpy() for name, value in codes.items()}):
        found = simulator.run(x, codes=given_codes)
        for name, value in codes.items():
            assert (found.codes[name] - value).abs().max() <= steps, name
    assert codes
    return got, found


@settings(max_examples=12)
@given(networks())
def test_random_networks(network: RandomNetwork):
    x = torch.randn(16, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    program = quantized(network, x)
    got, found = check_exact(program, x[:4])
    (output,) = (value for name, value in got.items() if name not in program.quantizers)
    assert torch.equal(found.outputs[0], output)  # the last layer's floats: the same sums, the same one product


class Everything(nn.Module):
    """What random networks do not have: strides, dilation, groups, "same", odd pools, numbers, splits, gates."""

    def __init__(self):
        super().__init__()
        self.grouped = nn.Conv2d(8, 12, 3, padding="same", groups=4, dilation=2)
        self.strided = nn.Conv2d(12, 16, (3, 5), stride=(2, 1), padding=(1, 2))
        self.depth = nn.Conv2d(16, 32, 3, padding=1, groups=16, bias=False)
        self.mix = nn.Conv2d(32, 16, 1)
        self.head = nn.Linear(16, 6)

    def forward(self, x):
        y = F.leaky_relu(self.grouped(F.pad(x, (0, 1, 2, 0))), 0.1)
        y = F.hardtanh(self.strided(y), -1, 1)
        y = F.hardswish(self.depth(F.avg_pool2d(y, 3, 2, padding=1, count_include_pad=False)))
        y = self.mix(torch.sigmoid(y))
        left, right = y.split([4, 12], 1)
        y = torch.cat([left, right.clamp(max=0.5)], 1) * y.mean((2, 3), keepdim=True)
        y = F.adaptive_avg_pool2d(y + torch.tanh(y), 1).flatten(1)
        return torch.relu(self.head(y))


@pytest.mark.parametrize(("seed", "bits"), [(0, 8), (1, 8), (0, 4), (1, 2)])
def test_every_kernel(seed, bits):
    torch.manual_seed(seed)
    x = 2 * torch.randn(16, 8, 12, 12)
    program = quantized(Everything(), x, activations=f"uint{bits}")
    got, _ = check_exact(program, x[:4])
    assert all(int(got[name].max()) <= quantizer.format.hi for name, quantizer in program.quantizers.items() if name in got)
    assert {program.quantizers[name].format.bits for name in got if name in program.quantizers} <= {bits, 8}  # 8: what gates need


def test_sums_beyond_what_float32_holds():
    torch.manual_seed(0)
    x = torch.rand(8, 4096)
    program = quantized(nn.Sequential(nn.Linear(4096, 32), nn.ReLU(), nn.Linear(32, 4)), x)
    check_exact(program, x)


def test_a_linear_layer_over_tokens():
    torch.manual_seed(0)
    x = torch.randn(8, 5, 16)
    program = quantized(nn.Sequential(nn.Linear(16, 24), nn.ReLU(), nn.Linear(24, 16)), x)
    output = simulate(program, x)
    assert output.shape == (8, 5, 16)
    check_exact(program, x)


def test_simulated_is_close_to_rounding_in_float():
    torch.manual_seed(0)
    x = torch.randn(16, 8, 12, 12)
    program = quantized(Everything(), x)
    with torch.no_grad():
        assert sqnr_db(program(x), simulate(program, x)) > 30


def test_by_hand():
    """One layer, numbers small enough to follow: codes of x, sum of products, one product, round, clamp."""
    program = quantized(nn.Sequential(nn.Linear(2, 1, bias=False), nn.ReLU(), nn.Linear(1, 1)), torch.tensor([[0.0, 1.0], [1.0, 0.5]]))
    x = torch.tensor([[0.3, 0.9]])
    found = Simulator(program).run(x).codes
    source, result = program.quantizers["input"], program.quantizers["relu"]
    weight = program.quantizers["0.weight"]
    sums = float((quantize(x, source) - source.zero_point[0]) @ quantize(program.state["0.weight"].detach(), weight)[0])
    multiplier = np.float32(source.scale[0]) * np.float32(weight.scale[0]) / np.float32(result.scale[0])
    assert found["relu"].item() == max(0, round(float(np.float32(sums) * multiplier)))


def test_a_float_program_is_refused():
    program = capture(nn.Linear(2, 2), torch.randn(2, 2))
    with pytest.raises(PlanError, match="not quantized, so there are no integers to simulate"):
        simulate(program, torch.randn(2, 2))


def test_inputs_are_checked():
    program = quantized(nn.Linear(4, 2), torch.randn(8, 4))
    with pytest.raises(DataError, match="takes the inputs input"):
        simulate(program)
    with pytest.raises(DataError, match="got a tensor of shape"):
        simulate(program, torch.randn(2, 3))


def test_a_rounding_without_simulation_is_refused(monkeypatch):
    program = quantized(nn.Linear(4, 2), torch.randn(8, 4))
    monkeypatch.setitem(specs._entries, TARGET, replace(specs.entry(TARGET), value=replace(specs[TARGET], requantization="other")))
    with pytest.raises(ConfigError, match="requantization must be a registered requantization"):
        simulate(program, torch.randn(2, 4))


def test_additions_are_exact_over_all_codes():
    """The kernel alone, for random scales and zero points: every pair of codes."""
    import onnxruntime
    from onnx import TensorProto, helper

    names = ["a", "sa", "za", "b", "sb", "zb", "sc", "zc"]
    kinds = {"s": TensorProto.FLOAT}
    ports = [helper.make_tensor_value_info(name, kinds.get(name[0], TensorProto.UINT8), ["n"] if name in "ab" else []) for name in names]
    node = helper.make_node("QLinearAdd", names, ["c"], domain="com.microsoft")
    graph = helper.make_graph([node], "g", ports, [helper.make_tensor_value_info("c", TensorProto.UINT8, ["n"])])
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=9)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    random = np.random.default_rng(0)
    left, right = (codes.reshape(-1).astype(np.uint8) for codes in np.meshgrid(np.arange(256), np.arange(256)))
    for _ in range(20):
        scales = [np.float32(2.0 ** random.uniform(-6, 2)) for _ in range(2)]
        scales.append(np.float32(sum(scales) * random.uniform(0.5, 1.2)))
        zeros = random.integers(0, 256, 3).astype(np.uint8)
        values = [left, scales[0], zeros[0], right, scales[1], zeros[1], scales[2], zeros[2]]
        got = session.run(None, {name: np.asarray(value) for name, value in zip(names, values, strict=True)})[0]
        quantizers = [
            Quantizer(IntFormat(bits=8, signed=False), PerTensor(), (float(s),), (int(z),)) for s, z in zip(scales, zeros, strict=True)
        ]
        found = add_codes(torch.from_numpy(left).float(), torch.from_numpy(right).float(), tuple(quantizers))
        assert np.abs(found.numpy() - got).max() <= 1  # what is promised
        if torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512"):  # with fused multiply-add
            assert (found.numpy() == got).all()
