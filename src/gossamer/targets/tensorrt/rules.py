"""One function per documented rule of explicit quantization: view -> (node, what is wrong there and what the rule wants).

Source: NVIDIA TensorRT 10.15 documentation, "Working with Quantized Types"; the parser onnx-tensorrt and its docs/operators.md.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from gossamer.registry import Registry
from gossamer.targets.tensorrt.operators import INSTEAD, OPSETS, SUPPORTED, refused_form
from gossamer.targets.tensorrt.view import DEQUANTIZE, INT8, LAYERS, MOVES, QUANTIZE, View, attribute

Breaches = Iterator[tuple[Any, str]]
Rule = Callable[[View], Breaches]
rules: Registry[Rule] = Registry("TensorRT rule")

OPERATOR = "operator"
_ACTIVATIONS = frozenset({"Relu", "Clip", "LeakyRelu", "Sigmoid", "Tanh", "Elu", "HardSwish", "HardSigmoid"})
_INSIDE = frozenset({"BatchNormalization", "Relu", "Clip"})  # what a layer's kernel takes along
_LOW_PRECISION = {17: "FLOAT8E4M3FN", 22: "INT4"}  # codes that TensorRT reads beside INT8, of TensorProto


@rules.add("opset")
def opset(view: View) -> Breaches:
    """Opsets 9 to 24."""
    low, high = OPSETS
    found = next((item.version for item in view.model.opset_import if item.domain in ("", "ai.onnx")), low)
    if not low <= found <= high and view.nodes:
        yield view.nodes[0], f"the file is of opset {found}; TensorRT reads {low} to {high}"


@rules.add(OPERATOR)
def operators(view: View) -> Breaches:
    """Only operators that the parser reads, in the forms that it reads."""
    for node in _all_nodes(view.nodes):
        if node.domain not in ("", "ai.onnx"):
            yield node, f"TensorRT has no operator {node.domain}::{node.op_type}"
        elif node.op_type in INSTEAD:
            yield node, f"TensorRT does not read {node.op_type}; it wants {INSTEAD[node.op_type]}"
        elif node.op_type not in SUPPORTED:
            yield node, f"TensorRT has no operator {node.op_type}"
        elif reason := refused_form(view, node):
            yield node, f"TensorRT does not read this {node.op_type}: {reason}"


@rules.add("signed-codes")
def signed_codes(view: View) -> Breaches:
    """int8, not uint8."""
    for node in view.of_type(QUANTIZE, DEQUANTIZE):
        kind = _code_type(view, node)
        if kind is not None and kind != INT8 and kind not in _LOW_PRECISION and not _is_bias(view, node):
            yield node, f"its codes are of type {_type_name(kind)}; TensorRT reads signed codes (INT8)"


@rules.add("zero-point")
def zero_point(view: View) -> Breaches:
    """All zero points 0."""
    for node in view.of_type(QUANTIZE, DEQUANTIZE):
        if len(node.input) > 2 and node.input[2]:
            numbers = view.numbers(node.input[2])
            if numbers is None:
                yield node, "its zero point is computed; TensorRT wants the constant 0"
            elif np.any(numbers.astype(np.float32) != 0):
                yield node, f"its zero point is {_first_other(numbers)}; TensorRT codes are symmetric, so all must be 0"


@rules.add("constant-scale")
def constant_scale(view: View) -> Breaches:
    """Scales are constants, finite and above 0."""
    for node in (node for node in view.of_type(QUANTIZE, DEQUANTIZE) if not _is_bias(view, node)):
        numbers = view.numbers(node.input[1])
        if numbers is None:
            yield node, "its scale is computed while the network runs; TensorRT wants a constant"
        elif not (np.isfinite(numbers) & (numbers > 0)).all():
            yield node, "a scale is not a finite number above 0"


@rules.add("one-scale-for-a-value")
def one_scale(view: View) -> Breaches:
    """Values that are computed have one scale."""
    for node in view.of_type(QUANTIZE, DEQUANTIZE):
        numbers = view.numbers(node.input[1])
        coded = view.maker(node.input[0]) if node.op_type == DEQUANTIZE else None
        source = coded.input[0] if coded is not None and coded.op_type == QUANTIZE else node.input[0]
        if numbers is not None and numbers.size > 1 and not view.is_constant(source):
            yield node, f"a value has {numbers.size} scales; TensorRT wants one for each value, and one for each channel of weights only"


@rules.add("scale-for-each-output")
def scale_for_each_output(view: View) -> Breaches:
    """Weights have one scale for each output channel."""
    for node in view.of_type(*LAYERS):
        name = view.weight(node)
        decoder = view.maker(name) if name else None
        if decoder is None or decoder.op_type != DEQUANTIZE:
            continue
        numbers, stored = view.numbers(decoder.input[1]), view.stored(decoder.input[0])
        if numbers is None or stored is None or attribute(decoder, "block_size", 0):
            continue
        wanted = _output_axis(node, len(stored.dims), first=name == node.input[0])
        axis = attribute(decoder, "axis", 1) % max(len(stored.dims), 1)
        if numbers.size != stored.dims[wanted] or (numbers.size > 1 and axis != wanted):
            yield (
                node,
                (
                    f"its weight has {numbers.size} scales along axis {axis}; it should have {stored.dims[wanted]}, "
                    f"one for each output channel (axis {wanted})"
                ),
            )


@rules.add("float-bias")
def float_bias(view: View) -> Breaches:
    """Biases are floats."""
    for node in view.of_type("Conv", "ConvTranspose", "Gemm"):
        bias = view.maker(node.input[2]) if len(node.input) > 2 and node.input[2] else None
        if bias is not None and bias.op_type == DEQUANTIZE:
            yield node, "its bias is made of codes; TensorRT adds biases in float"


@rules.add("pairs")
def pairs(view: View) -> Breaches:
    """Codes go from QuantizeLinear to DequantizeLinear and nowhere else."""
    for node in view.of_type(QUANTIZE):
        other = next((reader for reader in view.readers(node.output[0]) if reader.op_type != DEQUANTIZE), None)
        if other is not None:
            yield other, f"it computes on codes ({node.output[0]}); TensorRT reads codes through DequantizeLinear only"
    for node in view.of_type(DEQUANTIZE):
        maker = view.maker(node.input[0])
        if maker is not None and maker.op_type != QUANTIZE and not view.is_constant(node.input[0]):
            yield node, f"its codes come from {maker.op_type}; TensorRT reads those of QuantizeLinear, constants and inputs"


@rules.add("nothing-inside-a-layer")
def nothing_inside(view: View) -> Breaches:
    """No codes between a layer, its batch norm and its ReLU."""
    for node in view.of_type(*_INSIDE):
        decoder = view.maker(node.input[0])
        if decoder is None or decoder.op_type != DEQUANTIZE:
            continue
        maker = view.maker(view.source(decoder))
        if maker is not None and (maker.op_type in LAYERS or maker.op_type == "BatchNormalization"):
            yield node, f"codes stand between it and the {maker.op_type} before it, so that TensorRT cannot make one kernel of both"


@rules.add("residual")
def residual(view: View) -> Breaches:
    """What is added to a layer's result has codes wherever the sum is coded; the layer's own result needs none."""
    for node in view.of_type("Add"):
        sides = [str(name) for name in node.input]
        if len(sides) != 2 or any(view.is_constant(side) for side in sides) or not _coded_behind(view, node.output[0]):
            continue
        if any(_is_layer_result(view, side) for side in sides) and not any(view.decoder(side) for side in sides):
            yield node, "it adds a value without codes to a layer's result, so that the layer cannot hand out codes; code that value"


def _all_nodes(nodes: Any) -> Iterator[Any]:
    """Nodes, and those of the graphs inside them."""
    for node in nodes:
        yield node
        for item in node.attribute:
            for graph in (item.g, *item.graphs):
                yield from _all_nodes(graph.node)


def _code_type(view: View, node: Any) -> int | None:
    """The type of a node's codes; UINT8 where a QuantizeLinear does not say."""
    if len(node.input) > 2 and node.input[2]:
        stored = view.stored(node.input[2])
        return None if stored is None else int(stored.data_type)
    stored = view.stored(node.input[0]) if node.op_type == DEQUANTIZE else None
    if stored is not None:
        return int(stored.data_type)
    kind = attribute(node, "output_dtype", 0)
    return (kind or 2) if node.op_type == QUANTIZE else None


