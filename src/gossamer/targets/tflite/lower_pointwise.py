"""Ops that work position by position."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import inf

import numpy as np
import torch

from gossamer.program.clamps import clip_limits
from gossamer.targets.lite_kernels import SIXTH, THREE, ZERO_TO_SIX, coded_parameter
from gossamer.targets.tflite.layout import Laid
from gossamer.targets.tflite.lower_formulas import elu_with_factors, gelu_by_formula
from gossamer.targets.tflite.lowering import Call, aligned, lowerings
from gossamer.targets.tflite.tables import gelu_in_codes
from gossamer.targets.tflite.tape import Part, Tape

_UNARY = {
    "Relu": "RELU",
    "Sigmoid": "LOGISTIC",
    "Tanh": "TANH",
    "HardSwish": "HARD_SWISH",
    "Exp": "EXP",
    "Log": "LOG",
    "Sqrt": "SQRT",
    "Rsqrt": "RSQRT",
    "Abs": "ABS",
    "Neg": "NEG",
    "Square": "SQUARE",
    "Sin": "SIN",
    "Cos": "COS",
    "Floor": "FLOOR",
    "Ceil": "CEIL",
    "Round": "ROUND",
    "Sign": "SIGN",
}
_OPTIONS = {
    "HARD_SWISH": "HardSwishOptions",
    "EXP": "ExpOptions",
    "ABS": "AbsOptions",
    "NEG": "NegOptions",
    "SQUARE": "SquareOptions",
    "COS": "CosOptions",
}


def _unary(call: Call) -> Laid:
    code = _UNARY[call.row.onnx]
    laid = call.laid(next(iter(call.args)))
    if call.integer and code == "RELU":
        return _clipped(call, laid)
    return _same_place(call, laid, code, _OPTIONS.get(code, ""))


for _onnx in _UNARY:
    lowerings.add(_onnx)(_unary)


def _same_place(call: Call, laid: Laid, code: str, options: str = "", others: Sequence[int] = (), **fields: object) -> Laid:
    """An operator on each number, wherever it lies; flattened channels stay as they lie."""
    result = call.op(code, (laid.tensor, *others), laid.order, options, **fields)
    return Laid(result.tensor, result.order, laid.columns)


@lowerings.add("Identity")
def identity_(call: Call) -> Laid:
    """Copies are the value itself."""
    return call.laid(next(iter(call.args)))


@lowerings.add("Cast")
def cast(call: Call) -> Laid:
    """To the result's type."""
    laid = call.laid("self")
    have, want = call.values.metas[call.args["self"].name].dtype, call.values.metas[call.node.name].dtype  # type: ignore[union-attr]
    return laid if have == want else _same_place(call, laid, "CAST", "CastOptions")


def _clipped(call: Call, laid: Laid) -> Laid:
    """Other codes, which clip."""
    return _same_place(call, laid, "QUANTIZE", "QuantizeOptions")


@lowerings.add("Clip")
def clip(call: Call) -> Laid:
    """ReLU6 and any other limits."""
    laid = call.laid(next(iter(call.args)))
    if call.integer:
        return _clipped(call, laid)
    limits = clip_limits(call.node)
    if limits is None:
        raise call.unsupported(f"{call.node.op} with computed limits")
    low, high = limits
    if (low, high) == (0, 6):
        return _same_place(call, laid, "RELU6")
    if (low, high) == (0, None):
        return _same_place(call, laid, "RELU")
    result = laid
    if high is not None and high != inf and low is not None and low != -inf:
        shape = call.values.draft.tensors[laid.tensor].shape
        result = Laid(call.step("MINIMUM", (laid.tensor, call.number(high)), shape, "MaximumMinimumOptions"), laid.order, laid.columns)
        high = None
    if high is not None and high != inf:
        return _same_place(call, result, "MINIMUM", "MaximumMinimumOptions", (call.number(high),))
    return _same_place(call, result, "MAXIMUM", "MaximumMinimumOptions", (call.number(low),))


@lowerings.add("LeakyRelu")
def leaky_relu(call: Call) -> Laid:
    """x where positive, slope x elsewhere."""
    return _same_place(call, call.laid("self"), "LEAKY_RELU", "LeakyReluOptions", alpha=float(call["negative_slope"]))


@lowerings.add("Elu")
def elu(call: Call) -> Laid:
    """One operator without factors."""
    if (call["alpha"], call["scale"], call["input_scale"]) != (1, 1, 1):
        return elu_with_factors(call)
    return _same_place(call, call.laid("self"), "ELU")


@lowerings.add("Gelu")
def gelu(call: Call) -> Laid:
    """Exact, or with tanh; the interpreter for microcontrollers has no such operator."""
    if call.values.micro:
        return gelu_in_codes(call) if call.integer else gelu_by_formula(call)
    return _same_place(call, call.laid("self"), "GELU", "GeluOptions", approximate=call["approximate"] == "tanh")


@lowerings.add("Silu")
def silu(call: Call) -> Laid:
    """x * sigmoid(x)."""
    laid = call.laid("self")
    gate = call.step("LOGISTIC", (laid.tensor,), call.values.draft.tensors[laid.tensor].shape)
    return _same_place(call, laid, "MUL", "MulOptions", (gate,), fusedActivationFunction=0)


@lowerings.add("HardSigmoid")
def hard_sigmoid(call: Call) -> Laid:
    """relu6(x + 3) / 6."""
    laid = call.laid("self")
    if call.integer:
        return _coded_hard_sigmoid(call, laid)
    shape = call.values.draft.tensors[laid.tensor].shape
    lifted = call.step("ADD", (laid.tensor, call.number(3.0)), shape, "AddOptions", fusedActivationFunction=0)
    lifted = call.step("RELU6", (lifted,), shape)
    return _same_place(call, Laid(lifted, laid.order, laid.columns), "MUL", "MulOptions", (call.number(1 / 6),), fusedActivationFunction=0)


