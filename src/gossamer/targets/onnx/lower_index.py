"""Ops that pick positions: slices, indices, embeddings, windows."""

from __future__ import annotations

import numpy as np
import torch

from gossamer.numerics.affine import Quantizer, quantize
from gossamer.numerics.formats import IntFormat, PerAxis
from gossamer.program.forms import Form, Size
from gossamer.program.graph import Ref
from gossamer.targets.onnx.coding import FLOAT, SCALE, code_dtype, store_codes
from gossamer.targets.onnx.lowering import Call, lowerings

_FAR = 2**63 - 1  # beyond any position


@lowerings.add("Slice")
def slice_(call: Call) -> str:
    """slice(dim, start, end, step) and narrow(dim, start, length)."""
    axis, form = call.axis(), call.form("self")
    start = call["start"] if call["start"] is not None else 0
    if "length" in call.args:
        if not isinstance(start, int) or not isinstance(call["length"], int):
            raise call.unsupported(f"{call.node.op} from a position that depends on the batch")
        end, step = start + call["length"] or _FAR, 1  # a negative start that ends at 0 means to the end
    else:
        end, step = (call["end"] if call["end"] is not None else _FAR), call["step"]
    size = form.sizes[axis]
    if start == 0 and step == 1 and isinstance(end, int) and (end == _FAR or (isinstance(size, int) and end >= size)):
        return call.tensor("self")
    return call.op("Slice", call.tensor("self"), call.sizes([start]), call.sizes([end]), call.ints(axis), call.ints(step))


@lowerings.add("Select")
def select(call: Call) -> str:
    """One position of an axis, which goes away."""
    return call.op("Gather", call.tensor("self"), call.constant(call.number("index"), torch.int64), axis=call.axis())


@lowerings.add("Gather")
def gather(call: Call) -> str:
    """index_select, and embedding: rows of a table."""
    if call.node.op.startswith("aten.embedding"):
        quantizer = call.values.program.quantizers.get(call["weight"].name)
        if quantizer is not None and quantizer.granularity == PerAxis(0) and isinstance(quantizer.format, IntFormat):
            return _coded_rows(call, quantizer)
        return call.op("Gather", call.tensor("weight"), call.tensor("indices"), axis=0)
    return call.op("Gather", call.tensor("self"), call.tensor("index"), axis=call.axis())


def _coded_rows(call: Call, quantizer: Quantizer) -> str:
    """Rows picked as codes, with the scales of these rows: a DequantizeLinear in front would make floats of the whole table."""
    name, draft = call["weight"].name, call.values.draft
    codes = quantize(call.values.state[name].detach().cpu().float(), quantizer).numpy().astype(code_dtype(quantizer.format))
    stored = store_codes(draft, codes, name, quantizer.format)
    scales = draft.constant(np.asarray(quantizer.scale, np.float32)[:, None], name=name + SCALE)
    picked = call.op("Gather", stored, call.tensor("indices"), axis=0)
    return call.op("Mul", call.op("Cast", picked, to=FLOAT), call.op("Gather", scales, call.tensor("indices"), axis=0))


@lowerings.add("GatherElements")
def gather_elements(call: Call) -> str:
    """One position of an axis for each position of the index."""
    return call.op("GatherElements", call.tensor("self"), call.tensor("index"), axis=call.axis())


@lowerings.add("Index")
def index(call: Call) -> str:
    """x[i], x[:, i], x[i, j], x[:, i, j] ... with integer tensors; several are broadcast against each other."""
    form, source = call.form("self"), call.tensor("self")
    picks = {axis: arg for axis, arg in enumerate(call["indices"]) if arg is not None}
    if any(call.form_of(arg).dtype in (torch.bool, torch.uint8) for arg in picks.values()):
        raise call.unsupported(f"{call.node.op} with a mask, whose result has no fixed size,")
    axes = list(picks)
    if len(axes) == 1:
        return call.op("Gather", source, call.tensor_of(picks[axes[0]], torch.int64), axis=axes[0])
    rest = [axis for axis in range(form.rank) if axis not in picks]
    order = [*axes, *rest]
    if order != sorted(order):
        source = call.op("Transpose", source, perm=order)
    wide = _broadcast([call.form_of(arg) for arg in picks.values()])
    parts = [_expanded(call, arg, wide) for arg in picks.values()]
    indices = call.op("Concat", *(call.op("Unsqueeze", part, call.ints(-1)) for part in parts), axis=-1)
    picked = call.op("GatherND", source, indices)
    adjacent = axes == list(range(axes[0], axes[0] + len(axes)))
    if not adjacent or axes[0] == 0:
        return picked
    lead, count = axes[0], len(wide)  # torch puts the picked axes where the indices stood
    return call.op("Transpose", picked, perm=[*range(count, count + lead), *range(count), *range(count + lead, count + len(rest))])


def _broadcast(forms: list[Form]) -> list[Size]:
    rank = max(form.rank for form in forms)
    padded = [[1] * (rank - form.rank) + list(form.sizes) for form in forms]
    return [next((size for size in sizes if size != 1), 1) for sizes in zip(*padded, strict=True)]


def _expanded(call: Call, arg: Ref, wide: list[Size]) -> str:
    tensor = call.tensor_of(arg, torch.int64)
    return tensor if list(call.form_of(arg).sizes) == wide else call.op("Expand", tensor, call.sizes(wide))


