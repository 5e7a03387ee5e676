"""The C statements of sums, products, means, pools, copies and conversions."""

from __future__ import annotations

from math import prod

import numpy as np

from gossamer.numerics.fixed_point import mean_multiplier, quantize_multiplier
from gossamer.targets.cortex_m.broadcast import along_all_axes, by_row
from gossamer.targets.cortex_m.writing import Writer, Writing, c_float, writers, zeros


def _factor(number: float) -> str:
    multiplier, exponent = quantize_multiplier(number)
    return f"(gs_factor){{{multiplier}, {exponent}}}"


def repeated(writing: Writing) -> tuple[int, int, bool]:
    """Positions, how many of them the smaller operand has, and whether that is the first one."""
    sizes = [prod(writing.tensor(position).shape) for position in range(2)]
    return prod(writing.result.shape), min(sizes), sizes[0] < sizes[1]


@writers.add("ADD")
@along_all_axes
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
@along_all_axes
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
