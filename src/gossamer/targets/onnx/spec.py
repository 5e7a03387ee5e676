"""What ONNX Runtime's CPU kernels compute in integers, read off optimized graphs of version 1.32 on x86-64.

An op is listed when DequantizeLinear -> op -> QuantizeLinear becomes one kernel on codes. Two of them need help:
SiLU and HardSwish only once they are split into gate and product (gossamer.program.gates), and HardSigmoid only with
codes of scale 2^-8 and zero point 0, which also suit Sigmoid. BatchNormalization, LayerNormalization, Gelu, Pad in
modes other than "constant" of another scale, and bilinear Resize are computed in float between codes.
"""

from __future__ import annotations

from gossamer.numerics.formats import FLOAT_FORMATS, IntFormat
from gossamer.plan.spec import TargetSpec

NAME = "onnxruntime"

# they hand on codes as they are, so source and result share one quantizer
_SAME_SCALE = "MaxPool Reshape Transpose Slice Split Select Unbind Gather Flip Pad DepthToSpace SpaceToDepth ChannelShuffle Pixels".split()
_COMPUTE = "Conv Gemm MatMul Add Mul Sigmoid HardSigmoid LeakyRelu AveragePool AdaptiveAveragePool ReduceMean Concat".split()

# kernels take int8 codes: of fewer bits, only the file is smaller (half for 3 and 4 bits, a quarter for 2); at most 7 bits are
# exact also where kernels saturate at 16 bits (targets.onnx.saturation)
_WEIGHTS = tuple(IntFormat(bits=bits, narrow=True) for bits in (8, 7, 6, 5, 4, 3, 2))

SPEC = TargetSpec(
    name=NAME,
    weight_formats=_WEIGHTS,
    float_formats=tuple(FLOAT_FORMATS.values()),  # behind a Cast, which the runtime computes once, when it loads the file
    packed_bits=(2, 4, 8),
    # unsigned: with signed activations 11 convolutions and all additions of a ResNet-18 stay in float
    # of fewer bits, kernels take as long as with 8, and a clip of their codes behind each
    activation_formats=tuple(IntFormat(bits=bits, signed=False) for bits in (8, 7, 6, 5, 4, 3, 2)),
    integer_ops=frozenset([*_COMPUTE, *_SAME_SCALE]),
    same_scale_ops=frozenset(_SAME_SCALE),
    absorbed_ops=frozenset({"Relu", "Clip"}),
    float_result_ops=frozenset({"Gemm", "MatMul"}),
    gate_ops=frozenset({"Sigmoid", "HardSigmoid"}),
    requantization="float32-half-even",
    add_tolerance_steps=1,
    written_otherwise=frozenset({"few channels", "partial blocks"}),
    least_channels=4,  # even written with more channels: 0.59 ms in integers, 0.35 in float from 3 to 16 channels, 3 x 3 with step 2, 224 x 224,
    least_products=27 * 32,  # and 0.43 and 0.65 from 3 to 32
    group_channels=48,  # with groups merged (targets.onnx.merged_groups)
    least_group_channels=16,  # where they cannot be: 208 channels in groups of 16 take 0.17 ms in integers and 0.39 in float, 48 in groups of 8 1.9 and 1.1
    dynamic_formats=_WEIGHTS,
    block_formats=tuple(IntFormat(bits=bits, signed=signed) for bits in (4, 8) for signed in (True, False)),
    block_sizes=(32, 16, 64, 128, 256),
    input_bits=8,  # MatMulNBits at accuracy level 4, reproduced to 1e-7 by the dynamic_quantize op
    rounded_only=frozenset({"int8", "uint8"}),  # at level 0 its 8-bit kernel takes 3 times as long as float
    table_formats=(IntFormat(bits=8, narrow=True),),
    floats_beside_codes=True,
    width_multiple=16,  # float kernels work on blocks of 16 channels (AVX-512); 24 take as long as 32
)
