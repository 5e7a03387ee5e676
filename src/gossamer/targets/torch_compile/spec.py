"""What the target "torch" computes: everything in float32, where codes are values rounded to what codes can hold.

So it runs any network that was captured, and codes of any width; none of them makes it smaller or faster.
"""

from __future__ import annotations

from gossamer.numerics.formats import FLOAT_FORMATS, IntFormat
from gossamer.plan.spec import TargetSpec

NAME = "torch"

SPEC = TargetSpec(
    name=NAME,
    weight_formats=tuple(IntFormat(bits=bits, narrow=True) for bits in (8, 7, 6, 5, 4, 3, 2)),
    float_formats=tuple(FLOAT_FORMATS.values()),
    activation_formats=tuple(IntFormat(bits=bits, signed=signed) for bits in (8, 7, 6, 5, 4, 3, 2) for signed in (False, True)),
    integer_ops=frozenset({"Conv", "Gemm", "MatMul"}),
    same_scale_ops=frozenset(),
    absorbed_ops=frozenset(),
    float_result_ops=frozenset({"Conv", "Gemm", "MatMul"}),
    requantization="float-behind-sums",
    tolerance_steps=1,  # float sums in another order may decide a tie
    exposed_as_run=False,  # what hands out values is compiled apart
    table_formats=(IntFormat(bits=8, narrow=True),),
    float_biases=True,
    codes_as_floats=True,
    fused_ops=frozenset({"Relu", "Clip", "Add"}),
)
