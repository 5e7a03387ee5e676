"""Pooling, reductions, softmax and batch norm."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from gossamer.program.forms import Size
from gossamer.targets.onnx.draft import Array
from gossamer.targets.onnx.lowering import Call, lowerings


@lowerings.add("BatchNormalization")
def batch_norm(call: Call) -> str:
    """With running statistics; without them the batch's own are computed."""
    form = call.form("input")
    channels = form.sizes[1]
    assert isinstance(channels, int)

    def vector(name: str, default: float) -> str:
        if call[name] is None:
            return call.constant(np.full(channels, default), form.dtype)
        return call.tensor(name)

    source, gamma, beta = call.tensor("input"), vector("weight", 1.0), vector("bias", 0.0)
    if call["running_mean"] is not None:
        return call.op("BatchNormalization", source, gamma, beta, vector("running_mean", 0), vector("running_var", 1), epsilon=call["eps"])
    axes = call.ints(0, *range(2, form.rank))
    centred = call.op("Sub", source, call.op("ReduceMean", source, axes, keepdims=1))
    variance = call.op("ReduceMean", call.op("Mul", centred, centred), axes, keepdims=1)
    normed = call.op("Div", centred, call.op("Sqrt", call.op("Add", variance, call.constant(call["eps"], form.dtype))))
    shape = call.ints(channels, *[1] * (form.rank - 2))
    scaled = call.op("Mul", normed, call.op("Reshape", gamma, shape))
    return call.op("Add", scaled, call.op("Reshape", beta, shape))


@lowerings.add("MaxPool")
def max_pool(call: Call) -> str:
    """Ceil mode becomes padding behind, which a maximum ignores."""
    window = _window(call, _dims(call), "dilation")
    return _without_batch(call, lambda source: call.op("MaxPool", source, **window))


@lowerings.add("AveragePool")
def average_pool(call: Call) -> str:
    """Padding that counts is made real first where ceil mode adds some that does not count."""
    dims = _dims(call)
    window = _window(call, dims)
    front, back = window["pads"][:dims], window["pads"][dims:]
    counted = bool(call["count_include_pad"]) and any(front)
    extra = [b - f for b, f in zip(back, front, strict=True)]

    def pool(source: str) -> str:
        if counted and any(extra):
            zeros = [0, 0, *front]
            source = call.op("Pad", source, call.ints(*zeros, *zeros), call.constant(0.0, call.form(_first(call)).dtype))
            pads, include = [0] * dims + extra, 0
        else:
            pads, include = window["pads"], int(counted)
        result = call.op("AveragePool", source, **{**window, "pads": pads}, count_include_pad=include or None)
        divisor = call.get("divisor_override")
        if divisor is None:
            return result
        if any(extra) or (any(front) and not counted):
            raise call.unsupported(f"{call.node.op} with divisor_override and padding that does not count")
        return call.op("Mul", result, call.constant(float(np.prod(window["kernel_shape"])) / divisor, call.result.dtype))

    return _without_batch(call, pool)


