"""C statements of what lies between layers: functions, pools, softmax, products, resizing, moving."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from math import prod

import numpy as np
import torch
from torch import Tensor

from gossamer.numerics.affine import Quantizer
from gossamer.numerics.fixed_functions import softmax_factor
from gossamer.numerics.fixed_point import quantize_multiplier
from gossamer.numerics.resample import fixed_places
from gossamer.targets import code_tables, gemmlowp_kernels
from gossamer.targets.cortex_m.broadcast import along_all_axes, by_row
from gossamer.targets.cortex_m.write_values import combined, repeated
from gossamer.targets.cortex_m.writing import Writing, c_float, writers, zeros

_TABLES: dict[str, Callable[[Tensor, Quantizer, Quantizer, Writing], Tensor]] = {
    "LOGISTIC": lambda codes, source, result, _: code_tables.fixed_sigmoid(codes, source, result),
    "TANH": lambda codes, source, result, _: code_tables.fixed_tanh(codes, source, result),
    "HARD_SWISH": lambda codes, source, result, _: code_tables.hard_swish(codes, source, result),
    "ELU": lambda codes, source, result, _: code_tables.elu(codes, source, result),
    "LEAKY_RELU": lambda codes, source, result, writing: code_tables.fixed_leaky_relu(codes, source, result, writing.op.fields["alpha"]),
    "GELU": lambda codes, source, result, writing: code_tables.gelu(codes, source, result, _kind(writing)),
}
_FLOATS = {"TANH": "tanhf", "HARD_SWISH": "gs_hard_swish", "ELU": "gs_elu", "RSQRT": "gs_rsqrt"}


def written_as_table(writing: Writing) -> str:
    """A function of one code as the table of its results; "" for any other operator."""
    if not writing.coded or writing.result.quantizer is None:
        return ""
    codes = torch.arange(-128, 128)
    if writing.op.code in _TABLES:
        position, table = 0, _TABLES[writing.op.code](codes, writing.quantizer(0), writing.result_quantizer, writing)
    elif writing.op.code in ("ADD", "SUB", "MUL"):
        single = [k for k in range(2) if writing.tensor(k).data is not None and prod(writing.tensor(k).shape) == 1]
        if not single:
            return ""
        position, table = 1 - single[0], _with_number(writing, codes, single[0])
    else:
        return ""
    name = writing.page.array("int8_t", ", ".join(map(str, table.to(torch.int8).tolist())), 256)
    return f"gs_lookup_s8({prod(writing.result.shape)}, {name}, {writing.address(position)}, {writing.out});"


def _with_number(writing: Writing, codes: Tensor, position: int) -> Tensor:
    """The results of a sum or product with one number at this position."""
    data = writing.tensor(position).data
    assert data is not None
    number = torch.full((), int(data.reshape(-1)[0]))
    left, right = (number, codes) if position == 0 else (codes, number)
    quantizers = writing.quantizer(0), writing.quantizer(1), writing.result_quantizer
    if writing.op.code == "MUL":
        return gemmlowp_kernels.multiplied(left, right, quantizers)
    return gemmlowp_kernels.added(left, right, quantizers, sign=-1 if writing.op.code == "SUB" else 1)


def _kind(writing: Writing) -> str:
    return "tanh" if writing.op.fields["approximate"] else "none"


def _function(writing: Writing) -> str:
    name = _FLOATS.get(writing.op.code) or ("gs_gelu_tanh" if writing.op.fields["approximate"] else "gs_gelu")
    return f"gs_apply_f32({prod(writing.result.shape)}, {name}, {writing.address(0)}, {writing.out});"


for _code in (*_FLOATS, "GELU"):
    writers.add(_code)(_function)


@writers.add("LEAKY_RELU")
def _leaky_relu(writing: Writing) -> str:
    slope = c_float(writing.op.fields["alpha"])
    return f"gs_leaky_relu_f32({prod(writing.result.shape)}, {slope}, {writing.address(0)}, {writing.out});"


@writers.add("PRELU")
def _prelu(writing: Writing) -> str:
    """A slope for each channel, wherever that axis lies."""
    shape, slopes = writing.result.shape, writing.tensor(1)
    axes = [axis for axis, size in enumerate(slopes.shape, len(shape) - len(slopes.shape)) if size != 1]
    inner = prod(shape[axes[0] + 1 :]) if axes else 1
    sizes = f"{prod(shape)}, {inner}, {prod(slopes.shape)}"
    parts = f"{writing.address(1)}, {writing.address(0)}, {writing.out}"
    if not writing.coded:
        return f"gs_prelu_f32({sizes}, {parts});"
    scale, step = writing.quantizer(0).scale[0], writing.result_quantizer.scale[0]
    factors = writing.factors([scale / step, scale * writing.quantizer(1).scale[0] / step])
    return f"gs_prelu_s8({sizes}, {zeros(writing)}, {factors}, {parts});"


def _limited(writing: Writing) -> str:
    """MINIMUM and MAXIMUM with a number."""
    number = writing.tensor(1).data
    if writing.coded or number is None or number.size != 1:
        raise writing.unsupported(f"{writing.op.code} of codes or of two values")
    limits = ("-INFINITY", c_float(number.item())) if writing.op.code == "MINIMUM" else (c_float(number.item()), "INFINITY")
    return f"gs_clip_f32({prod(writing.result.shape)}, {limits[0]}, {limits[1]}, {writing.address(0)}, {writing.out});"


writers.add("MINIMUM")(_limited)
writers.add("MAXIMUM")(_limited)


@writers.add("SUB")
@along_all_axes
def _subtract(writing: Writing) -> str:
    if writing.coded:
        return combined(writing, -1)
    if rows := by_row(writing):
        return f"gs_shift_rows_f32({rows}, {writing.address(0)}, {writing.address(1)}, {writing.out});"
    count, repeat, swapped = repeated(writing)
    repeats = f"{repeat}, {count}" if swapped else f"{count}, {repeat}"
    return f"gs_subtract_f32({count}, {repeats}, {writing.address(0)}, {writing.address(1)}, {writing.out});"


@writers.add("SOFTMAX")
def _softmax(writing: Writing) -> str:
    columns = writing.result.shape[-1]
    sizes = f"{prod(writing.result.shape) // columns}, {columns}"
    if not writing.coded:
        return f"gs_softmax_f32({sizes}, {writing.address(0)}, {writing.out});"
    multiplier, exponent, least = softmax_factor(writing.quantizer(0).scale[0])
    return f"gs_softmax_s8({sizes}, (gs_factor){{{multiplier}, {exponent}}}, {least}, {writing.address(0)}, {writing.out});"


@writers.add("BATCH_MATMUL")
def _product(writing: Writing) -> str:
    left, right, fields = writing.tensor(0).shape, writing.tensor(1).shape, writing.op.fields
    batches = prod(writing.result.shape[:-2])
    if batches not in (prod(left[:-2]), 1) or prod(left[:-2]) != prod(right[:-2]):
        raise writing.unsupported("matrix products that repeat a factor")
    rows, inner = left[-2:][::-1] if fields["adjX"] else left[-2:]
    columns = right[-2] if fields["adjY"] else right[-1]
    steps = (1, rows) if fields["adjX"] else (inner, 1)
    others = (1, inner) if fields["adjY"] else (columns, 1)
    numbers = (batches, rows, inner, columns, rows * inner, inner * columns, *steps, *others)
    size = f"&(const gs_product){{{', '.join(map(str, numbers))}}}"
    if not writing.coded:
        return f"gs_matmul_f32({size}, {writing.address(0)}, {writing.address(1)}, {writing.out});"
    quantizers = writing.quantizer(0), writing.quantizer(1), writing.result_quantizer
    zeros = writing.page.array("int8_t", ", ".join(str(quantizer.zero_point[0]) for quantizer in quantizers), 3)
    multiplier, exponent = quantize_multiplier(quantizers[0].scale[0] * quantizers[1].scale[0] / quantizers[2].scale[0])
    factor = f"(gs_factor){{{multiplier}, {exponent}}}"
    return f"gs_matmul_s8({size}, {zeros}, {factor}, {writing.address(0)}, {writing.address(1)}, {writing.out});"


@writers.add("RESIZE_BILINEAR")
def _bilinear(writing: Writing) -> str:
    have, want = writing.tensor(0).shape, writing.result.shape
    align = bool(writing.op.fields["alignCorners"])
    sizes = f"{want[1]}, {want[2]}, {have[2]}, {have[3]}"
    if writing.coded:
        tables = [_whole(writing, np.stack(fixed_places(have[k], want[k], align), 1)) for k in (1, 2)]
        return f"gs_resize_bilinear_s8({sizes}, {tables[0]}, {tables[1]}, {writing.address(0)}, {writing.out});"
    tables, shares = [], []
    for k in (1, 2):
        before, behind, share = _places(have[k], want[k], align)
        tables.append(_whole(writing, np.stack((before, behind), 1)))
        shares.append(writing.constant(share))
    parts = ", ".join([*tables, *shares, writing.address(0), writing.out])
    return f"gs_resize_bilinear_f32({sizes}, {parts});"


def _places(have: int, want: int, align: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The pixels around each place along an axis, and the share of the second, as float kernels have them."""
    places = np.arange(want) * ((have - 1) / (want - 1) if want > 1 else 0.0) if align else (np.arange(want) + 0.5) * have / want - 0.5
    places = np.clip(places, 0, have - 1)
    before = places.astype(np.int64)
    return before, np.minimum(before + 1, have - 1), (places - before).astype(np.float32)