def _coded_hard_sigmoid(call: Call, laid: Laid) -> Laid:
    """The same on codes: those of the sum clip."""
    draft = call.values.draft
    three, sixth = (draft.constant(np.asarray(127, np.int8), "factor", quantizer) for quantizer in (THREE, SIXTH))
    lifted = draft.add(replace(draft.tensors[laid.tensor], name=f"{call.node.name}/add", quantizer=ZERO_TO_SIX))
    draft.op("ADD", (laid.tensor, three), (lifted,), "AddOptions", fusedActivationFunction=0)
    return _same_place(call, Laid(lifted, laid.order, laid.columns), "MUL", "MulOptions", (sixth,), fusedActivationFunction=0)


@lowerings.add("Reciprocal")
def reciprocal(call: Call) -> Laid:
    """1 / x."""
    laid = call.laid("self")
    result = call.op("DIV", (call.number(1.0), laid.tensor), laid.order, "DivOptions", fusedActivationFunction=0)
    return Laid(result.tensor, result.order, laid.columns)


@lowerings.add("Pow")
def power(call: Call) -> Laid:
    """Numbers and tensors."""
    exponent = call["exponent"]
    if not isinstance(exponent, (int, float)):
        tensors, order = aligned(call, "self", "exponent")
        return call.op("POW", tensors, order, "PowOptions")
    laid = call.laid("self")
    if exponent == 2:
        return _same_place(call, laid, "SQUARE", "SquareOptions")
    return _same_place(call, laid, "POW", "PowOptions", (call.number(exponent),))


_BINARY = {"Mul": ("MUL", "MulOptions"), "Div": ("DIV", "DivOptions"), "Add": ("ADD", "AddOptions"), "Sub": ("SUB", "SubOptions")}


def _binary(call: Call) -> Laid:
    code, options = _BINARY[call.row.onnx]
    left, right = list(call.args)[:2]
    if call.get("alpha", 1) != 1:
        return _scaled(call, code, options, left, right)
    meta = call.values.metas[call.node.name]
    if getattr(meta, "dtype", None) not in (torch.float32, torch.int32, torch.int64):
        raise call.unsupported(f"{call.node.op} of {getattr(meta, 'dtype', '')}")
    found, order = aligned(call, left, right)
    if call.integer and code == "DIV":  # by a number, which is turned over
        code, options = _BINARY["Mul"]
    tensors = [call.cast(number, str(meta.dtype).removeprefix("torch.")) for number in found]  # type: ignore[union-attr]
    return call.op(code, tensors, order, options, fusedActivationFunction=0)


def _scaled(call: Call, code: str, options: str, left: str, right: str) -> Laid:
    """left + alpha * right."""
    (one, two), order = aligned(call, left, right)
    product = call.step(
        "MUL", (two, call.number(call["alpha"])), call.values.draft.tensors[two].shape, "MulOptions", fusedActivationFunction=0
    )
    return call.op(code, (one, product), order, options, fusedActivationFunction=0)


for _onnx in _BINARY:
    lowerings.add(_onnx)(_binary)


@lowerings.add("Rsub")
def reversed_sub(call: Call) -> Laid:
    """other - alpha * self."""
    if call["alpha"] != 1:
        return _scaled(call, "SUB", "SubOptions", "other", "self")
    tensors, order = aligned(call, "other", "self")
    return call.op("SUB", tensors, order, "SubOptions", fusedActivationFunction=0)


def _extreme(call: Call) -> Laid:
    left, right = list(call.args)[:2]
    tensors, order = aligned(call, left, right)
    return call.op("MAXIMUM" if call.row.onnx == "Max" else "MINIMUM", tensors, order, "MaximumMinimumOptions")


lowerings.add("Max")(_extreme)
lowerings.add("Min")(_extreme)


@lowerings.add("PRelu")
def prelu(call: Call) -> Laid:
    """A slope for each channel."""
    slopes = call.array("weight")
    laid = call.laid("self")
    if slopes is None:
        raise call.unsupported(f"{call.node.op} with computed slopes")
    if slopes.size == 1 and call.integer:
        return _same_place(call, laid, "LEAKY_RELU", "LeakyReluOptions", alpha=float(slopes.reshape(-1)[0]))
    quantizer = None
    if call.integer:
        codes, quantizer = coded_parameter(torch.from_numpy(slopes))
        slopes = codes.numpy().astype(np.int8)
    if laid.columns and slopes.size > 1:
        channels, *places = laid.columns
        slopes = slopes.reshape(channels, *places).transpose(*range(1, len(places) + 1), 0).reshape(-1)
    rank = len(call.shape("self"))
    shape = [1] * rank
    shape[1 if rank > 1 else 0] = slopes.size
    alpha = np.broadcast_to(slopes.reshape(-1), (slopes.size,)).reshape(shape).transpose(laid.order)
    alpha = np.ascontiguousarray(alpha.reshape(alpha.shape[1:]))
    return _same_place(call, laid, "PRELU", "", (call.values.draft.constant(alpha, "slopes", quantizer),))


@lowerings.add("AddProduct")
def add_product(call: Call) -> Laid:
    """self + value * tensor1 * tensor2, or tensor1 / tensor2."""
    numbers, order = aligned(call, "self", "tensor1", "tensor2")
    start, one, two = (Part(Tape(call), number) for number in numbers)
    found = one * two if call.node.op == "aten.addcmul.default" else one / two
    return Laid((start + (found if call["value"] == 1 else found * float(call["value"]))).number, order)
