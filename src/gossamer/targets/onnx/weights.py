"""Counting zeros in a written ONNX file, without running it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from gossamer.numerics.packing import unpack_bits
from gossamer.targets.onnx.coding import CODES, SCALE
from gossamer.targets.onnx.draft import Array

_WIDE_INTEGERS = (np.dtype(np.int32), np.dtype(np.int64))  # sizes, indices, biases
_ZERO = np.zeros((), np.int64)


def count_zeros(path: Path) -> Mapping[str, tuple[int, int]]:
    """(zeros, numbers) of each stored weight, by the name of the program's parameter.

    Weights are constants of two and more axes that are not int32 or int64; codes stand for zero where they equal their zero point.
    """
    import onnx
    from onnx import numpy_helper

    graph = onnx.load(path).graph
    arrays: dict[str, Array] = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    codes: dict[str, tuple[Array, Array]] = {}  # and what stands for zero
    widened: dict[str, str] = {}  # narrow constants, by the name they have as int8
    for node in graph.node:
        if node.op_type == "Cast" and node.input[0] in arrays:
            widened[node.output[0]] = node.input[0]
        elif node.op_type == "DequantizeLinear" and widened.get(node.input[0], node.input[0]) in arrays:
            name = widened.get(node.input[0], node.input[0])
            codes[name] = _dequantized(node, arrays, name)
        elif node.op_type == "MatMulNBits":
            codes[node.input[1]] = _in_blocks(node, arrays)
    found = {}
    for name, array in arrays.items():
        if (
            array.ndim >= 2
            and not name.endswith(SCALE)
            and array.dtype not in _WIDE_INTEGERS
            and (array.dtype.kind in "fiu" or name in codes or name in widened.values())
        ):
            values, zero = codes.get(name, (array if array.dtype.kind in "fiu" else array.astype(np.float32), _ZERO))
            found[name.removesuffix(CODES)] = (int((values == zero).sum()), values.size)
    return found


def _attributes(node: Any) -> dict[str, int]:
    return {attribute.name: attribute.i for attribute in node.attribute}


def _dequantized(node: Any, arrays: Mapping[str, Array], name: str) -> tuple[Array, Array]:
    values = arrays[name].astype(np.int64)
    zero = arrays[node.input[2]].astype(np.int64) if len(node.input) > 2 else _ZERO
    if zero.ndim == 1 and zero.size > 1:
        axis = _attributes(node).get("axis", 1) % values.ndim
        zero = zero.reshape([-1 if place == axis else 1 for place in range(values.ndim)])
    return values, zero


def _in_blocks(node: Any, arrays: Mapping[str, Array]) -> tuple[Array, Array]:
    """Codes (N, K) and zero points, unpacked from bytes that hold several, low bits first."""
    numbers = _attributes(node)
    bits, rows, columns = numbers["bits"], numbers["N"], numbers["K"]
    blocks = -(-columns // numbers["block_size"])
    values = unpack_bits(arrays[node.input[1]].reshape(rows, -1), bits, blocks * numbers["block_size"])[:, :columns].astype(np.int64)
    if len(node.input) > 3 and node.input[3]:
        zero = unpack_bits(arrays[node.input[3]].reshape(rows, -1), bits, blocks).astype(np.int64)
    else:
        zero = np.full((rows, blocks), 2 ** (bits - 1), np.int64)
    return values, np.repeat(zero, numbers["block_size"], axis=1)[:, :columns]