def _type_name(kind: int) -> str:
    from onnx import TensorProto

    return str(TensorProto.DataType.Name(kind))


def _is_bias(view: View, node: Any) -> bool:
    """Whether a node makes a layer's bias, about which another rule speaks."""
    return any(
        reader.op_type in LAYERS and len(reader.input) > 2 and reader.input[2] == node.output[0] for reader in view.readers(node.output[0])
    )


def _first_other(numbers: np.ndarray[Any, Any]) -> float:
    flat = numbers.astype(np.float32).reshape(-1)
    return float(flat[flat != 0][0])


def _output_axis(node: Any, rank: int, *, first: bool) -> int:
    """The axis of a layer's weight that counts its outputs. `first`: the weight is the left factor of a MatMul."""
    if node.op_type == "Gemm":
        return 0 if attribute(node, "transB", 0) else 1
    if node.op_type == "MatMul":
        return max(rank - 2, 0) if first else rank - 1
    return 0 if node.op_type == "Conv" else 1


def _is_layer_result(view: View, tensor: str) -> bool:
    """Whether a tensor is what a layer on codes hands out, through its batch norm, and nothing else reads it."""
    node = view.maker(tensor)
    while node is not None and node.op_type == "BatchNormalization":
        node = view.maker(node.input[0])
    return node is not None and view.runs_on_codes(node) and len(view.readers(tensor)) == 1 and tensor not in view.outputs


def _coded_behind(view: View, tensor: str) -> bool:
    """Whether a tensor, or what activations and moves make of it, is coded."""
    return any(
        reader.op_type == QUANTIZE or (reader.op_type in _ACTIVATIONS | MOVES and _coded_behind(view, reader.output[0]))
        for reader in view.readers(tensor)
    )
