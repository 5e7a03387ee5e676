"""Counting zeros in a written ONNX file, without running it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from gossamer.targets.onnx.coding import CODES
from gossamer.targets.onnx.draft import Array

_KINDS = "fiu"  # numpy kinds of weights and codes
_WIDE_INTEGERS = (np.dtype(np.int32), np.dtype(np.int64))  # sizes, indices, biases


def count_zeros(path: Path) -> Mapping[str, tuple[int, int]]:
    """(zeros, numbers) of each stored weight, by the name of the program's parameter.

    Weights are constants of two and more axes that are not int32 or int64; codes stand for zero where they equal their zero point.
    """
    import onnx
    from onnx import numpy_helper

    graph = onnx.load(path).graph
    stored = {tensor.name: tensor for tensor in graph.initializer}
    zero_points = {node.input[0]: _zero_point(node, stored) for node in graph.node if node.op_type == "DequantizeLinear"}
    found = {}
    for name, tensor in stored.items():
        array: Array = numpy_helper.to_array(tensor)
        if array.ndim < 2 or array.dtype in _WIDE_INTEGERS or (array.dtype.kind not in _KINDS and name not in zero_points):
            continue
        zero, axis = zero_points.get(name, (np.zeros((), np.int64), 0))
        if zero.ndim == 1 and zero.size > 1:
            zero = zero.reshape([-1 if place == axis else 1 for place in range(array.ndim)])
        codes = array.astype(np.float64) if array.dtype.kind == "f" else array.astype(np.int64)
        found[name.removesuffix(CODES)] = (int((codes == zero).sum()), array.size)
    return found


def _zero_point(node: object, stored: Mapping[str, object]) -> tuple[Array, int]:
    from onnx import numpy_helper

    inputs = node.input  # type: ignore[attr-defined]
    axis = next((attribute.i for attribute in node.attribute if attribute.name == "axis"), 1)  # type: ignore[attr-defined]
    tensor = stored.get(inputs[2]) if len(inputs) > 2 else None
    return (np.zeros((), np.int64) if tensor is None else numpy_helper.to_array(tensor).astype(np.int64)), axis
