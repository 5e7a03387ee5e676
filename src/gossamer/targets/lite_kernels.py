"""Kernels on codes of the LiteRT family, and what its kernel sets are made with."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from gossamer.numerics import fixed_functions
from gossamer.numerics.affine import Quantizer, quantize
from gossamer.numerics.fixed_point import multiply, quantize_multiplier
from gossamer.numerics.formats import IntFormat, PerTensor
from gossamer.program.graph import Ref
from gossamer.program.ops import bind, op_of
from gossamer.targets.float32_kernels import CodeCall, Kernel, clamped, pass_on, result_of

Pairwise = Callable[[Tensor, Tensor, tuple[Quantizer, Quantizer, Quantizer]], Tensor]


def table(function: Callable[..., Tensor], **numbers: str) -> Kernel:
    """The kernel of a function of one code; `numbers`: its further parameters -> arguments of the op."""

    def kernel(call: CodeCall) -> Tensor:
        bound = bind(call.node)
        codes, source = call.first
        return function(codes, source, result_of(call), **{name: bound[argument] for name, argument in numbers.items()})

    return kernel


def prelu(one_slope: Callable[..., Tensor]) -> Kernel:
    """One slope for all: as leaky ReLU; otherwise codes of slopes, and a multiplier for each sign."""

    def kernel(call: CodeCall) -> Tensor:
        codes, source = call.first
        result, slopes = result_of(call), call.state[bind(call.node)["weight"].name]
        if slopes.numel() == 1:
            return one_slope(codes, source, result, float(slopes))
        factors, coding = coded_parameter(slopes)
        shape = [1] * codes.dim()
        shape[1 if codes.dim() > 1 else 0] = -1
        away, scale = codes.to(torch.int64) - source.zero_point[0], source.scale[0] / result.scale[0]
        below = multiply(away * factors.reshape(shape), *quantize_multiplier(source.scale[0] * coding.scale[0] / result.scale[0]))
        return clamped(torch.where(away >= 0, multiply(away, *quantize_multiplier(scale)), below), result)

    return kernel


def softmax(call: CodeCall) -> Tensor:
    """Along one axis, in fixed point."""
    codes, source = call.first
    axis = bind(call.node)["dim"]
    shares = fixed_functions.softmax(codes.to(torch.int64).movedim(axis, -1), source.scale[0])
    return clamped(shares.movedim(-1, axis), result_of(call))


def average_pool(call: CodeCall) -> Tensor:
    """Means of codes as they are, halves away from 0; result and input have the same codes."""
    codes, source = call.first
    bound = bind(call.node)
    padding = bound["padding"]
    whole = codes.to(torch.float64)
    if bound["count_include_pad"] and any(padding):  # a border that counts is made of codes of 0.0
        height, width = padding if len(padding) == 2 else (*padding, *padding)
        whole, padding = F.pad(whole, (width, width, height, height), value=source.zero_point[0]), 0
    sizes = (bound["kernel_size"], bound["stride"] or bound["kernel_size"], padding, bound["ceil_mode"], True, 1)
    sums, counts = (F.avg_pool2d(part, *sizes).to(torch.int64) for part in (whole, torch.ones_like(whole)))
    half = counts // 2
    return torch.div(sums + torch.where(sums > 0, half, -half), counts, rounding_mode="trunc").to(torch.float32)


def resize(bilinear: Callable[..., Tensor]) -> Kernel:
    """Nearest picks codes; bilinear mixes them."""

    def kernel(call: CodeCall) -> Any:
        if "bilinear" not in call.node.op:
            return pass_on(call)
        codes, _ = call.first
        size = call.run({call.node.uses[0]: codes}).shape[2:]
        return bilinear(codes.to(torch.int64), tuple(size), align_corners=bind(call.node)["align_corners"]).to(torch.float32)

    return kernel


def coded_number(value: float) -> tuple[int, Quantizer]:
    """A plain number as 127 or -127 steps."""
    return 127 if value > 0 else -127, Quantizer(IntFormat(bits=8), PerTensor(), (float(torch.tensor(abs(value) / 127)),), (0,))


def coded_parameter(parameter: Tensor) -> tuple[Tensor, Quantizer]:
    """Slopes of a PReLU, or what stands in place of a second value, as codes of one scale, whole numbers, and their quantizer."""
    most = float(parameter.detach().abs().max())
    quantizer = Quantizer(IntFormat(bits=8, narrow=True), PerTensor(), (float(torch.tensor(most / 127)) if most else 1.0,), (0,))
    return quantize(parameter.detach().float().cpu(), quantizer).to(torch.int64), quantizer


def operands(call: CodeCall) -> list[tuple[Tensor, Quantizer]]:
    """Codes and quantizers of what an op of two values reads, the one from which the other is taken first; a divisor is turned over."""
    bound, name = bind(call.node), op_of(call.node).onnx
    found = []
    for argument in ("other", "self") if name == "Rsub" else ("self", "other"):
        value = bound[argument]
        if isinstance(value, Ref) and value.name not in call.inputs:
            codes, quantizer = coded_parameter(call.state[value.name])
            found.append((codes.float(), quantizer))
        elif isinstance(value, Ref):
            found.append(call.inputs[value.name])
        else:
            code, quantizer = coded_number(1 / value if name == "Div" else value)
            found.append((torch.full((), float(code)), quantizer))
    return found


THREE, SIXTH = coded_number(3.0)[1], coded_number(1 / 6)[1]
ZERO_TO_SIX = Quantizer(IntFormat(bits=8), PerTensor(), (float(torch.tensor(6 / 255)),), (-128,))


def hard_sigmoid(call: CodeCall, added: Pairwise, multiplied: Pairwise) -> Tensor:
    """clamp(x + 3, 0, 6) / 6 by a target's sum and product; the codes of the sum clip."""
    codes, source = call.first
    lifted = added(codes, torch.full((), 127), (source, THREE, ZERO_TO_SIX))
    return multiplied(lifted, torch.full((), 127.0), (ZERO_TO_SIX, SIXTH, result_of(call)))