@lowerings.add("AdaptiveAveragePool")
def adaptive_average_pool(call: Call) -> str:
    """To size 1 a global pool, to a divisor of the size a plain one, otherwise one matrix product per axis."""
    source, form = call.tensor(_first(call)), call.form(_first(call))
    have, want = form.shape[-_dims(call) :], call.result.shape[-_dims(call) :]
    if have == want:
        return source
    if any(size is None for size in have):
        raise call.unsupported(f"{call.node.op} over an axis that depends on the batch")
    sizes = [(int(h or 0), int(w or 0)) for h, w in zip(have, want, strict=True)]
    if form.rank == _dims(call) + 2 and all(w == 1 for _, w in sizes):
        return call.op("GlobalAveragePool", source)
    if form.rank == _dims(call) + 2 and all(h % w == 0 for h, w in sizes):
        steps = [h // w for h, w in sizes]
        return call.op("AveragePool", source, kernel_shape=steps, strides=steps)
    for position, (size, bins) in enumerate(sizes):
        source = _pool_by_product(call, source, form.rank, form.rank - len(sizes) + position, size, bins)
    return source


def _pool_by_product(call: Call, source: str, rank: int, axis: int, size: int, bins: int) -> str:
    """Average bins of one axis, bin i over [floor(i*size/bins), ceil((i+1)*size/bins)), by a matrix product."""
    matrix = np.zeros((size, bins))
    for position in range(bins):
        start, end = position * size // bins, -(-(position + 1) * size // bins)
        matrix[start:end, position] = 1 / (end - start)
    return mix_axis(call, source, rank, axis, matrix)


def mix_axis(call: Call, source: str, rank: int, axis: int, matrix: Array) -> str:
    """Replace the positions of one axis by weighted sums of them; matrix (positions before, positions after)."""
    order = [*(a for a in range(rank) if a != axis), axis]
    back = [order.index(a) for a in range(rank)]
    last = axis == rank - 1
    moved = source if last else call.op("Transpose", source, perm=order)
    mixed = call.op("MatMul", moved, call.constant(matrix, call.result.dtype))
    return mixed if last else call.op("Transpose", mixed, perm=back)


@lowerings.add("AdaptiveMaxPool")
def adaptive_max_pool(call: Call) -> tuple[str, ...]:
    """To a divisor of the size; the positions of the maxima have no ONNX form."""
    source, form = call.tensor("self"), call.form("self")
    have, want = form.shape[-_dims(call) :], call.result.shape[-_dims(call) :]
    steps = [h // w for h, w in zip(have, want, strict=True) if h and w and h % w == 0]
    if len(steps) < len(have) or form.rank != len(have) + 2:
        raise call.unsupported(f"{call.node.op} from {have} to {want}")
    return (call.op("MaxPool", source, kernel_shape=steps, strides=steps),)


@lowerings.add("ReduceMean")
def mean(call: Call) -> str:
    """The mean over all spatial axes of an image is a global pool, which has an integer kernel."""
    form = call.form("self")
    axes = reduced_axes(call)
    source = call.tensor("self", call.result.dtype)
    if form.rank == 4 and axes == [2, 3] and None not in form.shape[1:]:
        pooled = call.op("GlobalAveragePool", source)
        kept: list[Size] = [*form.sizes[:2], 1, 1]
        return pooled if call.get("keepdim", False) else call.reshape(pooled, kept, call.result.sizes)
    return reduce(call, "ReduceMean", source, axes)


@lowerings.add("ReduceSum")
def reduce_sum(call: Call) -> str:
    """Sums of booleans and small integers are int64, as in torch."""
    return reduce(call, "ReduceSum", call.tensor("self", call.result.dtype), reduced_axes(call))


@lowerings.add("Softmax")
def softmax(call: Call) -> str:
    """Along one axis."""
    return call.op("Softmax", call.tensor("self", call.result.dtype), axis=call.axis())


@lowerings.add("LogSoftmax")
def log_softmax(call: Call) -> str:
    """Along one axis."""
    return call.op("LogSoftmax", call.tensor("self", call.result.dtype), axis=call.axis())


def reduced_axes(call: Call) -> list[int]:
    """The axes that a reduction goes over, all where none is named."""
    rank = call.form("self").rank
    given = call.get("dim")
    dims = [given] if isinstance(given, int) else list(given or range(rank))
    return sorted(dim % rank for dim in dims) if rank else []


def reduce(call: Call, op: str, source: str, axes: Sequence[int]) -> str:
    """Emit a reduction with the op's own keepdim."""
    return call.op(op, source, call.ints(*axes), keepdims=int(call.get("keepdim", False)))


def _first(call: Call) -> str:
    return next(iter(call.args))


def _dims(call: Call) -> int:
    """Spatial axes of a pooling op, from its name."""
    return int(call.node.op.split(".")[1][-2])


def _window(call: Call, dims: int, *more: str) -> dict[str, list[int]]:
    """kernel_shape, strides, pads (front of each axis, then back) and, when asked for, dilations."""

    def numbers(name: str) -> list[int]:
        values = call[name]
        values = [values] if isinstance(values, int) else list(values)
        return values * dims if len(values) == 1 else values

    kernel = numbers("kernel_size")
    stride = numbers("stride") or kernel
    padding = numbers("padding")
    dilation = numbers("dilation") if "dilation" in more else [1] * dims
    form = call.form(_first(call))
    back = []
    for size, out, k, s, p, d in zip(form.shape[-dims:], call.result.shape[-dims:], kernel, stride, padding, dilation, strict=True):
        if size is None or out is None:
            raise call.unsupported(f"{call.node.op} over an axis that depends on the batch")
        back.append(max(p, (out - 1) * s + d * (k - 1) + 1 - size - p))
    window = {"kernel_shape": kernel, "strides": stride, "pads": [*padding, *back]}
    return window | {"dilations": dilation} if "dilation" in more else window


def _without_batch(call: Call, pool: Callable[[str], str]) -> str:
    """Pool an input with or without a batch axis."""
    source, form = call.tensor(_first(call)), call.form(_first(call))
    if form.rank == _dims(call) + 2:
        return pool(source)
    return call.op("Squeeze", pool(call.op("Unsqueeze", source, call.ints(0))), call.ints(0))
