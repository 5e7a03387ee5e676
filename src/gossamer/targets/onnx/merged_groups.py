"""Convolutions of several groups on codes, written with fewer groups and weights of 0 between those that were merged.

ONNX Runtime's integer kernel runs once for each group, and a group of few channels does not fill it: products with 0 cost less than that. The result is the
same to the last bit. The file holds the weights alone; they are spread by operators on constants, which the runtime computes once, on loading.
Measured on one thread of a Xeon with VNNI, ONNX Runtime 1.32, in float between codes, on codes as they are and merged to about 48 channels a group, in ms: 3 x 3 kernels,
128 channels in groups of 4, 56 x 56 pixels 3.9, 14, 2.3; 256 in groups of 8, 28 x 28 2.3, 2.1, 1.2; 440 in groups of 8, 7 x 7 0.28, 0.26, 0.12; 64 in groups of 32, 56 x 56 1.6, 1.2, 0.6.
"""

from __future__ import annotations

from dataclasses import replace
from math import prod

from gossamer.numerics.formats import IntFormat
from gossamer.plan.merged_groups import merged_groups
from gossamer.program.graph import Ref
from gossamer.targets.onnx.lowering import Call
from gossamer.targets.onnx.rewritten_conv import Written


def with_merged_groups(call: Call, written: Written) -> Written:
    """In groups of about as many channels as the target's integer kernel wants; depthwise ones, which have their own, stay."""
    weight, values, groups, wanted = call.args["weight"], call.values, call["groups"], call.values.spec.group_channels
    if not wanted or groups == 1 or written.source not in values.coded or not isinstance(weight, Ref):
        return written
    quantizer = values.program.quantizers.get(weight.name)
    numbers = values.state[weight.name]
    outputs, channels = numbers.shape[:2]
    merged = merged_groups(channels, groups, wanted)
    if quantizer is None or not isinstance(quantizer.format, IntFormat) or channels * groups == outputs == groups or merged == 1:
        return written
    coded = values.weight(numbers, weight.name, quantizer, lambda codes: _spread(call, codes, groups // merged, merged))
    return replace(written, weight=coded, said={**written.said, "group": groups // merged if groups > merged else None})


def _spread(call: Call, codes: str, groups: int, merged: int) -> str:
    """A weight (O, I, *K) for so many groups of `merged` ones each: (O, merged * I, *K), 0 where a channel is of another one of them.

    Each of the `merged` parts of a group is a row; with as many zeros behind it as `merged` rows have numbers, every row ends one part later
    than the one before, which puts part i at place i once rows are cut anew.
    """
    outputs, channels, *kernel = (size for size in call.form("weight").sizes if isinstance(size, int))
    part = outputs // (groups * merged) * channels * prod(kernel)
    rows = call.op("Reshape", codes, call.ints(groups, merged, part))
    longer = call.op("Pad", rows, call.ints(0, 0, 0, 0, 0, merged * part))
    flat = call.op("Reshape", longer, call.ints(groups, merged * (merged + 1) * part))
    square = call.op("Slice", flat, call.ints(0), call.ints(merged * merged * part), call.ints(1))
    places = call.op("Reshape", square, call.ints(groups, merged, merged, outputs // (groups * merged), channels * prod(kernel)))
    return call.op("Reshape", call.op("Transpose", places, perm=[0, 1, 3, 2, 4]), call.ints(outputs, merged * channels, *kernel))
