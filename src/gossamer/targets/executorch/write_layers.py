"""Convolutions, linear layers, products and pools as XNNPACK's nodes, with the borders around what they read taken into them."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import numpy as np

from gossamer.targets.executorch.delegate import ABSENT
from gossamer.targets.executorch.writing import NodeStep, rows

_SAME, _TRANSPOSED, _KEEP_SIZES = 0, 1, 64
_SIDES = ("top", "bottom", "left", "right")


def _conv(step: NodeStep) -> None:
    """Input (N, H, W, I), filter (O, H, W, I / groups), or (1, H, W, O) with one input channel for each group."""
    source, border = _bordered(step, _takes_zeros(step))
    fields, depthwise = step.op.fields, step.op.code == "DEPTHWISE_CONV_2D"
    shape, channels = step.array(1).shape, step.tensor(0).shape[3]
    inside = 1 if depthwise else shape[3]
    groups = channels // inside
    strides, dilations = ([fields[f"{name}{side}"] for side in endings] for name, endings in _STEPS)
    spans = [(size - 1) * dilation + 1 for size, dilation in zip(shape[1:3], dilations, strict=True)]
    step.node(
        "DepthwiseConv2d" if depthwise else "Conv2d",
        _padding(step, border, spans, strides),
        limits=step.limits,
        kernel_height=shape[1],
        kernel_width=shape[2],
        subsampling_height=strides[0],
        subsampling_width=strides[1],
        dilation_height=dilations[0],
        dilation_width=dilations[1],
        group_input_channels=inside,
        group_output_channels=step.out.shape[3] // groups,
        groups=groups,
        adjustment_height=0,
        adjustment_width=0,
        input1_id=step.walk.number(source),
        filter_id=step.source(1),
        bias_id=step.source(2),
        output_id=step.result(),
    )


_STEPS = (("stride", ("H", "W")), ("dilation", ("HFactor", "WFactor")))
rows.add("CONV_2D")(_conv)
rows.add("DEPTHWISE_CONV_2D")(_conv)


@rows.add("FULLY_CONNECTED")
def fully_connected(step: NodeStep) -> None:
    """Input (*, I), filter (O, I)."""
    step.array(1)
    bias = step.source(2) if len(step.op.inputs) > 2 and step.op.inputs[2] >= 0 else ABSENT
    fields = {"input1_id": step.source(), "filter_id": step.source(1), "bias_id": bias, "output_id": step.result()}
    step.node("FullyConnected", fields, limits=step.limits)


@rows.add("BATCH_MATMUL")
def product(step: NodeStep) -> None:
    """(*, M, K) x (*, K, N), each factor as it is or with its last two axes the other way round."""
    left, right = (_full_rank(step, place) for place in (0, 1))
    if step.op.fields.get("adjX"):
        rank, have = len(step.tensor(0).shape), step.tensor(0)
        axes = [*range(rank - 2), rank - 1, rank - 2]
        moved = step.between([have.shape[axis] for axis in axes], None if have.batched is None else axes.index(have.batched), like=have)
        step.walk.transpose(left, moved, axes)
        left = moved
    flags = _TRANSPOSED if step.op.fields.get("adjY") else 0
    step.node("BatchMatrixMultiply", input1_id=left, input2_id=right, output_id=step.result(), flags=flags)


def _full_rank(step: NodeStep, place: int) -> int:
    """A factor with as many axes as the product."""
    have, rank = step.tensor(place), len(step.out.shape)
    missing = rank - len(have.shape)
    if not missing:
        return step.source(place)
    shape = (1,) * missing + have.shape
    if have.data is not None:
        return step.walk.delegate.constant(have.data.reshape(shape))
    batched = None if have.batched is None else have.batched + missing
    number = step.between(shape, batched, like=have)
    step.reshape(step.source(place), number, shape, batched)
    return number


def _pool(step: NodeStep) -> None:
    """Over height and width of (N, H, W, C); a border counts for nothing."""
    largest = step.op.code == "MAX_POOL_2D"
    source, border = _bordered(step, _never_wins(step)) if largest else (step.op.inputs[0], _NONE)
    fields = step.op.fields
    kernel, strides = ([fields[f"{name}{side}"] for side in endings] for name, endings in _WINDOWS)
    free = step.clamped()
    step.node(
        "MaxPooling2d" if largest else "AvgPooling2d",
        _padding(step, border, kernel, strides),
        pooling_height=kernel[0],
        pooling_width=kernel[1],
        stride_height=strides[0],
        stride_width=strides[1],
        dilation_height=int(largest),
        dilation_width=int(largest),
        input_id=step.walk.number(source),
        output_id=free,
        flags=_KEEP_SIZES,
    )
    step.clamp(free)


_WINDOWS = (("filter", ("Height", "Width")), ("stride", ("H", "W")))
rows.add("MAX_POOL_2D")(_pool)
rows.add("AVERAGE_POOL_2D")(_pool)


def _mean(step: NodeStep) -> None:
    """Over neighbouring axes, which a reshape makes the height of an image of width 1 where they are not height and width."""
    have, axes = step.tensor(0), sorted(axis % len(step.tensor(0).shape) for axis in step.ints(1))
    if axes != list(range(axes[0], axes[-1] + 1)) or have.batched in axes:
        raise step.outside("over the batch, or axes that are not neighbours,")
    before, after = prod(have.shape[: axes[0]]), prod(have.shape[axes[-1] + 1 :])
    batched = None if have.batched is None else 0 if have.batched < axes[0] else 3
    image = (before, prod(have.shape[axes[0] : axes[-1] + 1]), 1, after)
    number = step.source()
    if axes == [1, 2] and len(have.shape) == 4:
        image = have.shape
    else:
        seen = step.between(image, batched, like=have)
        step.reshape(number, seen, image, batched)
        number = seen
    means = (image[0], 1, 1, image[3])
    same = means == step.out.shape and batched == step.out.batched and step.op.code == "MEAN"
    found = step.result() if same else step.between(means, batched)
    step.node("GlobalAvgPooling2d", input_id=number, output_id=found, flags=_KEEP_SIZES)
    if step.op.code == "SUM":
        total = step.between(means, batched)
        step.node("Multiply", input1_id=found, input2_id=step.scalar(float(image[1] * image[2])), output_id=total)
        found = total
    if not same:
        step.reshape(found, step.result(), step.out.shape, step.out.batched)


rows.add("MEAN")(_mean)
rows.add("SUM")(_mean)

_NONE = (0, 0, 0, 0)


def _bordered(step: NodeStep, may_take: bool) -> tuple[int, tuple[int, ...]]:
    """The tensor to read, and the border around it (top, bottom, left, right) that the node is to add."""
    tensor = step.op.inputs[0]
    op = step.walk.borders.get(tensor)
    if op is None or not may_take:
        return tensor, _NONE
    table = step.walk.draft.tensors[op.inputs[1]].data
    assert table is not None
    return op.inputs[0], tuple(int(number) for number in table[1:3].reshape(-1))


def _takes_zeros(step: NodeStep) -> bool:
    op = step.walk.borders.get(step.op.inputs[0])
    return op is not None and op.code == "PAD" and step.walk.draft.tensors[op.inputs[0]].quantizer == step.tensor(0).quantizer


def _never_wins(step: NodeStep) -> bool:
    """Whether a border is of the lowest number there is, or of zeros around numbers that are none below them."""
    op = step.walk.borders.get(step.op.inputs[0])
    if op is None:
        return False
    have = step.walk.draft.tensors[op.inputs[0]]
    if op.code == "PADV2":
        filler = step.walk.draft.tensors[op.inputs[2]].data
        lowest = np.finfo(np.float32).min if have.quantizer is None else have.quantizer.format.lo
        return filler is not None and bool((filler == lowest).all())
    if have.quantizer is not None:
        return have.quantizer.zero_point[0] == have.quantizer.format.lo
    maker = step.walk.makers.get(op.inputs[0])
    return maker is not None and (maker.code in ("RELU", "RELU6") or maker.fields.get("fusedActivationFunction") in (1, 3))


def _padding(step: NodeStep, border: Sequence[int], spans: Sequence[int], strides: Sequence[int]) -> dict[str, int]:
    """The four paddings: a border that was written, or what SAME stands for."""
    sides = list(border)
    if step.op.fields["padding"] == _SAME:
        shape = step.tensor(0).shape
        for axis, (span, stride) in enumerate(zip(spans, strides, strict=True)):
            total = max((step.out.shape[axis + 1] - 1) * stride + span - shape[axis + 1], 0)
            sides[2 * axis] += total // 2
            sides[2 * axis + 1] += total - total // 2
    return {f"padding_{name}": side for name, side in zip(_SIDES, sides, strict=True)}
