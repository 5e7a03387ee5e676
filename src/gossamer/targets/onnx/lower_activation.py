"""Activation functions and other curves."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from gossamer.numerics.affine import Quantizer
from gossamer.numerics.formats import IntFormat, PerTensor
from gossamer.targets.onnx.coding import emit_codes, emit_real
from gossamer.targets.onnx.lowering import Call, lowerings


def gate_of(bits: int) -> Quantizer:
    """The codes of values in [0, 1] that the target prescribes (TargetSpec.gate_ops)."""
    return Quantizer(IntFormat(bits=bits, signed=False), PerTensor(), (2.0**-bits,), (0,))


GATE = gate_of(8)


@lowerings.add("LeakyRelu")
def leaky_relu(call: Call) -> str:
    """x where positive, else slope * x."""
    return call.op("LeakyRelu", call.tensor("self"), alpha=float(call["negative_slope"]))


@lowerings.add("Elu")
def elu(call: Call) -> str:
    """scale and input_scale of the aten op have no place in ONNX's and are 1 in practice."""
    if call["scale"] != 1 or call["input_scale"] != 1:
        raise call.unsupported(f"{call.node.op} with a scale")
    return call.op("Elu", call.tensor("self"), alpha=float(call["alpha"]))


@lowerings.add("Selu")
def selu(call: Call) -> str:
    """torch's constants, in full."""
    return call.op("Selu", call.tensor("self"), alpha=1.6732632423543772, gamma=1.0507009873554805)


@lowerings.add("Gelu")
def gelu(call: Call) -> str:
    """Exact (erf) or by tanh."""
    return call.op("Gelu", call.tensor("self"), approximate=call["approximate"])


@lowerings.add("Silu")
def silu(call: Call) -> str:
    """x * sigmoid(x)."""
    source = call.tensor("self")
    return call.op("Mul", source, call.op("Sigmoid", source))


@lowerings.add("HardSigmoid")
def hard_sigmoid(call: Call) -> str:
    """clamp(x/6 + 1/2, 0, 1).

    ONNX Runtime has no integer kernel for it, but one for products. With codes of scale 2^-8 and zero point 0 (2^-bits for fewer
    bits), 1/2 is 128 steps: the codes are those of x/6 at zero point 128, whose range clips where the clamp does.
    """
    source, quantizer = call.tensor("self"), call.values.program.quantizers.get(call.node.name)
    if source not in call.values.coded or quantizer is None or quantizer != gate_of(quantizer.format.bits):
        return call.op("HardSigmoid", source, alpha=1 / 6, beta=0.5)
    draft = call.values.draft
    sixth = emit_real(draft, draft.constant(np.array(1, np.uint8)), "sixth", replace(GATE, scale=(float(np.float32(1 / 6)),)))
    shifted = replace(quantizer, zero_point=(1 << (quantizer.format.bits - 1),))
    return call.define_codes(emit_codes(draft, call.op("Mul", source, sixth), call.node.name, shifted), quantizer)


@lowerings.add("HardSwish")
def hard_swish(call: Call) -> str:
    """x * clamp(x/6 + 1/2, 0, 1)."""
    return call.op("HardSwish", call.tensor("self"))


@lowerings.add("Softplus")
def softplus(call: Call) -> str:
    """log(1 + exp(beta * x)) / beta."""
    source, beta = call.tensor("self"), call["beta"]
    if beta == 1:
        return call.op("Softplus", source)
    scaled = call.op("Mul", source, call.constant(beta, call.result.dtype))
    return call.op("Div", call.op("Softplus", scaled), call.constant(beta, call.result.dtype))


@lowerings.add("Celu")
def celu(call: Call) -> str:
    """x where positive, else alpha * (exp(x / alpha) - 1)."""
    return call.op("Celu", call.tensor("self"), alpha=float(call["alpha"]))


@lowerings.add("PRelu")
def prelu(call: Call) -> str:
    """One slope, or one per channel of axis 1."""
    form = call.form("self")
    slopes = call.form("weight").sizes
    shape = [*slopes, *[1] * (form.rank - 2)] if form.rank > 1 else list(slopes)
    return call.op("PRelu", call.tensor("self"), call.reshape(call.tensor("weight"), slopes, shape))


@lowerings.add("Glu")
def glu(call: Call) -> str:
    """First half times the sigmoid of the second."""
    axis = call.axis()
    half = call.result.sizes[axis]
    first, second = call.ops("Split", call.tensor("self"), call.sizes([half, half]), outputs=2, axis=axis)
    return call.op("Mul", first, call.op("Sigmoid", second))


@lowerings.add("Threshold")
def threshold(call: Call) -> str:
    """softshrink, hardshrink and threshold."""
    source, dtype = call.tensor("self"), call.result.dtype
    match call.node.op.split(".")[1]:
        case "softshrink":
            return call.op("Shrink", source, lambd=float(call["lambd"]), bias=float(call["lambd"]))
        case "hardshrink":
            return call.op("Shrink", source, lambd=float(call["lambd"]), bias=0.0)
    above = call.op("Greater", source, call.constant(call["threshold"], dtype))
    return call.op("Where", above, source, call.constant(call["value"], dtype))


@lowerings.add("Logarithms")
def logarithms(call: Call) -> str:
    """log1p, expm1, log2, log_sigmoid and logit by their formulas."""
    source, dtype = call.tensor("self", call.result.dtype), call.result.dtype
    one = call.constant(1, dtype)
    match call.node.op.split(".")[1]:
        case "log1p":
            return call.op("Log", call.op("Add", source, one))
        case "expm1":
            return call.op("Sub", call.op("Exp", source), one)
        case "log2":
            return call.op("Mul", call.op("Log", source), call.constant(1 / math.log(2), dtype))
        case "log_sigmoid":
            return call.op("Neg", call.op("Softplus", call.op("Neg", source)))
    if call["eps"] is not None:
        source = call.op("Clip", source, call.constant(call["eps"], dtype), call.constant(1 - call["eps"], dtype))
    return call.op("Log", call.op("Div", source, call.op("Sub", one, source)))
