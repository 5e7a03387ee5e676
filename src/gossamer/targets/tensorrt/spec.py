"""What TensorRT computes in INT8 by explicit quantization, from its documentation: nothing of this was measured on a GPU.

Codes are signed and symmetric, one scale for a value and one for each output channel of a weight. Layers read codes and go on in
float inside their kernel: bias, activation, and the addition of a residual, whose codes the kernel reads along. So pairs of
QuantizeLinear and DequantizeLinear stand in front of layers and of residuals only, as TensorRT's documentation wants them.
Source: NVIDIA TensorRT 10.15 documentation, "Working with Quantized Types" ("Q/DQ Layer-Placement Recommendations", "Q/DQ Limitations").
"""

from __future__ import annotations

from gossamer.numerics.formats import FLOAT_FORMATS, IntFormat
from gossamer.plan.spec import TargetSpec

NAME = "tensorrt"

SPEC = TargetSpec(
    name=NAME,
    weight_formats=(IntFormat(bits=8, narrow=True),),
    float_formats=(FLOAT_FORMATS["fp16"], FLOAT_FORMATS["bf16"]),  # its Cast knows no fp8
    activation_formats=(IntFormat(bits=8),),
    integer_ops=frozenset({"Conv", "Gemm", "MatMul"}),
    same_scale_ops=frozenset(),
    absorbed_ops=frozenset(),  # codes around 0 do not clip like an activation, which runs in the layer's kernel all the same
    float_result_ops=frozenset({"Conv", "Gemm", "MatMul"}),
    requantization="float-behind-sums",
    tolerance_steps=1,  # float sums in another order may decide a tie
    exposed_as_run=False,
    width_multiple=32,  # channels per INT8 vector (NVIDIA's formats CHW32 and HWC32)
    symmetric_values=True,
    float_biases=True,
    guarded=False,
    coded_residuals=True,
    fused_ops=frozenset({"Relu", "Clip", "Add"}),
    transparent_ops=frozenset("MaxPool Reshape Transpose Slice".split()),
)
