"""What our C kernels for Cortex-M compute in integers: as the reference kernels of LiteRT for Microcontrollers, bit for bit."""

from __future__ import annotations

from dataclasses import replace

from gossamer.targets.tflm.spec import SPEC as TFLM

NAME = "cortex_m"

_NO_KERNEL = {"Transpose", "Slice", "Split", "Select", "Unbind"}

SPEC = replace(TFLM, name=NAME, integer_ops=TFLM.integer_ops - _NO_KERNEL, same_scale_ops=TFLM.same_scale_ops - _NO_KERNEL)
