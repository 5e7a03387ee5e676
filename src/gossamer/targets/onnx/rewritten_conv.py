"""Convolutions written in another form with the same result, where a target computes the usual one slowly or wrongly.

**Few channels**, such as those of an image. ONNX Runtime's integer kernel multiplies four channels at a time; with fewer it first gathers each window number by number, which takes longer than
the products. Either s x s pixels become the channels of one, s being the convolution's step (space to depth), or channels of zeros
are added. Products are the same, and others are 0, so results are equal to the last bit. Measured on one thread of a Xeon with VNNI, ONNX
Runtime 1.32, 224 x 224 pixels of 3 channels, as it is, with added channels, space to depth, in float: 7 x 7 kernels with step 2 and 64
channels 2.9, 2.0, 1.3, 2.9 ms; 3 x 3 with step 2 and 32 channels 0.91, 0.42, 0.43, 0.65 ms; 3 x 3 with 64 channels 8.5, 3.4, -, 9.0 ms;
16 x 16 with step 16, whose windows lie together in memory, 0.33, -, 0.37 ms, so long steps stay as they are.

**Steps** of 1 x 1 kernels behind padding, which OpenVINO gets wrong: the pixels that they read are picked in front of them.

**Twins**, layers with equal weights that read one value: OpenVINO computes both products once, and then adds one bias to both. The second one gets a column of
padding more, which is cut off its result.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import numpy as np
from torch import Tensor, nn

from gossamer.numerics.formats import IntFormat
from gossamer.program.forms import Size
from gossamer.program.graph import Ref
from gossamer.targets.onnx.coding import code_dtype
from gossamer.targets.onnx.lowering import Call

FEW_CHANNELS, STEPS, TWINS = "few channels", "steps", "twins"  # in TargetSpec.written_otherwise
_IMAGE = 2  # axes
_AT_A_TIME = 4  # channels
_LONGEST_STEP = 4
_SMALL_WINDOW = 9  # numbers: a larger one of a single channel is gathered faster than four channels are multiplied


@dataclass(frozen=True, slots=True)
class Written:
    """Input and attributes of a convolution, its weight where that is not the usual one, and how many channels were added to its result."""

    source: str
    said: dict[str, Any]
    weight: str = ""
    added: int = 0


def with_more_channels(call: Call, written: Written, sizes: Sequence[Size]) -> Written:
    """In the form that the target's integer kernel is fast in; as it is where that is the one. `sizes` of the input without its padding."""
    weight, values, said = call.args["weight"], call.values, written.said
    if (
        FEW_CHANNELS not in values.spec.written_otherwise
        or written.source not in values.codes
        or written.weight
        or not isinstance(weight, Ref)
    ):
        return written
    quantizer = values.program.quantizers.get(weight.name)
    if quantizer is None or not isinstance(quantizer.format, IntFormat):
        return written
    numbers = values.state[weight.name].detach().cpu()
    channels, *kernel = numbers.shape[1:]
    steps = said["strides"] or [1] * len(kernel)
    if channels >= _AT_A_TIME or said["group"] or said["dilations"] or max(steps) > _LONGEST_STEP:
        return written
    if (
        len(kernel) == _IMAGE
        and steps[0] > 1
        and set(steps) == {steps[0]}
        and (found := _on_blocks(call, numbers, written, sizes)) is not None
    ):
        return found
    return written if channels == 1 and prod(kernel) > _SMALL_WINDOW else _with_zeros(call, numbers, written)


