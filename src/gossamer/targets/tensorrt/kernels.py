"""Layers as TensorRT's explicit quantization defines them: whole sums, scaled to float32, the bias added there, then codes."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from gossamer.numerics import integer
from gossamer.numerics.affine import quantize
from gossamer.program.graph import Ref
from gossamer.program.ops import bind
from gossamer.targets.float32_kernels import CodeCall, layer_sums, without_bias
from gossamer.targets.kernel_sets import KernelSet, kernel_sets


def layer(call: CodeCall) -> Tensor:
    """Convolution or linear layer with a float bias. Shapes as the layer's own."""
    sums, weight = layer_sums(replace(call, node=without_bias(call.node)))
    real = integer.scale_sums(sums, integer.accumulator_scales(call.first[1], weight, sums))
    bias = bind(call.node)["bias"]
    if isinstance(bias, Ref):
        real = real + call.state[bias.name].to(torch.float32).reshape([-1 if axis == 1 else 1 for axis in range(real.dim())])
    shaped = call.shaped(real)
    return shaped if call.result is None else quantize(shaped, call.result)


def matmul(call: CodeCall) -> Tensor:
    """Product of two values."""
    names = call.node.uses[:2]
    (left, one), (right, two) = (call.inputs[name] for name in names)
    sums = call.run({names[0]: left.double() - one.zero_point[0], names[1]: right.double() - two.zero_point[0]})
    real = integer.scale_sums(sums, torch.tensor(one.scale[0], dtype=torch.float32) * torch.tensor(two.scale[0], dtype=torch.float32))
    return real if call.result is None else quantize(real, call.result)


FLOAT_BEHIND_SUMS: KernelSet = {"Conv": layer, "Gemm": layer, "MatMul": matmul}
kernel_sets.add("float-behind-sums", source="NVIDIA TensorRT documentation, explicit quantization; ONNX's definition of the same graph")(
    FLOAT_BEHIND_SUMS
)
