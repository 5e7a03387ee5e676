"""How targets compute on codes: for each way of rounding from sums to codes, a kernel for each op."""

from __future__ import annotations

from gossamer.registry import Registry
from gossamer.targets.float32_kernels import Kernel, kernels

KernelSet = dict[str, Kernel]  # op, as in the op table's `onnx` column -> CodeCall -> codes

kernel_sets: Registry[KernelSet] = Registry("requantization", home="gossamer.targets")
FLOAT32_HALF_EVEN: KernelSet = {entry.name: entry.value for entry in kernels}
kernel_sets.add("float32-half-even", source="ONNX Runtime 1.32, OpenVINO 2026")(FLOAT32_HALF_EVEN)
