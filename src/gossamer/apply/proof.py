"""The proof of a removal: on random inputs the smaller network computes what the one with masked channels does.

Where a network takes smaller images, the proof does, too: every op takes part all the same, and a kernel loses the same channels
at each of its positions. Layers that compare positions with each other, such as attention, still get several of them. What does
not agree there is settled on inputs of full size.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gossamer.apply.mask import Masked
from gossamer.coupling import Analysis
from gossamer.coupling.kept import axis_keeps
from gossamer.coupling.labels import Pair
from gossamer.errors import ParityError, PlanError
from gossamer.program.capture import relative_error
from gossamer.program.graph import Graph
from gossamer.program.network import InputSpec
from gossamer.program.ops import kinds as k
from gossamer.program.ops import op_of
from gossamer.program.program import Program

TOLERANCE = 1e-5  # relative error, float32
PIXELS, PIXELS_COMPARED = 32, 64  # a side; one position is left, or four, where images become 32 times as small
_EACH_ALIKE = (k.Convolution, k.Linear, k.BatchNorm, k.Pool, k.Pointwise, k.Movement, k.ChannelScale, k.Glu, k.Factory, k.Scalar)
_AVERAGES = ("aten.mean.dim", "aten.layer_norm.default")  # the latter over channels: its sizes are written into the graph
_CANCELLING = ("aten.sub.Tensor", "aten.div.Tensor", "aten.rsub.Scalar")  # a position and the mean around it, say
_WRONG_SIZE = (RuntimeError, IndexError, ValueError, ZeroDivisionError)  # what ops raise for a size that they do not take

Shapes = dict[str, tuple[int, ...]]
Kept = Mapping[str, tuple[tuple[int, ...], Collection[int]]]  # name -> the shape of what stays, and the axes that lose something


def check_removal(small: Program, masked: Masked, analysis: Analysis, table: np.ndarray) -> None:
    """Run both and compare the outputs, and the shape of every value of the smaller one with what its labels say.

    Raises: ParityError for another output; PlanError for another shape, or when the smaller network does not run.
    """
    bare = Masked(small.graph, small.state, small.device)
    specs = smaller_images(small)
    if specs != small.inputs:
        try:
            with _kernels_for_few_pixels(bare):
                _compare(bare, masked, _examples(specs, small.device), analysis, table)
        except (*_WRONG_SIZE, PlanError, ParityError):
            pass  # it takes no smaller images; those of full size tell what is wrong
        else:
            return
    _compare(bare, masked, _examples(small.inputs, small.device), analysis, table)


@contextmanager
def _kernels_for_few_pixels(network: Masked) -> Iterator[None]:
    """Without oneDNN, which compiles kernels for each new size: that pays for many pixels, or for depthwise convolutions."""
    depthwise = any(
        isinstance(op_of(node).kind, k.Convolution) and network.state[name].shape[1] == 1
        for node in network.graph.nodes
        for name in node.uses[1:2]
        if name in network.state
    )
    before = torch.backends.mkldnn.enabled
    torch.backends.mkldnn.enabled = before and depthwise  # type: ignore[assignment]
    try:
        yield
    finally:
        torch.backends.mkldnn.enabled = before  # type: ignore[assignment]


def smaller_images(program: Program) -> tuple[InputSpec, ...]:
    """The program's inputs, with images (*, C, H, W) as small as a proof needs."""
    pixels = PIXELS if _treats_each_alike(program.graph) else PIXELS_COMPARED
    return tuple(_smaller(spec, pixels) for spec in program.inputs)


def _smaller(spec: InputSpec, pixels: int) -> InputSpec:
    sides = spec.shape[2:]
    if len(sides) != 2 or any(side is None or side <= pixels for side in sides):
        return spec
    return replace(spec, shape=(*spec.shape[:2], pixels, pixels))


def _treats_each_alike(graph: Graph) -> bool:
    """Whether no layer compares positions with each other: such networks show all that they do on one position."""
    return all(node.op in _AVERAGES or (isinstance(op_of(node).kind, _EACH_ALIKE) and node.op not in _CANCELLING) for node in graph.nodes)


def _examples(specs: Sequence[InputSpec], device: torch.device) -> list[tuple[Tensor, Tensor]]:
    """For each input two samples, and the first of them alone."""
    generator = torch.Generator().manual_seed(0)
    two = [spec.example(2, generator).to(device) for spec in specs]
    return [(value, value[:1] if None in spec.shape else value) for spec, value in zip(specs, two, strict=True)]


def _compare(small: Masked, masked: Masked, inputs: Sequence[tuple[Tensor, Tensor]], analysis: Analysis, table: np.ndarray) -> None:
    """On one sample, since the masked network is as slow as the original; the smaller one runs it as the first of two. Both run two
    where samples meet each other: tokens that stand in front of the batch, or statistics over it."""
    one, two = [value for _, value in inputs], [value for value, _ in inputs]
    expected, shapes = _run(masked, one)
    wanted = _kept_shapes(shapes, analysis, table)
    try:
        got, found = _run(small, two)
        if got.shape == (2, *expected.shape[1:]) and _misfit(found, wanted, batch=2) is None:  # a free batch axis
            difference = relative_error(got[:1], expected)
            if not difference <= TOLERANCE:
                difference = relative_error(got, _run(masked, two)[0])
        else:
            got, found = _run(small, one)
            wrong = _misfit(found, wanted, batch=1)
            if wrong is not None:
                raise PlanError(
                    f"after the removal {wrong} has shape {found[wrong]}, expected {wanted[wrong][0]}; please report this network."
                )
            difference = relative_error(got, expected)
    except _WRONG_SIZE as error:
        reason = str(error).splitlines()[0]
        raise PlanError(f"after the removal the network does not run ({reason}); please report this network.") from error
    if not difference <= TOLERANCE:
        raise ParityError("outputs with channels removed and with the same channels masked", difference, TOLERANCE)


def _run(network: Masked, inputs: Sequence[Tensor]) -> tuple[Tensor, Shapes]:
    shapes: Shapes = {}

    def note(name: str, value: Any) -> None:
        if isinstance(value, Tensor):
            shapes[name] = tuple(value.shape)

    return network(*inputs, observe=note), shapes


def _kept_shapes(shapes: Shapes, analysis: Analysis, table: np.ndarray) -> Kept:
    """What the labels of each value leave of its shape. Raises PlanError where that has another size than its labels."""
    kept = {}
    for name, shape in shapes.items():
        labels = analysis.values.get(name)
        if not isinstance(labels, (Tensor, Pair)) or 0 in shape:  # nothing has no labels
            continue
        sizes, keeps = list(shape), axis_keeps(labels, table)
        for axis, keep in keeps.items():
            if sizes[axis] != len(keep):
                raise PlanError(
                    f"{name} has {sizes[axis]} positions along axis {axis}, but {len(keep)} labels; please report this network."
                )
            sizes[axis] = int(keep.sum())
        kept[name] = tuple(sizes), keeps.keys()
    return kept


def _misfit(found: Shapes, wanted: Kept, batch: int) -> str | None:
    """The first value of another shape than what stays of it; one axis that loses nothing may be `batch` times as long."""
    for name, (shape, pruned) in wanted.items():
        have = found.get(name)
        if have is None or have == shape:
            continue
        longer = [axis for axis, (one, other) in enumerate(zip(have, shape, strict=False)) if one != other]
        if len(have) != len(shape) or len(longer) > 1 or longer[0] in pruned or have[longer[0]] != batch * shape[longer[0]]:
            return name
    return None
