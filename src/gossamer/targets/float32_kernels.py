"""One row per op that targets with "float32-half-even" requantization compute on codes: from codes to codes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from gossamer.numerics import integer
from gossamer.numerics.affine import Quantizer, quantize
from gossamer.numerics.formats import IntFormat, PerTensor
from gossamer.program.graph import Arg, Node, Ref, map_refs
from gossamer.program.ops import bind, function
from gossamer.registry import Registry


@dataclass(frozen=True, slots=True, eq=False)
class CodeCall:
    """One op on codes.

    inputs   codes and quantizer of each value it reads, by name; parameters are in `state`
    numbers  other values it reads, such as sizes
    result   quantizer of its result; None where it hands out floats
    """

    node: Node
    inputs: Mapping[str, tuple[Tensor, Quantizer]]
    state: Mapping[str, Tensor]
    weights: Mapping[str, Quantizer]
    numbers: Mapping[str, Any]
    result: Quantizer | None

    @property
    def first(self) -> tuple[Tensor, Quantizer]:
        """The first value that it reads."""
        return self.inputs[self.node.uses[0]]

    def run(self, replaced: Mapping[str, Tensor]) -> Any:
        """Run the op itself with some values replaced."""

        def get(name: str) -> Any:
            if name in replaced:
                return replaced[name]
            return self.inputs[name][0] if name in self.inputs else self.numbers[name]

        kwargs = {key: map_refs(value, get) for key, value in self.node.kwargs}
        return function(self.node.op)(*map_refs(self.node.args, get), **kwargs)

    def shaped(self, rows: Tensor) -> Tensor:
        """Results of `layer_sums` with the axes that the layer's result has."""
        return rows.reshape(*self.first[0].shape[:-1], -1) if self.node.op.startswith("aten.linear") else rows


Kernel = Any  # Callable[[CodeCall], Tensor | tuple[Tensor, ...]]
kernels: Registry[Kernel] = Registry("float32-half-even kernel")


def result_of(call: CodeCall) -> Quantizer:
    """The quantizer of an op's result, for kernels that hand out codes only."""
    assert call.result is not None, f"{call.node.op} has no float result"
    return call.result


@kernels.add("Conv")
@kernels.add("Gemm")
def layer(call: CodeCall) -> Tensor:
    """Convolution or linear layer, with its own op on whole numbers."""
    sums, weight = layer_sums(call)
    scales = integer.accumulator_scales(call.first[1], weight, sums)
    out = integer.scale_sums(sums, scales) if call.result is None else integer.requantize(sums, scales, call.result)
    return call.shaped(out)


def layer_sums(call: CodeCall) -> tuple[Tensor, Quantizer]:
    """Accumulators of a convolution or linear layer, its bias included, and the quantizer of its weight.

    Those of a linear layer have two axes, whatever its input has: `call.shaped` undoes that.
    """
    bound = bind(call.node)
    codes, source = call.first
    weight_name = bound["weight"].name
    weight = call.weights[weight_name]
    plain = without_bias(call.node)

    def product(x: Tensor, w: Tensor) -> Tensor:
        result: Tensor = replace(call, node=plain).run({call.node.uses[0]: x, weight_name: w})
        return result.flatten(0, -2) if result.dim() > 2 and call.node.op.startswith("aten.linear") else result

    scales = integer.accumulator_scales(source, weight, torch.empty(1, 1))
    bias = bound["bias"]
    bias_codes = None if bias is None else integer.bias_to_codes(call.state[bias.name], scales)
    sums = integer.accumulate(product, codes, source, quantize(call.state[weight_name].detach(), weight), bias=bias_codes)
    return sums, weight


@kernels.add("MatMul")
def matmul(call: CodeCall) -> Tensor:
    """Product of two values."""
    (left, one), (right, two) = (call.inputs[name] for name in call.node.uses[:2])
    names = call.node.uses[:2]
    sums = call.run({names[0]: left.double() - one.zero_point[0], names[1]: right.double() - two.zero_point[0]})
    scales = torch.tensor(one.scale[0], dtype=torch.float32) * torch.tensor(two.scale[0], dtype=torch.float32)
    return integer.scale_sums(sums, scales) if call.result is None else integer.requantize(sums, scales, call.result)


