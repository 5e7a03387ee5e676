"""What LiteRT for Microcontrollers computes in integers with its reference kernels: as LiteRT, but for sigmoids and the rounding."""

from __future__ import annotations

from dataclasses import replace

from gossamer.targets.tflite.spec import SPEC as LITERT

NAME = "tflm"

SPEC = replace(LITERT, name=NAME, integer_ops=LITERT.integer_ops - {"Sigmoid"}, gate_ops=frozenset(), requantization="gemmlowp")
