"""Which codes of weights OpenVINO's kernels compute exactly on this processor, found by asking them.

On x86 with AVX2 or AVX-512 but without VNNI they multiply unsigned codes with signed weights by vpmaddubsw, which adds two products in 16 bits
and clips the sum. Unlike ONNX Runtime (targets.onnx.cpu), OpenVINO has no setting that avoids it.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np

from gossamer.targets.onnx.cpu import WORST_CODE, WORST_WEIGHT
from gossamer.targets.openvino.run import OpenVinoRunner, compile_model

_DEPTH = 16


@lru_cache(maxsize=1)
def exact_weights() -> str:
    """The widest format of weights that is exact here: "int7" where two products of int8 ones exceed 16 bits, else "int8".

    Measured once per process with one linear layer of 16 inputs (a tenth of a second). Raises MissingRuntime without openvino or onnx.
    """
    runner = OpenVinoRunner(compile_model(Path("probe"), _probe(), threads=1), {})
    found = runner.run(np.full((4, _DEPTH), WORST_CODE, np.float32))
    return "int7" if (found < WORST_CODE * WORST_WEIGHT * _DEPTH * 0.99).any() else "int8"


def _probe() -> bytes:
    """An ONNX file of a linear layer on codes, all of scale 1, with the largest weights; what it gives is coded, too, in steps of a 255th."""
    from onnx import TensorProto, helper, numpy_helper

    largest = float(WORST_CODE * WORST_WEIGHT * _DEPTH)
    constants = {
        "one": np.float32(1),
        "ones": np.ones(_DEPTH, np.float32),
        "zero": np.uint8(0),
        "zeros": np.zeros(_DEPTH, np.int8),
        "weight": np.full((_DEPTH, _DEPTH), WORST_WEIGHT, np.int8),
        "step": np.float32(largest / WORST_CODE),
    }
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "one", "zero"], ["x/q"]),
        helper.make_node("DequantizeLinear", ["x/q", "one", "zero"], ["x/dq"]),
        helper.make_node("DequantizeLinear", ["weight", "ones", "zeros"], ["w"], axis=1),
        helper.make_node("MatMul", ["x/dq", "w"], ["product"]),
        helper.make_node("QuantizeLinear", ["product", "step", "zero"], ["y/q"]),
        helper.make_node("DequantizeLinear", ["y/q", "step", "zero"], ["y"]),
    ]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [4, _DEPTH]) for name in ("x", "y")]
    stored = [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "probe", ends[:1], ends[1:], stored)
    data: bytes = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString()
    return data
