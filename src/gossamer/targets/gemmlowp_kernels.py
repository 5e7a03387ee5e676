"""Kernels on signed codes that compute with whole numbers alone: LiteRT's reference kernels, microcontrollers, CMSIS-NN."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from gossamer.numerics.affine import Quantizer
from gossamer.numerics.fixed_point import mean_multiplier, multiply, quantize_multiplier
from gossamer.numerics.resample import fixed_bilinear
from gossamer.program.ops import op_of
from gossamer.targets import code_tables, lite_kernels
from gossamer.targets.float32_kernels import CodeCall, clamped, joined, layer_sums, result_of
from gossamer.targets.kernel_sets import KernelSet, kernel_sets

gemmlowp: KernelSet = kernel_sets.add("gemmlowp", source="reference kernels of tflite-micro; found exact by comparing")({})


Scaled = Callable[[Tensor, Sequence[float], Sequence[int]], Tensor]  # sums, factors, the shape that these are broadcast from -> codes


def layer(call: CodeCall) -> Tensor:
    """Convolution or linear layer: a multiplier for each output channel."""
    return scaled_layer(call, _scaled)


def scaled_layer(call: CodeCall, scaled: Scaled) -> Tensor:
    """Convolution or linear layer whose sums become codes by `scaled`."""
    sums, weight = layer_sums(call)
    source, result = call.first[1], result_of(call)
    factors = [source.scale[0] * scale / result.scale[0] for scale in weight.scale]
    shape = [1] * sums.dim()
    shape[1 if sums.dim() > 2 else -1] = len(factors)
    return call.shaped(clamped(scaled(sums.to(torch.int64), factors, shape), result))


def add(call: CodeCall) -> Tensor:
    """Sum or difference: both at 20 more bits and one scale, then to the result's."""
    (left, one), (right, two) = lite_kernels.operands(call)
    return added(left, right, (one, two, result_of(call)), sign=-1 if op_of(call.node).onnx in ("Sub", "Rsub") else 1)


def added(left: Tensor, right: Tensor, quantizers: tuple[Quantizer, Quantizer, Quantizer], sign: int = 1) -> Tensor:
    """Codes of left + sign * right."""
    one, two, result = quantizers
    twice = 2.0 * max(one.scale[0], two.scale[0])
    sums = _distance(left, one, 20, one.scale[0] / twice) + sign * _distance(right, two, 20, two.scale[0] / twice)
    return clamped(multiply(sums, *quantize_multiplier(twice / (2**20 * result.scale[0]))), result)


def mul(call: CodeCall) -> Tensor:
    """Product of two values, position by position."""
    (left, one), (right, two) = lite_kernels.operands(call)
    return multiplied(left, right, (one, two, result_of(call)))


def multiplied(left: Tensor, right: Tensor, quantizers: tuple[Quantizer, Quantizer, Quantizer]) -> Tensor:
    """Codes of left * right."""
    one, two, result = quantizers
    products = (left.long() - one.zero_point[0]) * (right.long() - two.zero_point[0])
    return clamped(multiply(products, *quantize_multiplier(one.scale[0] * two.scale[0] / result.scale[0])), result)


def matmul(call: CodeCall) -> Tensor:
    """Matrix product of two values."""
    (left, one), (right, two) = (call.inputs[name] for name in call.node.uses[:2])
    names, result = call.node.uses[:2], result_of(call)
    sums = call.run({names[0]: left.double() - one.zero_point[0], names[1]: right.double() - two.zero_point[0]}).long()
    return clamped(multiply(sums, *quantize_multiplier(one.scale[0] * two.scale[0] / result.scale[0])), result)


def convert(codes: Tensor, source: Quantizer, result: Quantizer) -> Tensor:
    """Other codes of the same value."""
    return codes if source == result else clamped(_distance(codes, source, 0, source.scale[0] / result.scale[0]), result)


def quantize(real: Tensor, quantizer: Quantizer) -> Tensor:
    """Codes of floats: halves go away from zero."""
    ratio = (real / torch.tensor(quantizer.scale[0])).to(torch.float64)  # in float32 the sum with a half would be rounded itself
    codes = (ratio.sign() * (ratio.abs() + 0.5).floor()).to(torch.float32)
    return (codes + quantizer.zero_point[0]).clamp(quantizer.format.lo, quantizer.format.hi)


def concat(call: CodeCall) -> Tensor:
    """Parts in the result's codes."""
    return joined(call, convert)


def mean(call: CodeCall) -> Tensor:
    """Mean over height and width."""
    codes, source = call.first
    result = result_of(call)
    shape = call.run({call.node.uses[0]: codes}).shape
    sums = (codes.long() - source.zero_point[0]).sum((2, 3))
    return clamped(multiply(sums, *mean_multiplier(source.scale[0] / result.scale[0], codes[0, 0].numel())), result).reshape(shape)


def _distance(codes: Tensor, source: Quantizer, bits: int, factor: float) -> Tensor:
    return multiply((codes.long() - source.zero_point[0]) << bits, *quantize_multiplier(factor))


def _scaled(sums: Tensor, factors: Sequence[float], shape: Sequence[int]) -> Tensor:
    pairs = [quantize_multiplier(factor) for factor in factors]
    multipliers, exponents = (torch.tensor(part, dtype=torch.int64).reshape(shape) for part in zip(*pairs, strict=True))
    return multiply(sums, multipliers, exponents)


def clamp(call: CodeCall) -> Tensor:
    """A clamp of its own: other codes, which clip."""
    return convert(*call.first, result_of(call))


def hard_sigmoid(call: CodeCall) -> Tensor:
    """An addition of 3 whose result's codes clip at 0 and 6, and a product with 1/6."""
    return lite_kernels.hard_sigmoid(call, added, multiplied)


gemmlowp |= {
    "Conv": layer,
    "Gemm": layer,
    "MatMul": matmul,
    "Add": add,
    "Sub": add,
    "Rsub": add,
    "Div": mul,
    "Mul": mul,
    "AveragePool": lite_kernels.average_pool,
    "Softmax": lite_kernels.softmax,
    "HardSwish": lite_kernels.table(code_tables.hard_swish),
    "Elu": lite_kernels.table(code_tables.elu),
    "Gelu": lite_kernels.table(code_tables.gelu, approximate="approximate"),
    "Relu": clamp,
    "Clip": clamp,
    "HardSigmoid": hard_sigmoid,
    "Sigmoid": lite_kernels.table(code_tables.fixed_sigmoid),
    "Tanh": lite_kernels.table(code_tables.fixed_tanh),
    "LeakyRelu": lite_kernels.table(code_tables.fixed_leaky_relu, slope="negative_slope"),
    "PRelu": lite_kernels.prelu(code_tables.fixed_leaky_relu),
    "Resize": lite_kernels.resize(fixed_bilinear),
    "Concat": concat,
    "AdaptiveAveragePool": mean,
    "ReduceMean": mean,
    "Quantize": quantize,
}