@lowerings.add("Insert")
def insert(call: Call) -> str:
    """slice_scatter and select_scatter: self with a part of one axis replaced by src."""
    axis, form, source = call.axis(), call.form("self"), call.tensor("self")
    part, size = call.tensor("src", form.dtype), form.sizes[axis]
    start: Size
    count: Size
    if "index" in call.args:
        start, count, step = call["index"], 1, 1
        part = call.op("Unsqueeze", part, call.ints(axis))
    else:
        start, count, step = call["start"] or 0, call.form("src").sizes[axis], call["step"]
    if count == size:
        return part
    if step != 1 or not (isinstance(size, int) and isinstance(start, int) and isinstance(count, int)):
        raise call.unsupported(f"{call.node.op} with steps or with a place that depends on the batch")
    start = start + size if start < 0 else start
    ends = ((0, start), (start + count, size))
    front, back = (call.op("Slice", source, call.ints(a), call.ints(b), call.ints(axis)) if a < b else "" for a, b in ends)
    return call.op("Concat", *(piece for piece in (front, part, back) if piece), axis=axis)


@lowerings.add("Copy")
def copy(call: Call) -> str:
    """src broadcast to the shape of self, in its type."""
    source = call.tensor("src", call.result.dtype)
    return source if call.form("src").sizes == call.result.sizes else call.op("Expand", source, call.sizes(call.result.sizes))


@lowerings.add("Difference")
def difference(call: Call) -> str:
    """x[1:] - x[:-1] along an axis, n times, with more values in front or behind where they are given."""
    axis, dtype = call.axis(), call.form("self").dtype
    parts = [call.tensor(name, dtype) for name in ("prepend", "self", "append") if call[name] is not None]
    source = parts[0] if len(parts) == 1 else call.op("Concat", *parts, axis=axis)
    for _ in range(call.number("n")):
        later = call.op("Slice", source, call.ints(1), call.ints(_FAR), call.ints(axis))
        earlier = call.op("Slice", source, call.ints(0), call.ints(-1), call.ints(axis))
        same = call.op("Not", call.op("Equal", later, earlier)) if dtype == torch.bool else ""
        source = same or call.op("Sub", later, earlier)
    return source


@lowerings.add("Im2col")
def im2col(call: Call) -> str:
    """(N, C, H, W) -> (N, C*kh*kw, L): pad, then pick every window's positions from the flattened image."""
    form, source = call.form("self"), call.tensor("self")
    if form.rank != 4 or not all(isinstance(size, int) for size in form.sizes[1:]):
        raise call.unsupported(f"{call.node.op} of other than a batch of images of fixed size")
    (kh, kw), (dh, dw), (ph, pw), (sh, sw) = (call[name] for name in ("kernel_size", "dilation", "padding", "stride"))
    channels, height, width = (int(size) for size in form.shape[1:] if size is not None)
    if ph or pw:
        source = call.op("Pad", source, call.ints(0, 0, ph, pw, 0, 0, ph, pw), call.constant(0, form.dtype))
        height, width = height + 2 * ph, width + 2 * pw
    rows = np.arange(0, height - dh * (kh - 1), sh)[None, :] + dh * np.arange(kh)[:, None]
    columns = np.arange(0, width - dw * (kw - 1), sw)[None, :] + dw * np.arange(kw)[:, None]
    spots = rows[:, None, :, None] * width + columns[None, :, None, :]  # (kh, kw, rows, columns)
    flat = call.op("Reshape", source, call.ints(0, channels, height * width))
    picked = call.op("Gather", flat, call.constant(spots.reshape(kh * kw, -1), torch.int64), axis=2)
    length = spots.shape[2] * spots.shape[3]
    return call.reshape(picked, [form.sizes[0], channels, kh * kw, length], [form.sizes[0], channels * kh * kw, length])


@lowerings.add("Windows")
def windows(call: Call) -> str:
    """Tensor.unfold(dimension, size, step): windows of one axis, each as a new last axis."""
    form, axis = call.form("self"), call.axis("dimension")
    length, size, step = form.sizes[axis], call.number("size"), call.number("step")
    if not isinstance(length, int):
        raise call.unsupported(f"{call.node.op} along an axis that depends on the batch")
    spots = np.arange(0, length - size + 1, step)[:, None] + np.arange(size)[None, :]
    picked = call.op("Gather", call.tensor("self"), call.constant(spots, torch.int64), axis=axis)
    order = [a for a in range(form.rank + 1) if a != axis + 1] + [axis + 1]
    return picked if order == sorted(order) else call.op("Transpose", picked, perm=order)


@lowerings.add("Col2Im")
def col2im(call: Call) -> str:
    """(N, C*kh*kw, L) -> (N, C, H, W): sums of overlapping windows."""
    pads = list(call["padding"]) * 2
    size, block = call.ints(*call["output_size"]), call.ints(*call["kernel_size"])
    return call.op("Col2Im", call.tensor("self"), size, block, strides=list(call["stride"]), dilations=list(call["dilation"]), pads=pads)


@lowerings.add("Trilu")
def trilu(call: Call) -> str:
    """The upper or lower triangle; zeros elsewhere."""
    return call.op("Trilu", call.tensor("self"), call.constant(call.number("diagonal"), torch.int64), upper=int("triu" in call.node.op))


@lowerings.add("GridSample")
def grid_sample(call: Call) -> str:
    """The same modes under other names."""
    mode = ("linear", "nearest", "cubic")[call["interpolation_mode"]]
    padding = ("zeros", "border", "reflection")[call["padding_mode"]]
    sources = call.tensor("input"), call.tensor("grid")
    return call.op("GridSample", *sources, mode=mode, padding_mode=padding, align_corners=int(call["align_corners"]))


@lowerings.add("OneHot")
def one_hot(call: Call) -> str:
    """1 at the class of each position, along a new last axis."""
    source = call.op("Unsqueeze", call.tensor("self"), call.ints(-1))
    classes = call.constant(np.arange(call.number("num_classes")), torch.int64)
    return call.cast(call.op("Equal", source, classes), torch.int64)
