"""What our C kernels for Cortex-M compute in integers: as the reference kernels of LiteRT for Microcontrollers, bit for bit."""

from __future__ import annotations

from dataclasses import replace

from gossamer.targets.tflm.spec import SPEC as TFLM

NAME = "cortex_m"

_SAME_SCALE = frozenset({"MaxPool", "Reshape", "Pad"})
_COMPUTE = frozenset({"Conv", "Gemm", "Add", "Mul", "AdaptiveAveragePool", "ReduceMean", "Concat", "Relu", "Clip"})

SPEC = replace(
    TFLM,
    name=NAME,
    integer_ops=_SAME_SCALE | _COMPUTE,
    same_scale_ops=_SAME_SCALE,
    gate_ops=frozenset(),
    signed_gate_ops=frozenset(),
)
