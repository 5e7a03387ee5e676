"""What XNNPACK's kernels compute in integers when ExecuTorch 1.5 hands a network over to them, whole or in parts; read off its partitioner and files.

It takes signed codes: values per tensor with a zero point, weights per output channel without one. Average pools and sigmoids stay
float between codes. Pads with the code of 0 are exact; convolutions and max pools take those that they can.
"""

from __future__ import annotations

from gossamer.numerics.formats import IntFormat
from gossamer.plan.spec import TargetSpec
from gossamer.targets.executorch import arithmetic

NAME = "executorch"

_SAME_SCALE = "MaxPool Reshape Transpose Slice Pad".split()
_COMPUTE = "Conv Gemm Add Mul AdaptiveAveragePool ReduceMean Concat".split()

SPEC = TargetSpec(
    name=NAME,
    weight_formats=(IntFormat(bits=8, narrow=True),),
    activation_formats=(IntFormat(bits=8),),
    integer_ops=frozenset([*_COMPUTE, *_SAME_SCALE]),
    same_scale_ops=frozenset(_SAME_SCALE),
    absorbed_ops=frozenset({"Relu", "Clip"}),
    requantization=arithmetic.NAME,
    wrong_cases=frozenset({"three axes"}),
)
