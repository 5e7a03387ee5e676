"""What LiteRT's XNNPACK kernels compute in integers.

LiteRT's own kernels know more ops on codes, but between a conversion to floats and one back XNNPACK is faster. Measured with LiteRT 2.3.0 on one
thread, in ms: average pool of 56 x 56 x 64, 2 x 2, 0.60 and 0.03; softmax of 4 x 197 x 197 0.91 and 0.36; hard swish of 56 x 56 x 64 2.2 and 0.02.
As a sum and two products on codes it is as fast, but where their scales are far apart XNNPACK leaves them out: a MobileNetV3-Small took 6.0 ms so, and 1.3. A PReLU with a slope for each channel, 56 x 56 x 64, takes 2.6 ms on codes and 0.12 so.
Its products of two matrices of codes round once for some sizes and twice for others.
"""

from __future__ import annotations

from gossamer.numerics.formats import FLOAT_FORMATS, IntFormat
from gossamer.plan.spec import TargetSpec

NAME = "litert"

_SAME_SCALE = "MaxPool Resize Reshape Transpose Slice Split Select Unbind Pad Pixels".split()
_FUNCTIONS = "Relu Clip Sigmoid Tanh LeakyRelu PRelu Elu".split()
_COMPUTE = ["Conv", "Gemm", "Add", "Sub", "Rsub", "Mul", "Div", "AdaptiveAveragePool", "ReduceMean", "Concat", *_FUNCTIONS]

WIDE_OPS = "Conv Gemm Add MaxPool Reshape".split()  # of values of 16 bits, which XNNPACK does not know: LiteRT's own kernels

SPEC = TargetSpec(
    name=NAME,
    weight_formats=(IntFormat(bits=8, narrow=True), IntFormat(bits=4, narrow=True)),
    packed_bits=(4, 8),
    packed_ops=frozenset({"Gemm"}),
    activation_formats=(IntFormat(bits=8), IntFormat(bits=16)),
    wide_ops=frozenset(WIDE_OPS),
    wide_requantization="litert-int16",
    integer_ops=frozenset([*_COMPUTE, *_SAME_SCALE]),
    same_scale_ops=frozenset(_SAME_SCALE),
    absorbed_ops=frozenset({"Relu", "Clip"}),
    float_result_ops=frozenset(),
    requantization="xnnpack",
    gate_ops=frozenset({"Sigmoid"}),
    signed_gate_ops=frozenset({"Tanh"}),
    float_formats=(FLOAT_FORMATS["fp16"],),
    table_formats=(IntFormat(bits=8, narrow=True),),
    dynamic_formats=(IntFormat(bits=8, narrow=True), IntFormat(bits=4, narrow=True)),
    input_bits=8,
    input_rows=True,
    number_ops=frozenset({"Add", "Sub", "Rsub", "Mul", "Div"}),
    parameter_ops=frozenset({"Add", "Sub", "Rsub", "Mul"}),
    wrong_cases=frozenset({"three axes"}),
    float_weights=frozenset({"grouped transposed"}),
)
