"""What LiteRT for Microcontrollers computes in integers with its reference kernels: more than LiteRT's, and rounded otherwise."""

from __future__ import annotations

from dataclasses import replace

from gossamer.targets.tflite.spec import SPEC as LITERT

NAME = "tflm"

_MORE = frozenset({"AveragePool", "Gelu", "HardSigmoid", "HardSwish", "MatMul", "Softmax"})

SPEC = replace(
    LITERT,
    name=NAME,
    integer_ops=LITERT.integer_ops | _MORE,
    same_scale_ops=LITERT.same_scale_ops | {"AveragePool"},
    gate_ops=LITERT.gate_ops | {"Softmax"},
    channel_slopes=True,
    code_products=True,
    weight_formats=LITERT.weight_formats[:1],
    requantization="gemmlowp",
    wide_requantization="gemmlowp-int16",
    float_formats=(),
    table_formats=(),
    dynamic_formats=(),
    input_bits=0,
    input_rows=False,
    one_sample=True,
)