def _on_blocks(call: Call, numbers: Tensor, written: Written, sizes: Sequence[Size]) -> Written | None:
    """Space to depth, where the step divides the image."""
    step, padding = written.said["strides"][0], written.said["pads"] or [0] * 4
    offsets, shape, fronts, backs = [], [], [], []
    for axis, size in enumerate(sizes):
        if not isinstance(size, int) or size % step:
            return None
        front, back, kernel = padding[axis], padding[_IMAGE + axis], numbers.shape[2 + axis]
        results = (size + front + back - kernel) // step + 1
        fronts.append(-(-front // step))
        offsets.append(fronts[-1] * step - front)
        shape.append(-(-(kernel + offsets[-1]) // step))
        backs.append(results - size // step - fronts[-1] + shape[-1] - 1)
    if min(backs) < 0:
        return None
    codes = call.op("SpaceToDepth", call.values.codes[written.source], blocksize=step)
    return _on(call, codes, weight_on_blocks(numbers, offsets, shape, step), written, {"strides": None, "pads": [*fronts, *backs]})


def weight_on_blocks(numbers: Tensor, offsets: Sequence[int], shape: Sequence[int], step: int) -> Tensor:
    """A weight (O, I, kh, kw) for blocks of pixels: (O, step * step * I, *shape), with zeros where it reaches beyond its window.

    Its first number is `offsets` pixels behind the corner of a block.
    """
    outputs, channels = numbers.shape[:2]
    (top, left), (rows, columns) = offsets, shape
    bottom, right = rows * step - top - numbers.shape[2], columns * step - left - numbers.shape[3]
    whole = nn.functional.pad(numbers, (left, right, top, bottom))
    split = whole.reshape(outputs, channels, rows, step, columns, step)
    return split.permute(0, 3, 5, 1, 2, 4).reshape(outputs, step * step * channels, rows, columns)


def _with_zeros(call: Call, numbers: Tensor, written: Written) -> Written:
    """As many more channels as the kernel multiplies at a time."""
    missing, dims = _AT_A_TIME - numbers.shape[1], numbers.dim() - 2
    grown = nn.functional.pad(numbers, (0, 0) * dims + (0, missing))
    codes, coded = call.values.codes[written.source], call.values.coded[written.source]
    amounts = call.ints(*[0] * (2 + dims), 0, missing, *[0] * dims)
    zero = call.values.draft.constant(np.asarray(coded.zero_point[0], code_dtype(coded.format)), name="z")
    return _on(call, call.op("Pad", codes, amounts, zero), grown, written, {})


def _on(call: Call, codes: str, numbers: Tensor, written: Written, changed: dict[str, Any]) -> Written:
    """The convolution on these codes, with a weight of these numbers."""
    values, weight = call.values, call.args["weight"]
    assert isinstance(weight, Ref)
    source, quantizer = (
        values.define_codes(f"{call.node.name}/in", codes, values.coded[written.source]),
        values.program.quantizers[weight.name],
    )
    coded = values.weight(numbers, weight.name, quantizer)
    said = {**written.said, **changed, "kernel_shape": list(numbers.shape[2:])}
    return Written(source, {**said, "pads": said["pads"] if said["pads"] and any(said["pads"]) else None}, coded)


def with_picked_pixels(call: Call, written: Written, sizes: Sequence[Size]) -> Written:
    """A kernel of one pixel without steps, behind a slice of what it reads, where the target is wrong about steps behind padding."""
    pads, strides = written.said["pads"], written.said["strides"]
    if STEPS not in call.values.spec.written_otherwise or not strides or not pads or set(written.said["kernel_shape"]) != {1}:
        return written
    dims = len(strides)
    starts, fronts, backs = [], [], []
    for axis, (step, size) in enumerate(zip(strides, sizes, strict=True)):
        if not isinstance(size, int):
            raise call.unsupported(f"{call.node.op} with steps, padding and a size that depends on the batch")
        front, back = pads[axis], pads[dims + axis]
        skipped = min(-(-front // step), -(-(front + size) // step))  # results that are all border
        count = (front + size + back - 1) // step + 1
        real = -(-(front + size) // step) - skipped
        if not real:
            raise call.unsupported(f"{call.node.op} that reads nothing but padding")
        starts.append(skipped * step - front)
        fronts.append(skipped)
        backs.append(count - skipped - real)
    ends, axes = call.ints(*(size for size in sizes if isinstance(size, int))), call.ints(*range(2, 2 + dims))
    picked = call.op("Slice", written.source, call.ints(*starts), ends, axes, call.ints(*strides))
    return replace(written, source=picked, said={**written.said, "pads": [*fronts, *backs], "strides": None, "dilations": None})


def apart_from_twins(call: Call, written: Written) -> tuple[Written, int]:
    """A convolution made to differ from those on codes before it, and how many columns its result has more for that."""
    again, said = times_before(call, written.source), written.said
    if not again:
        return written, 0
    dims = len(said["kernel_shape"])
    pads, steps = said["pads"] or [0] * 2 * dims, said["strides"] or [1] * dims
    return replace(written, said={**said, "pads": [*pads[:-1], pads[-1] + again * steps[-1]]}), again


def times_before(call: Call, source: str) -> int:
    """How many layers on codes before this one read the same value with the same weight, where the target confuses the biases of such layers.

    Their weights may only hold the same numbers.
    """
    values = call.values
    if TWINS not in values.spec.written_otherwise or source not in values.coded or (weight := call.tensor("weight")) not in values.coded:
        return 0
    codes = next(node.inputs for node in values.draft.nodes if weight in node.outputs)
    key = source, codes[:2]
    values.twins[key] = values.twins.get(key, -1) + 1
    return values.twins[key]
