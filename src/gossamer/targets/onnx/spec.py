"""What ONNX Runtime's CPU kernels compute in integers, read off optimized graphs of version 1.32 on x86-64.

An op belongs to `integer_ops` when DequantizeLinear -> op -> QuantizeLinear becomes one kernel on codes.
"""

from __future__ import annotations

from gossamer.numerics.formats import IntFormat
from gossamer.plan.spec import TargetSpec, specs

NAME = "onnxruntime"

SPEC = TargetSpec(
    name=NAME,
    weight_formats=(IntFormat(bits=8, narrow=True),),
    # unsigned: with signed activations 11 convolutions and all additions of a ResNet-18 stay in float
    activation_formats=(IntFormat(bits=8, signed=False),),
    integer_ops=frozenset(
        {"Conv", "Gemm", "Add", "MaxPool", "AveragePool", "AdaptiveAveragePool", "ReduceMean", "Concat", "Reshape", "Transpose"}
    ),
    same_scale_ops=frozenset({"MaxPool", "Reshape", "Transpose"}),
    absorbed_ops=frozenset({"Relu", "Clip"}),
    float_result_ops=frozenset({"Gemm"}),
    requantization="float32-half-even",
    add_tolerance_steps=1,
    width_multiple=8,
)
specs.add(NAME, source="measured, see docs/decisions")(SPEC)
