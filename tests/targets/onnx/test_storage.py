"""Narrow codes in files: packed as the format says, and turned back into int8 kernels by the runtime."""

import numpy as np
import pytest
import torch
from torch import nn

from gossamer.apply.engine import apply
from gossamer.numerics.affine import quantize
from gossamer.plan.dynamic import plan_dynamic_quantization
from gossamer.plan.quantization import plan_quantization
from gossamer.plan.scheme import Scheme
from gossamer.program.capture import capture
from gossamer.targets.export import export
from gossamer.targets.onnx.optimized import layers_in_float, optimized_ops
from gossamer.targets.onnx.storage import STORAGES, stored_bytes, stored_size
from gossamer.targets.onnx.weights import count_zeros
from gossamer.targets.simulate import Simulator
from gossamer.targets.target import targets

onnx = pytest.importorskip("onnx")


@pytest.mark.parametrize("stored", ["INT4", "INT2"])
@pytest.mark.parametrize("count", [1, 7, 8])
def test_codes_are_packed_as_onnx_reads_them(stored, count):
    high = 2 ** (STORAGES[stored].bits - 1)
    codes = np.random.default_rng(count).integers(-high, high, (count, 3)).astype(np.int8)
    data = stored_bytes(codes, stored)
    assert len(data) == stored_size(codes, stored)
    tensor = onnx.TensorProto(dims=codes.shape, data_type=onnx.TensorProto.DataType.Value(stored), raw_data=data)
    np.testing.assert_array_equal(onnx.numpy_helper.to_array(tensor).astype(np.int8), codes)


class Net(nn.Module):
    """Each layer that runs on codes."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(8, 32, 3, padding=1)
        self.depth = nn.Conv2d(32, 32, 3, padding=1, groups=32)
        self.second = nn.Conv2d(32, 31, 1)
        self.head = nn.Linear(31, 10)

    def forward(self, x):
        y = nn.functional.relu(self.first(x))
        y = self.second(nn.functional.relu6(self.depth(y)) + y)
        return self.head(y.mean((2, 3)))


@pytest.fixture(scope="module")
def samples():
    return torch.randn(24, 8, 9, 9, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def program(samples):
    torch.manual_seed(0)
    return capture(Net().eval(), samples[:2])


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 7])
def test_low_bit_weights_run_on_integer_kernels_bit_for_bit(program, samples, tmp_path, bits):
    scheme = Scheme(rounding="nearest", bias_correction=False)
    quantized = apply(program, plan_quantization(program, samples, weights=f"int{bits}", scheme=scheme))
    artifact = export(quantized, tmp_path / "m.onnx")
    assert layers_in_float(artifact.path) == ()
    assert optimized_ops(artifact.path)["QLinearConv"] == 3
    codes = targets["onnxruntime"].open(artifact.path, threads=1, values=True).run_values(samples.numpy())
    simulated = Simulator(quantized).run(samples, codes=codes)
    for name, found in simulated.codes.items():
        apart = np.abs(codes[name].astype(int) - found.numpy().astype(int)).max() if name in codes else 0
        assert apart <= name.startswith("add"), name
    real = quantize(quantized.state["first.weight"], quantized.quantizers["first.weight"])
    assert count_zeros(artifact.path)["first.weight"] == (int((real == 0).sum()), real.numel())


@pytest.mark.parametrize("plan", [plan_quantization, plan_dynamic_quantization])
def test_files_hold_as_many_bits_as_codes_need(program, samples, tmp_path, plan):
    sizes = {}
    for bits in (8, 4, 2):
        plans = plan(program, calibration=samples, weights=f"int{bits}")
        sizes[bits] = export(apply(program, plans), tmp_path / f"{bits}.onnx").size_bytes
    weights = sum(program.state[f"{name}.weight"].numel() for name in ("first", "depth", "second", "head"))
    casts = 4 * 150  # bytes of the nodes that widen codes
    assert sizes[8] - sizes[4] > weights // 2 - casts
    assert sizes[4] - sizes[2] > weights // 4 - casts


def test_dynamic_products_keep_their_integer_kernel(program, samples, tmp_path):
    quantized = apply(program, plan_dynamic_quantization(program, weights="int4"))
    artifact = export(quantized, tmp_path / "m.onnx")
    found = targets["onnxruntime"].open(artifact.path, threads=1).run(samples.numpy())
    assert optimized_ops(artifact.path).keys() & {"MatMulIntegerToFloat", "DynamicQuantizeMatMul", "MatMulInteger"}
    with torch.no_grad():
        torch.testing.assert_close(torch.from_numpy(found), quantized(samples), rtol=1e-4, atol=1e-4)
