"""The C statements of convolutions and linear layers, and of what else moves a window over an image."""

from __future__ import annotations

from math import prod
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from gossamer.targets.cortex_m.borders import BEFORE
from gossamer.targets.cortex_m.writing import Writing, quantized_factors, writers, zeros

_SAME = 0  # of the .tflite format's paddings


def _kernel(writing: Writing) -> tuple[int, int]:
    fields = writing.op.fields
    if "filterHeight" in fields:
        return fields["filterHeight"], fields["filterWidth"]
    return writing.tensor(1).shape[1], writing.tensor(1).shape[2]


class Window(NamedTuple):
    """The numbers of a gs_window, in its order."""

    in_h: int
    in_w: int
    in_c: int
    out_h: int
    out_w: int
    out_c: int
    kernel_h: int
    kernel_w: int
    stride_h: int
    stride_w: int
    dilation_h: int
    dilation_w: int
    pad_h: int
    pad_w: int

    @property
    def stays_inside(self) -> bool:
        """Whether no place of the kernel leaves the image."""
        bottom = (self.out_h - 1) * self.stride_h + (self.kernel_h - 1) * self.dilation_h
        right = (self.out_w - 1) * self.stride_w + (self.kernel_w - 1) * self.dilation_w
        return self.pad_h == self.pad_w == 0 and bottom < self.in_h and right < self.in_w


def _window(writing: Writing) -> Window:
    """SAME starts where the format says."""
    fields, kernel = writing.op.fields, _kernel(writing)
    stride = fields["strideH"], fields["strideW"]
    dilation = fields.get("dilationHFactor", 1), fields.get("dilationWFactor", 1)
    (_, in_h, in_w, in_c), (_, out_h, out_w, out_c) = writing.tensor(0).shape, writing.result.shape
    pads = list(fields.get(BEFORE, (0, 0)))
    if fields["padding"] == _SAME:
        for axis, (size, out) in enumerate(((in_h, out_h), (in_w, out_w))):
            pads[axis] = max((out - 1) * stride[axis] + (kernel[axis] - 1) * dilation[axis] + 1 - size, 0) // 2
    return Window(in_h, in_w, in_c, out_h, out_w, out_c, *kernel, *stride, *dilation, *pads)


def window(writing: Writing) -> str:
    """A gs_window for an image in and an image out."""
    return f"&(const gs_window){{{', '.join(map(str, _window(writing)))}}}"


def layer_scales(writing: Writing) -> list[float]:
    """By output channel, what a sum is multiplied by."""
    source, weight, result = writing.quantizer(0), writing.quantizer(1), writing.result_quantizer
    scales = list(weight.scale)
    channels = writing.result.shape[-1]
    scales = scales * channels if len(scales) == 1 else scales
    return [source.scale[0] * scale / result.scale[0] for scale in scales]


def layer_tables(writing: Writing, shifts: str = "int8_t") -> tuple[str, str]:
    """The names of two arrays, multipliers and shifts of all output channels."""
    pairs = quantized_factors(layer_scales(writing))
    kinds = zip(("int32_t", shifts), zip(*pairs, strict=True), strict=True)
    multiplier, shift = (writing.page.array(kind, ", ".join(map(str, numbers)), len(pairs)) for kind, numbers in kinds)
    return multiplier, shift


def layer(writing: Writing) -> str:
    """The gs_layer of a convolution or linear layer of codes: the biases hold what the zero point adds wherever that is one number."""
    whole = _bias_with_zero(writing)
    if whole is None:
        bias, both = writing.address(2), zeros(writing)
    else:
        bias, both = writing.constant(whole), f"0, {writing.result_quantizer.zero_point[0]}"
    return f"&(const gs_layer){{{', '.join((writing.address(1), bias, *layer_tables(writing), both))}}}"


def _bias_with_zero(writing: Writing) -> npt.NDArray[np.int32] | None:
    """Biases less the zero point of the input times the sum of the weights; None where some results see fewer weights than others."""
    weight, bias, zero = writing.tensor(1).data, writing.tensor(2).data, writing.quantizer(0).zero_point[0]
    if weight is None or bias is None or not (writing.op.code == "FULLY_CONNECTED" or _window(writing).stays_inside):
        return None
    axes = (0, 1, 2) if writing.op.code == "DEPTHWISE_CONV_2D" else tuple(range(1, weight.ndim))
    whole = bias.astype(np.int64) - zero * weight.sum(axes, dtype=np.int64)
    return whole.astype(np.int32) if np.abs(whole).max(initial=0) < 2**31 else None


def _convolution(writing: Writing) -> str:
    name = "conv" if writing.op.code == "CONV_2D" else "depthwise"
    if not writing.coded:
        parts = ", ".join(writing.address(position) for position in range(3))
        return f"gs_{name}_f32({window(writing)}, {parts}, {writing.out});"
    return f"gs_{name}_s8({window(writing)}, {layer(writing)}, {writing.address(0)}, {writing.out});"


writers.add("CONV_2D")(_convolution)
writers.add("DEPTHWISE_CONV_2D")(_convolution)


@writers.add("FULLY_CONNECTED")
def _linear(writing: Writing) -> str:
    outputs, inputs = writing.tensor(1).shape
    sizes = f"{prod(writing.tensor(0).shape) // inputs}, {inputs}, {outputs}"
    if not writing.coded:
        parts = ", ".join(writing.address(position) for position in range(3))
        return f"gs_linear_f32({sizes}, {parts}, {writing.out});"
    return f"gs_linear_s8({sizes}, {layer(writing)}, {writing.address(0)}, {writing.out});"


_POOLS = {"MAX_POOL_2D": "max", "AVERAGE_POOL_2D": "average"}


def _pool(writing: Writing) -> str:
    kernel = f"gs_{_POOLS[writing.op.code]}_pool_{'s8' if writing.coded else 'f32'}"
    return f"{kernel}({window(writing)}, {writing.address(0)}, {writing.out});"


for _code in _POOLS:
    writers.add(_code)(_pool)