@writers.add("RESIZE_NEAREST_NEIGHBOR")
def _nearest(writing: Writing) -> str:
    have, want = writing.tensor(0).shape, writing.result.shape
    half = 0.5 if writing.op.fields.get("halfPixelCenters") else 0.0
    steps = (np.float32(have[k]) / np.float32(want[k]) for k in (1, 2))
    tables = [
        _whole(writing, np.minimum(((np.arange(want[k], dtype=np.float32) + np.float32(half)) * step).astype(np.int64), have[k] - 1))
        for k, step in zip((1, 2), steps, strict=True)
    ]
    item = np.dtype(writing.result.dtype).itemsize
    sizes = f"{want[1]}, {want[2]}, {have[2]}, {have[3] * item}"
    return f"gs_pick({sizes}, {tables[0]}, {tables[1]}, {writing.address(0)}, {writing.out});"


def _whole(writing: Writing, numbers: np.ndarray) -> str:
    """The name of an array of small whole numbers."""
    return writing.page.array("int16_t", ", ".join(map(str, numbers.reshape(-1).tolist())), numbers.size)


def _strides(shape: Sequence[int]) -> list[int]:
    return [prod(shape[k + 1 :]) for k in range(len(shape))]


def _moved(writing: Writing, start: int, axes: Iterable[tuple[int, int]]) -> str:
    """Numbers from the number `start` on, for each axis of the result (size, how many numbers apart)."""
    item = np.dtype(writing.result.dtype).itemsize
    merged: list[tuple[int, int]] = []
    for size, step in (axis for axis in axes if axis[0] != 1):
        if merged and merged[-1][1] == size * step:
            merged[-1] = (merged[-1][0] * size, step)
        else:
            merged.append((size, step))
    length = merged.pop()[0] if merged and merged[-1][1] == 1 else 1
    if len(merged) > 5:
        raise writing.unsupported("moving more than five axes")
    merged = [(1, 0)] * (5 - len(merged)) + merged
    sizes, distances = (", ".join(str(pair[k] * (item if k else 1)) for pair in merged) for k in (0, 1))
    source = f"(const char *)({writing.address(0)}) + {start * item}"
    return f"gs_move((const int[]){{{sizes}}}, (const int[]){{{distances}}}, {length * item}, {source}, {writing.out});"


