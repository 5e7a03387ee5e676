"""Everything between layers as XNNPACK's nodes: functions of each number, ops that only move numbers, and changes of codes."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf

import numpy as np

from gossamer.targets.executorch.writing import NodeStep, rows
from gossamer.targets.tflite.draft import DraftTensor
from gossamer.targets.tflite.layout import identity

_ALIGN_CORNERS, _OLD_CENTRES = 8, 4
_MOST_JOINED = 5
_FUNCTIONS = {
    "LOGISTIC": "Sigmoid",
    "TANH": "Tanh",
    "EXP": "Exp",
    "LOG": "Log",
    "SQRT": "SquareRoot",
    "RSQRT": "ReciprocalSquareRoot",
    "ABS": "Abs",
    "NEG": "Negate",
    "SQUARE": "Square",
    "SIN": "Sin",
    "COS": "Cos",
    "FLOOR": "Floor",
    "CEIL": "Ceiling",
    "HARD_SWISH": "Hardswish",
    "SOFTMAX": "Softmax",
}
_PAIRS = {"ADD": "Add", "SUB": "Subtract", "MUL": "Multiply", "DIV": "Div", "MAXIMUM": "Maximum", "MINIMUM": "Minimum", "PRELU": "PReLU"}
_CLAMPING = ("ADD", "SUB", "MUL")
_CLAMPS = {"RELU": (0.0, inf), "RELU6": (0.0, 6.0)}


def _function(step: NodeStep) -> None:
    step.node(_FUNCTIONS[step.op.code], input_id=step.source(), output_id=step.result())


for _code in _FUNCTIONS:
    rows.add(_code)(_function)


def _pair(step: NodeStep) -> None:
    """Two values that broadcast."""
    left, right, kind = step.source(0), step.source(1), _PAIRS[step.op.code]
    if step.op.code in _CLAMPING:
        step.node(kind, limits=step.limits, input1_id=left, input2_id=right, output_id=step.result())
        return
    free = step.clamped()
    step.node(kind, input1_id=left, input2_id=right, output_id=free)
    step.clamp(free)


for _code in _PAIRS:
    rows.add(_code)(_pair)


def _clamp(step: NodeStep) -> None:
    step.node("Clamp", limits=_CLAMPS[step.op.code], input_id=step.source(), output_id=step.result())


for _code in _CLAMPS:
    rows.add(_code)(_clamp)


@rows.add("ELU")
def elu(step: NodeStep) -> None:
    """exp(x) - 1 below 0."""
    step.node("ELU", alpha=1.0, input_id=step.source(), output_id=step.result())


@rows.add("LEAKY_RELU")
def leaky_relu(step: NodeStep) -> None:
    """A slope below 0."""
    step.node("LeakyReLU", negative_slope=step.op.fields["alpha"], input_id=step.source(), output_id=step.result())


@rows.add("GELU")
def gelu(step: NodeStep) -> None:
    """Exact; the one with tanh as the formula that it is."""
    source = step.source()
    if not step.op.fields["approximate"]:
        step.node("Gelu", input_id=source, output_id=step.result())
        return

    def pair(kind: str, left: int, right: int) -> int:
        made = step.between(step.out.shape, step.out.batched)
        step.node(kind, input1_id=left, input2_id=right, output_id=made)
        return made

    cube = pair("Multiply", pair("Multiply", source, source), source)
    inner = pair("Multiply", pair("Add", source, pair("Multiply", cube, step.scalar(0.044715))), step.scalar(0.7978845608028654))
    bent = step.between(step.out.shape, step.out.batched)
    step.node("Tanh", input_id=inner, output_id=bent)
    half = pair("Multiply", source, step.scalar(0.5))
    step.node("Multiply", input1_id=half, input2_id=pair("Add", bent, step.scalar(1.0)), output_id=step.result())


@rows.add("RESHAPE")
def reshape(step: NodeStep) -> None:
    """The same numbers."""
    step.reshape(step.source(), step.result(), step.out.shape, step.out.batched)


@rows.add("TRANSPOSE")
def transpose(step: NodeStep) -> None:
    """Other places for axes."""
    step.walk.transpose(step.source(), step.result(), step.ints(1))


@rows.add("SLICE")
def slice_(step: NodeStep) -> None:
    """A part of each axis."""
    _cut(step, step.ints(1))


@rows.add("STRIDED_SLICE")
def strided_slice(step: NodeStep) -> None:
    """Likewise; every number of it."""
    starts, steps, whole = step.ints(1), step.ints(3), step.op.fields.get("beginMask", 0)
    if any(size != 1 for size in steps):
        raise step.outside("with steps")
    _cut(step, [0 if whole >> axis & 1 else start for axis, start in enumerate(starts)])


def _cut(step: NodeStep, starts: Sequence[int]) -> None:
    """From these places on; the whole of the batch."""
    have, want = step.tensor(0), step.out
    if have.batched != want.batched or (have.batched is not None and starts[have.batched]):
        raise step.outside("of the batch")
    sizes = [0 if axis == want.batched else size for axis, size in enumerate(want.shape)]
    step.node("StaticSlice", num_dims=len(sizes), offsets=list(starts), sizes=sizes, input_id=step.source(), output_id=step.result())


@rows.add("CONCATENATION")
def concatenate(step: NodeStep) -> None:
    """Any number of parts, a few at a time."""
    parts = [(step.source(place), step.tensor(place).shape) for place in range(len(step.op.inputs))]
    _join(step, parts, step.op.fields["axis"] % len(step.out.shape))


@rows.add("PACK")
def pack(step: NodeStep) -> None:
    """Parts along an axis that they do not have."""
    axis, parts = step.op.fields["axis"], []
    shape = [1 if place == axis else size for place, size in enumerate(step.out.shape)]
    for place in range(len(step.op.inputs)):
        number = step.between(shape, step.out.batched)
        step.reshape(step.source(place), number, shape, step.out.batched)
        parts.append((number, tuple(shape)))
    _join(step, parts, axis)


def _join(step: NodeStep, parts: list[tuple[int, tuple[int, ...]]], axis: int) -> None:
    free = step.clamped()
    while len(parts) > _MOST_JOINED:
        group, parts = parts[:_MOST_JOINED], parts[_MOST_JOINED:]
        shape = [sum(size[axis] for _, size in group) if place == axis else size for place, size in enumerate(step.out.shape)]
        number = step.between(shape, step.out.batched)
        _concatenate(step, [number for number, _ in group], axis, number)
        parts.insert(0, (number, tuple(shape)))
    if len(parts) == 1:
        step.node("Copy", input_id=parts[0][0], output_id=free)
    else:
        _concatenate(step, [number for number, _ in parts], axis, free)
    step.clamp(free)


def _concatenate(step: NodeStep, numbers: Sequence[int], axis: int, result: int) -> None:
    fields = {f"input{place}_id": number for place, number in enumerate(numbers, 1)}
    step.node(f"Concatenate{len(numbers)}", fields, axis=axis, output_id=result)


def _pad(step: NodeStep) -> None:
    """A border of one number."""
    table, value = step.array(1), 0.0
    if step.op.code == "PADV2":
        value = float(step.known(2).reshape(-1)[0])
    before, after = ([int(number) for number in column] for column in table.T)
    step.node(
        "StaticConstantPad",
        pre_paddings=before,
        post_paddings=after,
        padding_value=value,
        input_id=step.source(),
        output_id=step.result(),
    )


rows.add("PAD")(_pad)
rows.add("PADV2")(_pad)


@rows.add("RESIZE_BILINEAR")
def resize(step: NodeStep) -> None:
    """Height and width of (N, H, W, C)."""
    fields, (height, width) = step.op.fields, step.ints(1)
    flags = _ALIGN_CORNERS if fields["alignCorners"] else 0 if fields["halfPixelCenters"] else _OLD_CENTRES
    step.node("StaticResizeBilinear2D", new_height=height, new_width=width, input_id=step.source(), output_id=step.result(), flags=flags)


@rows.add("RESIZE_NEAREST_NEIGHBOR")
def repeat(step: NodeStep) -> None:
    """By whole factors: each pixel times a block of ones."""
    (_, height, width, channels), wanted = step.tensor(0).shape, step.ints(1)
    factors = [want // have for want, have in zip(wanted, (height, width), strict=True)]
    if any(want % have for want, have in zip(wanted, (height, width), strict=True)):
        raise step.outside("by factors that are not whole")
    batched = step.out.batched
    apart, blocks = (1, height, 1, width, 1, channels), (1, height, factors[0], width, factors[1], channels)
    spread, repeated = step.between(apart, batched), step.between(blocks, batched)
    step.reshape(step.source(), spread, apart, batched)
    ones = step.walk.delegate.constant(np.ones((1, 1, factors[0], 1, factors[1], 1), np.float32))
    step.node("Multiply", input1_id=spread, input2_id=ones, output_id=repeated)
    step.reshape(repeated, step.result(), step.out.shape, batched)


@rows.add("DEPTH_TO_SPACE")
def depth_to_space(step: NodeStep) -> None:
    """Channels (r, r, C) become pixels."""
    size, (rows_, columns, channels) = step.op.fields["blockSize"], step.tensor(0).shape[1:]
    batched, left = step.out.batched, channels // size**2
    apart, moved = (1, rows_, columns, size, size, left), (1, rows_, size, columns, size, left)
    split, sorted_ = step.between(apart, batched), step.between(moved, batched)
    step.reshape(step.source(), split, apart, batched)
    step.walk.transpose(split, sorted_, (0, 1, 3, 2, 4, 5))
    step.reshape(sorted_, step.result(), step.out.shape, batched)


@rows.add("QUANTIZE")
def quantize(step: NodeStep) -> None:
    """Codes of floats, before images are moved where they come from outside; other codes by way of floats."""
    source, have = step.op.inputs[0], step.tensor(0)
    if have.quantizer is not None:
        floats = step.walk.value(DraftTensor("", have.shape, "float32", None, None, have.batched))
        step.node("Convert", input_id=step.source(), output_id=floats)
        step.node("Convert", input_id=floats, output_id=step.result())
        return
    given, order = step.walk.inputs.get(source, (-1, ()))
    if source not in step.walk.inputs or order == identity(len(order)):
        step.node("Convert", input_id=step.source(), output_id=step.result())
        return
    plain = [order.index(axis) for axis in range(len(order))]
    batched = None if have.batched is None else plain.index(have.batched)
    codes = step.between([have.shape[place] for place in plain], batched)
    step.node("Convert", input_id=given, output_id=codes)
    step.walk.transpose(codes, step.result(), order)


@rows.add("DEQUANTIZE")
def dequantize(step: NodeStep) -> None:
    """What codes stand for; of constants, found now."""
    have = step.tensor(0)
    if have.data is not None:
        step.walk.numbers[step.op.outputs[0]] = step.walk.delegate.constant(step.known(0))
        return
    step.node("Convert", input_id=step.source(), output_id=step.result())
