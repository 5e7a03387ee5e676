"""Transposed convolutions as convolutions that make all pixels between two of their input as channels, which then become pixels.

Targets compute the convolution with their integer kernels, and moving codes costs them little. Measured on LiteRT 2.3.0 (one thread, codes):
2 x 2 with stride 2, 64 to 32 channels, 56 x 56: 0.48 ms, and 3.6 ms by its own kernel; 4 x 4: 0.79 and 6.9; 3 x 3, 128 to 64, 28 x 28: 0.60 and 2.0,
though the kernel then has taps of zeros. Source of the idea: Shi et al. 2016, arXiv:1609.07009.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from gossamer.program.clamps import clip_limits
from gossamer.program.graph import Graph, Node, Ref
from gossamer.program.ops import bind, op_of
from gossamer.program.ops.kinds import Convolution
from gossamer.program.ops.own import PIXELS
from gossamer.program.program import Program
from gossamer.program.shapes import infer_shapes, tensor_meta

_CONVOLUTIONS = {1: "aten.conv1d.default", 2: "aten.conv2d.default"}


def transposed_convolutions(program: Program) -> tuple[str, ...]:
    """Names of the transposed convolutions that can be split."""
    return tuple(node.name for node in program.graph.nodes if is_transposed(node) and not why_whole(program.graph, node))


def why_whole(graph: Graph, node: Node) -> str:
    """Why a transposed convolution cannot be split; "" where it can."""
    bound = bind(node)
    own = [bound[key] for key in ("weight", "bias") if bound[key] is not None]
    if any(not isinstance(ref, Ref) or ref.name not in graph.state_names for ref in own):
        return "its weight or bias is computed, not stored"
    if any(graph.sole_user(ref.name) is None for ref in own):
        return "its weight or bias has other readers"
    dims = _dims(node)
    if bound["groups"] != 1 or dims not in _CONVOLUTIONS or len(set(_per_axis(bound["stride"], dims))) != 1:
        return "with groups, three axes or strides that differ, a transposed convolution has no integer kernel"
    return ""


def split_transposed(program: Program, names: tuple[str, ...] | None = None) -> Program:
    """A copy in which the named (default: all) transposed convolutions are two nodes; same outputs up to rounding.

    The last one keeps the node's name, the convolution is called NAME_conv. A clamp that alone reads the result comes between the two,
    as CLAMP_channels, and its name goes to the last. The weight (I, O, *K) becomes (S * O, I, *T) with S pixels for each of the input.
    """
    wanted = transposed_convolutions(program) if names is None else names
    if not wanted:
        return program
    metas = infer_shapes(program)
    state, masks = dict(program.state), dict(program.masks)
    nodes: list[Node] = []
    behind: dict[str, Iterator[Node]] = {}  # clamp -> what takes its place
    for node in program.graph.nodes:
        if node.name in behind:
            nodes += behind[node.name]
            continue
        if node.name not in wanted:
            nodes.append(node)
            continue
        have, want = (tensor_meta(metas, name).shape[2:] for name in (bind(node)["input"].name, node.name))
        layout = _layout(node, state[bind(node)["weight"].name], have, want)
        _rewrite(node, layout, state, masks)
        user = program.graph.sole_user(node.name)
        parts = _parts(node, layout, user if user is not None and clip_limits(user) is not None else None)
        nodes.append(next(parts))
        if user is not None and clip_limits(user) is not None:
            behind[user.name] = parts
        else:
            nodes += parts
    return program.with_graph(Graph(program.graph.inputs, tuple(nodes), program.graph.outputs), state, masks=masks)


def conv_name(name: str) -> str:
    """What the convolution of a split node is called."""
    return f"{name}_conv"


@dataclass(frozen=True, slots=True)
class _Layout:
    """How one becomes a convolution, by axis.

    strides   pixels for each of the input
    taps      numbers of the new kernel
    padding   zeros around the input
    start     where the result begins among all pixels
    size      of the result
    dilation  of the kernel, whose numbers are spread where strides leave no other way
    """

    strides: tuple[int, ...]
    taps: tuple[int, ...]
    padding: tuple[int, ...]
    start: tuple[int, ...]
    size: tuple[int, ...]
    dilation: tuple[int, ...]


def _layout(node: Node, weight: Tensor, have: Sequence[int], want: Sequence[int]) -> _Layout:
    bound, kernel = bind(node), weight.shape[2:]
    dims = len(kernel)
    strides, paddings, dilations = (_per_axis(bound[key], dims) for key in ("stride", "padding", "dilation"))
    taps, pads, starts = [], [], []
    for size, wanted, count, stride, padding, dilation in zip(have, want, kernel, strides, paddings, dilations, strict=True):
        reach = (count - 1) * dilation + 1  # pixels under the kernel
        tap = -(-reach // stride)
        first = min(padding // stride, tap - 1)
        before, after = tap - 1 - first, max(-(-(padding + wanted) // stride) - size, 0)
        pad = max(before, after)
        taps.append(tap)
        pads.append(pad)
        starts.append(padding - first * stride + (pad - before) * stride)
    return _Layout(strides, tuple(taps), tuple(pads), tuple(starts), tuple(want), dilations)


def _rewrite(node: Node, layout: _Layout, state: dict[str, Tensor], masks: dict[str, Tensor]) -> None:
    """Weight and bias in the shapes of the convolution."""
    bound = bind(node)
    name, bias = bound["weight"].name, bound["bias"]
    weight = state[name]
    state[name] = _like(weight, _kernel(weight.detach(), layout))
    if name in masks:
        masks[name] = _kernel(masks[name], layout)
    if bias is not None:
        state[bias.name] = _like(state[bias.name], state[bias.name].detach().repeat(torch.Size(layout.strides).numel()))


def _kernel(weight: Tensor, layout: _Layout) -> Tensor:
    """(I, O, *K) -> (S * O, I, *T): tap t of pixel s is the number t * stride + s of the kernel, the last tap first."""
    dims = len(layout.taps)
    reach = [(size - 1) * dilation + 1 for size, dilation in zip(weight.shape[2:], layout.dilation, strict=True)]
    full = weight.new_zeros(*weight.shape[:2], *(tap * stride for tap, stride in zip(layout.taps, layout.strides, strict=True)))
    places = tuple(slice(0, size, dilation) for size, dilation in zip(reach, layout.dilation, strict=True))
    full[(slice(None), slice(None), *places)] = weight
    cut = full.reshape(*weight.shape[:2], *(size for pair in zip(layout.taps, layout.strides, strict=True) for size in pair))
    tap_axes, pixel_axes = [2 + 2 * k for k in range(dims)], [3 + 2 * k for k in range(dims)]
    kernel = cut.flip(tap_axes).permute(*pixel_axes, 1, 0, *tap_axes)
    return kernel.reshape(-1, weight.shape[0], *layout.taps).contiguous()


def _parts(node: Node, layout: _Layout, clamp: Node | None) -> Iterator[Node]:
    """The convolution; then, where the clamp was, that and the move."""
    bound, dims = bind(node), len(layout.taps)
    args = (bound["input"], bound["weight"], bound["bias"], (1,) * dims, layout.padding, (1,) * dims, 1)
    yield replace(node, name=conv_name(node.name), op=_CONVOLUTIONS[dims], args=args, kwargs=())
    last, source = node, conv_name(node.name)
    if clamp is not None:
        last, source = clamp, f"{clamp.name}_channels"
        yield replace(clamp, name=source, args=(Ref(conv_name(node.name)), *clamp.args[1:]))
    yield Node(last.name, PIXELS, (Ref(source), layout.strides, layout.start, layout.size), module=last.module, source=last.source)


def is_transposed(node: Node) -> bool:
    """Whether a node is a transposed convolution."""
    kind = op_of(node).kind
    return isinstance(kind, Convolution) and kind.transposed


def _dims(node: Node) -> int:
    """Axes that its kernel has."""
    return int(node.op.split(".")[1][-2])  # conv_transpose2d


def _like(old: Tensor, numbers: Tensor) -> Tensor:
    return nn.Parameter(numbers, requires_grad=old.requires_grad) if isinstance(old, nn.Parameter) else numbers


def _per_axis(value: int | Sequence[int], dims: int) -> tuple[int, ...]:
    values = (value,) if isinstance(value, int) else tuple(value)
    return values * dims if len(values) == 1 else values