@writers.add("TRANSPOSE")
def _transpose(writing: Writing) -> str:
    order, strides = writing.tensor(1).data, _strides(writing.tensor(0).shape)
    assert order is not None
    return _moved(writing, 0, zip(writing.result.shape, (strides[axis] for axis in order.tolist()), strict=True))


@writers.add("DEPTH_TO_SPACE")
def _pixels(writing: Writing) -> str:
    (_, height, width, _), (_, _, _, channels), block = writing.tensor(0).shape, writing.result.shape, writing.op.fields["blockSize"]
    line, place = width * block * block * channels, block * block * channels
    axes = ((height, line), (block, block * channels), (width, place), (block * channels, 1))
    return _moved(writing, 0, axes)


def _cut(writing: Writing) -> str:
    """SLICE and STRIDED_SLICE; masks stand for a begin of 0."""
    begin, strides = writing.tensor(1).data, _strides(writing.tensor(0).shape)
    assert begin is not None
    each = writing.tensor(3).data if writing.op.code == "STRIDED_SLICE" else np.ones(len(strides), np.int32)
    assert each is not None
    start = sum(int(place) * stride for place, stride in zip(begin, strides, strict=True))
    steps = [int(step) * stride for step, stride in zip(each, strides, strict=True)]
    return _moved(writing, start, zip(writing.result.shape, steps, strict=True))


writers.add("SLICE")(_cut)
writers.add("STRIDED_SLICE")(_cut)
