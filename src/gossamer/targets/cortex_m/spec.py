"""What our C kernels for Cortex-M compute in integers: as the reference kernels of LiteRT for Microcontrollers, bit for bit."""

from __future__ import annotations

from gossamer.numerics.formats import IntFormat
from gossamer.plan.spec import TargetSpec, specs

NAME = "cortex_m"

_SAME_SCALE = "MaxPool Reshape Pad".split()
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
specs.add(NAME, source="targets/cortex_m/runtime/gossamer_kernels.c")(SPEC)