@kernels.add("Add")
def add(call: CodeCall) -> Tensor:
    """Sum of two values."""
    (left, one), (right, two) = pair_of(call)
    return integer.add_codes(left, right, (one, two, result_of(call)))


@kernels.add("Mul")
def mul(call: CodeCall) -> Tensor:
    """Product of two values, position by position."""
    (left, one), (right, two) = pair_of(call)
    return integer.multiply_codes(left, right, (one, two, result_of(call)))


@kernels.add("Sigmoid")
@kernels.add("LeakyRelu")
def table(call: CodeCall) -> Tensor:
    """Any function of one value."""
    codes, source = call.first
    return integer.look_up(lambda real: call.run({call.node.uses[0]: real}), codes, source, result_of(call))


@kernels.add("HardSigmoid")
def hard_sigmoid(call: CodeCall) -> Tensor:
    """clamp(x/6 + 1/2, 0, 1) as a product with 1/6 whose result has its zero point at 1/2."""
    codes, source = call.first
    sixth = Quantizer(IntFormat(bits=8, signed=False), PerTensor(), (float(torch.tensor(1 / 6, dtype=torch.float32)),), (0,))
    result = result_of(call)
    shifted = replace(result, zero_point=(1 << (result.format.bits - 1),))
    return integer.multiply_codes(codes, torch.ones(()), (source, sixth, shifted))


@kernels.add("Concat")
def concat(call: CodeCall) -> Tensor:
    """Parts in the result's codes."""
    return joined(call, integer.recode)


def joined(call: CodeCall, convert: Callable[[Tensor, Quantizer, Quantizer], Tensor]) -> Tensor:
    """Run a join on its parts, each converted from its codes to the result's."""
    parts = {name: convert(*call.inputs[name], result_of(call)) for name in dict.fromkeys(call.node.uses) if name in call.inputs}
    found: Tensor = call.run(parts)
    return found


def clamped(distances: Tensor, result: Quantizer) -> Tensor:
    """Codes at whole distances from the zero point."""
    return (distances + result.zero_point[0]).clamp(result.format.lo, result.format.hi).to(torch.float32)


@kernels.add("AdaptiveAveragePool")
@kernels.add("ReduceMean")
def adaptive_average(call: CodeCall) -> Tensor:
    """Mean over height and width, or over equal windows."""
    codes, source = call.first
    shape = call.run({call.node.uses[0]: codes}).shape
    if codes.dim() == 4 and torch.Size(shape[2:]).numel() == 1:
        return integer.average_all(codes, source, result_of(call)).reshape(shape)
    return integer.average_windows(lambda real: call.run({call.node.uses[0]: real}), codes, source, result_of(call))


@kernels.add("AveragePool")
def average(call: CodeCall) -> Tensor:
    """Mean over windows."""
    codes, source = call.first
    return integer.average_windows(lambda real: call.run({call.node.uses[0]: real}), codes, source, result_of(call))


def pass_on(call: CodeCall) -> Any:
    """Any op that only moves or picks codes: run on distances from the zero point, so that padding with 0 is right."""
    codes, source = call.first
    zero = source.zero_point[0]
    moved = call.run({call.node.uses[0]: codes - zero})
    return tuple(part + zero for part in moved) if isinstance(moved, (tuple, list)) else moved + zero


def pair_of(call: CodeCall) -> list[tuple[Tensor, Quantizer]]:
    """Codes and quantizers of the two values that an op reads."""
    names = [name for name in call.node.uses if name in call.inputs]
    return [call.inputs[name] for name in names]


def without_bias(node: Node) -> Node:
    """The same layer without its bias."""
    bias = bind(node)["bias"]

    def drop(arg: Arg) -> Arg:
        return None if isinstance(arg, Ref) and bias is not None and arg.name == bias.name else arg

    return replace(node, args=tuple(map(drop, node.args)), kwargs=tuple((key, drop(value)) for key, value in node.kwargs))
