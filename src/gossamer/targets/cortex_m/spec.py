"""What our C kernels for Cortex-M compute in integers: as the reference kernels of LiteRT for Microcontrollers, bit for bit."""

from __future__ import annotations

from dataclasses import replace

from gossamer.targets.tflm.spec import SPEC as TFLM

NAME = "cortex_m"

SPEC = replace(TFLM, name=NAME, activation_formats=TFLM.activation_formats[:1], wide_ops=frozenset())
