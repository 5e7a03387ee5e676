"""The C statement of each operator: the table of writers and what a writer sees."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from math import prod
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from gossamer.errors import UnsupportedOp
from gossamer.numerics.affine import Quantizer
from gossamer.numerics.fixed_point import mean_multiplier, quantize_multiplier
from gossamer.registry import Registry
from gossamer.targets.cortex_m.borders import BEFORE
from gossamer.targets.cortex_m.code import Network
from gossamer.targets.tflite.draft import DraftOp, DraftTensor

_SAME = 0  # of the .tflite format's paddings
_BYTES = {"int8_t": 1, "int16_t": 2, "int32_t": 4, "float": 4, "gs_factor": 8}
_C = {"int8": "int8_t", "int32": "int32_t", "float32": "float"}


@dataclass
class Page:
    """Constants of the file being written, in order; equal ones once."""

    constants: dict[str, str] = field(default_factory=dict)  # C text of the values -> name
    lines: list[str] = field(default_factory=list)
    bytes: int = 0

    def array(self, kind: str, values: str, count: int) -> str:
        """The name of a constant array."""
        text = f"{kind}|{values}"
        if text not in self.constants:
            name = f"constant{len(self.constants)}"
            self.constants[text] = name
            self.bytes += count * _BYTES[kind]
            self.lines.append(f"static const {kind} {name}[{count}] = {{{values}}};")
        return self.constants[text]


@dataclass(frozen=True)
class Writing:
    """One operator to write."""

    network: Network
    op: DraftOp
    page: Page
    step: int

    def tensor(self, position: int) -> DraftTensor:
        """An input."""
        return self.network.tensor(self.op.inputs[position])

    @property
    def result(self) -> DraftTensor:
        """The first output."""
        return self.network.tensor(self.op.outputs[0])

    @property
    def coded(self) -> bool:
        """Whether it reads and writes codes."""
        return self.result.dtype == "int8" and self.tensor(0).dtype == "int8"

    def quantizer(self, position: int) -> Quantizer:
        """Of an input."""
        found = self.tensor(position).quantizer
        assert found is not None
        return found

    @property
    def result_quantizer(self) -> Quantizer:
        """Of the first output."""
        assert self.result.quantizer is not None
        return self.result.quantizer

    def address(self, position: int) -> str:
        """Of an input, constant or not."""
        tensor = self.tensor(position)
        if tensor.data is not None:
            return self.constant(tensor.data)
        return self.network.place[self.op.inputs[position]]

    @property
    def out(self) -> str:
        """Address of the first output."""
        return self.network.place[self.op.outputs[0]]

    @property
    def scratch(self) -> tuple[str, int]:
        """Address and bytes of the memory that the operator may work in."""
        return self.network.scratch[self.step]

    def constant(self, data: npt.NDArray[np.generic]) -> str:
        """The name of an array in flash."""
        flat = data.reshape(-1)
        if data.dtype == np.float32:
            values = ", ".join(c_float(float(number)) for number in flat)
        else:
            values = ", ".join(map(str, flat.tolist()))
        return self.page.array(_C[data.dtype.name], values, flat.size)

    def factors(self, numbers: list[float]) -> str:
        """The name of an array of factors."""
        pairs = quantized_factors(numbers)
        return self.page.array("gs_factor", ", ".join(f"{{{m}, {e}}}" for m, e in pairs), len(pairs))

    def unsupported(self, what: str) -> UnsupportedOp:
        """The error for a case that has no kernel."""
        return UnsupportedOp(what, self.result.name, needed="Cortex-M", way_out="keep that part out of the file, or choose another target")


Writer = Callable[[Writing], str]
writers: Registry[Writer] = Registry("Cortex-M statement")


def quantized_factors(numbers: list[float]) -> list[tuple[int, int]]:
    """Each number as a whole number of 31 bits and a shift."""
    return [quantize_multiplier(number) for number in numbers]


def c_float(number: float) -> str:
    """A number as C writes it."""
    text = repr(float(np.float32(number)))
    return {"inf": "INFINITY", "-inf": "-INFINITY"}.get(text, f"{text}f" if any(c in text for c in ".e") else f"{text}.0f")


def _factor(number: float) -> str:
    multiplier, exponent = quantize_multiplier(number)
    return f"(gs_factor){{{multiplier}, {exponent}}}"


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


def zeros(writing: Writing) -> str:
    """Zero points of the first input and of the result."""
    return f"{writing.quantizer(0).zero_point[0]}, {writing.result_quantizer.zero_point[0]}"


def _convolution(writing: Writing) -> str:
    name = "conv" if writing.op.code == "CONV_2D" else "depthwise"
    if name == "conv" and writing.tensor(1).shape[3] != writing.tensor(0).shape[3]:
        raise writing.unsupported("a grouped convolution")
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


def repeated(writing: Writing) -> tuple[int, int, bool]:
    """Positions, how many of them the smaller operand has, and whether that is the first one."""
    sizes = [prod(writing.tensor(position).shape) for position in range(2)]
    count = prod(writing.result.shape)
    small = 0 if sizes[0] < sizes[1] else 1
    shape, whole = writing.tensor(small).shape, writing.result.shape
    trailing = tuple(size for size in shape if size != 1)
    if (
        max(sizes) != count
        or (trailing and whole[len(whole) - len(trailing) :] != trailing)
        or any(size != 1 for size in shape[: len(shape) - len(trailing)])
    ):
        raise writing.unsupported("numbers that repeat along other axes than the first ones")
    return count, sizes[small], small == 0


def by_row(writing: Writing) -> str:
    """Rows and columns, where the second operand has one float for each row of the first; "" elsewhere."""
    whole, shape = writing.tensor(0).shape, writing.tensor(1).shape
    sizes = [axis for axis, size in enumerate(shape) if size != 1]
    end = sizes[-1] + 1 if sizes else 0
    fits = not writing.coded and len(shape) == len(whole) and 0 < end < len(whole) and shape[:end] == whole[:end]
    return f"{prod(whole[:end])}, {prod(whole[end:])}" if fits else ""


@writers.add("ADD")
def _add(writing: Writing) -> str:
    count, repeat, swapped = repeated(writing)
    one, two = (1, 0) if swapped else (0, 1)
    a, b = writing.address(one), writing.address(two)
    if not writing.coded:
        return f"gs_add_f32({count}, {repeat}, {a}, {b}, {writing.out});"
    if repeat != count:
        return combined(writing, 1)
    result = writing.result_quantizer
    twice = 2.0 * max(writing.quantizer(0).scale[0], writing.quantizer(1).scale[0])
    zeros = ", ".join(str(quantizer.zero_point[0]) for quantizer in (writing.quantizer(one), writing.quantizer(two), result))
    numbers = [writing.quantizer(one).scale[0] / twice, writing.quantizer(two).scale[0] / twice, twice / (2**20 * result.scale[0])]
    return f"gs_add_s8({count}, {zeros}, {', '.join(map(_factor, numbers))}, {a}, {b}, {writing.out});"


def combined(writing: Writing, sign: int) -> str:
    """a + sign * b of codes or floats, one of which may repeat."""
    count, repeat, swapped = repeated(writing)
    quantizers = writing.quantizer(0), writing.quantizer(1), writing.result_quantizer
    twice = 2.0 * max(quantizers[0].scale[0], quantizers[1].scale[0])
    scales = [quantizers[0].scale[0] / twice, quantizers[1].scale[0] / twice, twice / (2**20 * quantizers[2].scale[0])]
    middles = writing.page.array("int8_t", ", ".join(str(quantizer.zero_point[0]) for quantizer in quantizers), 3)
    repeats = f"{repeat}, {count}" if swapped else f"{count}, {repeat}"
    parts = f"{middles}, {writing.factors(scales)}, {writing.address(0)}, {writing.address(1)}, {writing.out}"
    return f"gs_combine_s8({count}, {repeats}, {sign}, {parts});"


@writers.add("MUL")
def _mul(writing: Writing) -> str:
    if rows := by_row(writing):
        return f"gs_scale_rows_f32({rows}, {writing.address(0)}, {writing.address(1)}, {writing.out});"
    count, repeat, swapped = repeated(writing)
    one, two = (1, 0) if swapped else (0, 1)
    a, b = writing.address(one), writing.address(two)
    if not writing.coded:
        return f"gs_mul_f32({count}, {repeat}, {a}, {b}, {writing.out});"
    first, second, result = writing.quantizer(one), writing.quantizer(two), writing.result_quantizer
    zeros = ", ".join(str(quantizer.zero_point[0]) for quantizer in (first, second, result))
    factor = _factor(first.scale[0] * second.scale[0] / result.scale[0])
    return f"gs_mul_s8({count}, {repeat}, {zeros}, {factor}, {a}, {b}, {writing.out});"


@writers.add("MAX_POOL_2D")
def _max_pool(writing: Writing) -> str:
    return f"gs_max_pool_{'s8' if writing.coded else 'f32'}({window(writing)}, {writing.address(0)}, {writing.out});"


@writers.add("MEAN")
def _mean(writing: Writing) -> str:
    shape, axes = writing.tensor(0).shape, writing.tensor(1).data
    assert axes is not None
    if not writing.coded:
        first, last = int(min(axes)), int(max(axes))
        if last - first + 1 != axes.size:
            raise writing.unsupported("a mean over axes that lie apart")
        outer, sizes = prod(shape[:first]), f"{prod(shape[first : last + 1])}, {prod(shape[last + 1 :])}"
        if outer == 1:
            return f"gs_mean_f32({sizes}, {writing.address(0)}, {writing.out});"
        sizes = f"{outer}, {sizes}"
        return f"gs_mean_between_f32({sizes}, {writing.address(0)}, {writing.out});"
    if len(shape) != 4 or sorted(axes.tolist()) != [1, 2]:
        raise writing.unsupported("a mean of codes over other axes than height and width")
    positions, channels = shape[1] * shape[2], shape[3]
    multiplier, exponent = mean_multiplier(writing.quantizer(0).scale[0] / writing.result_quantizer.scale[0], positions)
    factor = f"(gs_factor){{{multiplier}, {exponent}}}"
    return f"gs_mean_s8({positions}, {channels}, {zeros(writing)}, {factor}, {writing.address(0)}, {writing.out});"


@writers.add("RESHAPE")
def _reshape(writing: Writing) -> str:
    source, size = writing.address(0), prod(writing.result.shape) * np.dtype(writing.result.dtype).itemsize
    return (
        ""
        if source.split(")")[-1] == writing.out.split(")")[-1] and source != "input"
        else f"gs_join(1, {size}, {size}, {source}, {writing.out});"
    )


def _pad(writing: Writing) -> str:
    table = writing.tensor(1).data
    shape, out = writing.tensor(0).shape, writing.result.shape
    assert table is not None
    if len(shape) != 4 or table[0].any() or table[3].any():
        raise writing.unsupported("a border around other axes than height and width")
    if len(writing.op.inputs) > 2:
        filler = writing.address(2)
    elif writing.result.dtype == "int8":
        filler = writing.constant(np.asarray([writing.result_quantizer.zero_point[0]], np.int8))
    else:
        filler = writing.constant(np.zeros(1, np.float32))
    numbers = (shape[1], shape[2], shape[3], table[1][0], table[2][0], out[1], out[2], np.dtype(writing.result.dtype).itemsize)
    return f"gs_pad({', '.join(map(str, numbers))}, {filler}, {writing.address(0)}, {writing.out});"


writers.add("PAD")(_pad)
writers.add("PADV2")(_pad)


@writers.add("CONCATENATION")
def _join(writing: Writing) -> str:
    axis, item = writing.op.fields["axis"], np.dtype(writing.result.dtype).itemsize
    step = prod(writing.result.shape[axis:]) * item
    runs, done, lines = prod(writing.result.shape[:axis]), 0, []
    for position in range(len(writing.op.inputs)):
        length = prod(writing.tensor(position).shape[axis:]) * item
        lines.append(f"gs_join({runs}, {length}, {step}, {writing.address(position)}, (char *)({writing.out}) + {done});")
        done += length
    return "\n  ".join(lines)


@writers.add("QUANTIZE")
def _quantize(writing: Writing) -> str:
    count, result = prod(writing.result.shape), writing.result_quantizer
    if not writing.coded:
        scale = c_float(result.scale[0])
        return f"gs_quantize_f32({count}, {scale}, {result.zero_point[0]}, {writing.address(0)}, {writing.out});"
    factor = _factor(writing.quantizer(0).scale[0] / result.scale[0])
    return f"gs_convert_s8({count}, {zeros(writing)}, {factor}, {writing.address(0)}, {writing.out});"


@writers.add("DEQUANTIZE")
def _dequantize(writing: Writing) -> str:
    source = writing.quantizer(0)
    numbers = f"{prod(writing.result.shape)}, {c_float(source.scale[0])}, {source.zero_point[0]}"
    return f"gs_dequantize_s8({numbers}, {writing.address(0)}, {writing.out});"


def _clip(low: str, high: str) -> Writer:
    return lambda writing: f"gs_clip_f32({prod(writing.result.shape)}, {low}, {high}, {writing.address(0)}, {writing.out});"


writers.add("RELU")(_clip("0.0f", "INFINITY"))
writers.add("RELU6")(_clip("0.0f", "6.0f"))


@writers.add("LOGISTIC")
def _sigmoid(writing: Writing) -> str:
    return f"gs_sigmoid_f32({prod(writing.result.shape)}, {writing.address(0)}, {writing.out});"
