"""Zeros counted in files, against zeros that were put there."""

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from gossamer.apply.engine import apply
from gossamer.numerics.affine import fake_quantize
from gossamer.plan.weight_only import plan_weight_quantization
from gossamer.program.capture import capture
from gossamer.targets.export import export
from gossamer.targets.onnx.weights import count_zeros


def write(path, nodes, arrays):
    tensors = [numpy_helper.from_array(array, name) for name, array in arrays.items()]
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    onnx.save(helper.make_model(helper.make_graph(nodes, "g", [], [output], tensors)), path)
    return path


@pytest.mark.parametrize("axis", [0, 1])
def test_codes_stand_for_zero_at_their_zero_point(tmp_path, axis):
    codes = np.array([[3, 4, 0], [3, 4, 4]], np.uint8)
    zero = np.array([3, 4], np.uint8) if axis == 0 else np.array([3, 0, 4], np.uint8)
    node = helper.make_node("DequantizeLinear", ["w/q", "s", "z"], ["y"], axis=axis)
    arrays = {"w/q": codes, "s": np.ones(len(zero), np.float32), "z": zero}
    view = zero.reshape((-1, 1) if axis == 0 else (1, -1))
    assert count_zeros(write(tmp_path / "m.onnx", [node], arrays)) == {"w": (int((codes == view).sum()), 6)}


def test_only_weights_are_counted(tmp_path):
    arrays = {
        "weight": np.array([[0.0, -0.0], [1.0, 2.0]], np.float32),
        "half": np.zeros((2, 3), np.float16),
        "bias": np.zeros(4, np.float32),
        "table": np.zeros((2, 2), np.int64),
        "wide": np.zeros((2, 2), np.int32),
    }
    node = helper.make_node("Identity", ["weight"], ["y"])
    assert count_zeros(write(tmp_path / "m.onnx", [node], arrays)) == {"weight": (2, 4), "half": (6, 6)}


@pytest.mark.parametrize("weights", ["int4", "uint4", "int8", "uint8"])
def test_packed_blocks_are_unpacked(tmp_path, weights):
    torch.manual_seed(0)
    program = capture(nn.Sequential(nn.Linear(72, 5)), torch.zeros(2, 72))  # the last block is not full
    with torch.no_grad():
        program.state["0.weight"][torch.rand(5, 72) < 0.7] = 0
    coded = apply(program, plan_weight_quantization(program, weights=weights, block=32))
    found = count_zeros(export(coded, tmp_path / "m.onnx").path)
    real = fake_quantize(coded.state["0.weight"], coded.quantizers["0.weight"])
    assert found["0.weight"] == (int((real == 0).sum()), 360)
    assert found["0.weight"][0] >= int((program.state["0.weight"] == 0).sum())
