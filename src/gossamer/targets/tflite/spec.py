"""What LiteRT's XNNPACK kernels compute in integers."""

from __future__ import annotations

from gossamer.numerics.formats import IntFormat
from gossamer.plan.spec import TargetSpec

NAME = "litert"

_SAME_SCALE = "MaxPool Reshape Transpose Slice Split Select Unbind Pad".split()
_COMPUTE = "Conv Gemm Add Mul AdaptiveAveragePool ReduceMean Concat Sigmoid".split()

SPEC = TargetSpec(
    name=NAME,
    weight_formats=(IntFormat(bits=8, narrow=True),),
    activation_formats=(IntFormat(bits=8),),
    integer_ops=frozenset([*_COMPUTE, *_SAME_SCALE]),
    same_scale_ops=frozenset(_SAME_SCALE),
    absorbed_ops=frozenset({"Relu", "Clip"}),
    float_result_ops=frozenset(),
    requantization="xnnpack",
    gate_ops=frozenset({"Sigmoid"}),
)
