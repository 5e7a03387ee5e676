"""What OpenVINO's CPU plug-in computes in integers, read off runtime models of version 2026.4 on x86-64 with AVX512-VNNI.

Its kernels read codes, add up in int32 and go on in float32 inside the same kernel: bias, activations of any kind and the
rounding to the next codes cost no trip to memory. So an activation needs no codes in front of it, results of layers may stay
float, and signed and unsigned codes are equally fast. Additions behind convolutions become part of their kernel.
"""

from __future__ import annotations

from gossamer.numerics.formats import IntFormat
from gossamer.plan.spec import TargetSpec

NAME = "openvino"

# they hand on codes as they are, so source and result share one quantizer
_SAME_SCALE = "MaxPool Reshape Transpose Slice Split Select Unbind Gather Flip Pad DepthToSpace SpaceToDepth ChannelShuffle Pixels".split()
_COMPUTE = "Conv Gemm MatMul Add Mul AveragePool AdaptiveAveragePool ReduceMean Concat".split()

SPEC = TargetSpec(
    name=NAME,
    weight_formats=(IntFormat(bits=8, narrow=True), IntFormat(bits=7, narrow=True)),  # 7 bits: exact also where kernels saturate
    activation_formats=(IntFormat(bits=8, signed=False), IntFormat(bits=8)),
    integer_ops=frozenset([*_COMPUTE, *_SAME_SCALE]),
    same_scale_ops=frozenset(_SAME_SCALE),
    absorbed_ops=frozenset({"Relu", "Clip"}),
    float_result_ops=frozenset({"Conv", "Gemm", "MatMul"}),
    requantization="float32-half-even",
    add_tolerance_steps=1,
    tolerance_steps=1,  # the bias is added after scaling, in float32: the last bit may decide a tie
    exposed_as_run=False,  # an Add whose inputs are handed out is no part of the convolution before it
    table_formats=(IntFormat(bits=8, narrow=True),),
    rows_only=False,  # a Reshape between codes and a product costs a second rounding of each
    transparent_ops=frozenset({"Reshape", "Transpose"}),  # behind one of them, a second rounding to the same codes is a kernel of its own
    code_products=True,  # ViT-tiny: attention in 3.0 ms instead of 4.2 of 13; with zero points elsewhere it stays in float
    floats_beside_codes=True,
    wrong_cases=frozenset({"counted border", "join before transposed"}),
    # 2026.4 moves a step in front of the padding, in float, too; maxima and minima over axes that are written as codes are others
    written_otherwise=frozenset({"steps", "extremes", "twins"}),
    width_multiple=16,  # float kernels work on blocks of 16 channels (AVX-512)
)
