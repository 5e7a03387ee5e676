"""What LiteRT for Microcontrollers computes in integers with its reference kernels."""

from __future__ import annotations

from gossamer.numerics.formats import IntFormat
from gossamer.plan.spec import TargetSpec, specs

NAME = "tflm"

_SAME_SCALE = "MaxPool Reshape Transpose Slice Split Select Unbind Pad".split()
_COMPUTE = "Conv Gemm Add Mul AdaptiveAveragePool ReduceMean Concat".split()

SPEC = TargetSpec(
    name=NAME,
    weight_formats=(IntFormat(bits=8, narrow=True),),
    activation_formats=(IntFormat(bits=8),),
    integer_ops=frozenset([*_COMPUTE, *_SAME_SCALE]),
    same_scale_ops=frozenset(_SAME_SCALE),
    absorbed_ops=frozenset({"Relu", "Clip"}),
    float_result_ops=frozenset(),
    requantization="gemmlowp",
)
specs.add(NAME, source="reference kernels of tflite-micro, October 2026")(SPEC)
