"""What XNNPACK has no nodes for, as calls of portable kernels: picking rows, whole numbers, comparisons and choices."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from gossamer.targets.executorch.calling import KernelStep, end_of, kernel_rows

_PLAIN = {
    "MUL": "aten::mul.out",
    "DIV": "aten::div.out",
    "FLOOR_DIV": "aten::floor_divide.out",
    "MAXIMUM": "aten::maximum.out",
    "MINIMUM": "aten::minimum.out",
    "EQUAL": "aten::eq.Tensor_out",
    "NOT_EQUAL": "aten::ne.Tensor_out",
    "GREATER": "aten::gt.Tensor_out",
    "GREATER_EQUAL": "aten::ge.Tensor_out",
    "LESS": "aten::lt.Tensor_out",
    "LESS_EQUAL": "aten::le.Tensor_out",
    "LOGICAL_AND": "aten::logical_and.out",
    "LOGICAL_OR": "aten::logical_or.out",
    "LOGICAL_NOT": "aten::logical_not.out",
    "NEG": "aten::neg.out",
    "ABS": "aten::abs.out",
    "SIGN": "aten::sign.out",
}
_SUMS = {"ADD": "aten::add.out", "SUB": "aten::sub.out"}
_PLACES = {"ARG_MAX": "aten::argmax.out", "ARG_MIN": "aten::argmin.out"}
_REDUCTIONS = {
    "SUM": "aten::sum.IntList_out",
    "REDUCE_MAX": "aten::amax.out",
    "REDUCE_MIN": "aten::amin.out",
    "REDUCE_ANY": "aten::any.dims_out",
}


def _plain(step: KernelStep) -> None:
    """Kernels that take the same tensors and nothing else."""
    _without_activation(step)
    step.call(_PLAIN[step.op.code], *step.sources)


for _code in _PLAIN:
    kernel_rows.add(_code)(_plain)


@kernel_rows.add("SELECT_V2")
def choose(step: KernelStep) -> None:
    """The second where the first is true, else the third."""
    if step.tensor(0).dtype != "bool":
        raise step.outside("by numbers")
    step.call("aten::where.self_out", *step.sources)


def _sum(step: KernelStep) -> None:
    """The second one is taken once."""
    _without_activation(step)
    step.call(_SUMS[step.op.code], *step.sources, step.plain(1))


for _code in _SUMS:
    kernel_rows.add(_code)(_sum)


@kernel_rows.add("FLOOR_MOD")
def remainder(step: KernelStep) -> None:
    """Of whole numbers, with the sign of the second one: the runtime's own kernel has that of the first."""
    if step.out.dtype == "float32":
        raise step.outside("of floats")
    calls, (left, right) = step.walk.calls, step.sources
    quotient, multiple = calls.tensor(end_of(step.out)), calls.tensor(end_of(step.out))
    calls.call("aten::floor_divide.out", [left, right], quotient)
    calls.call("aten::mul.out", [quotient, right], multiple)
    step.call("aten::sub.out", left, multiple, step.plain(1))


def _without_activation(step: KernelStep) -> None:
    if step.op.fields.get("fusedActivationFunction", 0):
        raise step.outside("with an activation in it, on what only kernels compute,")


@kernel_rows.add("CAST")
def cast(step: KernelStep) -> None:
    """Another type, rounded towards 0."""
    step.call("dim_order_ops::_to_dim_order_copy.out", step.source(), step.plain(False), step.sizes(range(len(step.out.shape))))


@kernel_rows.add("RESHAPE")
def reshape(step: KernelStep) -> None:
    """The same numbers; the size of the batch is found when it runs."""
    sizes = [-1 if axis == step.out.batched else size for axis, size in enumerate(step.out.shape)]
    step.call("aten::view_copy.out", step.source(), step.sizes(sizes))


@kernel_rows.add("TRANSPOSE")
def transpose(step: KernelStep) -> None:
    """Other places for axes."""
    step.call("aten::permute_copy.out", step.source(), step.sizes(step.ints(1)))


@kernel_rows.add("SLICE")
def slice_(step: KernelStep) -> None:
    """A part of each axis; size -1: all that is left."""
    ends = zip(step.ints(1), step.ints(2), step.tensor(0).shape, strict=True)
    _cut(step, [(start, have if size < 0 else start + size, 1) for start, size, have in ends])


@kernel_rows.add("STRIDED_SLICE")
def strided_slice(step: KernelStep) -> None:
    """From, to and by how much along each axis; bits of masks stand for ends that are those of the axis."""
    fields, cuts = step.op.fields, []
    if fields.get("shrinkAxisMask", 0) or any(by < 1 for by in step.ints(3)):
        raise step.outside("backwards, or without an axis,")
    for axis, (start, stop, by, have) in enumerate(zip(step.ints(1), step.ints(2), step.ints(3), step.tensor(0).shape, strict=True)):
        whole = [fields.get(name, 0) >> axis & 1 for name in ("beginMask", "endMask")]
        cuts.append((0 if whole[0] else start, have if whole[1] else stop, by))
    _cut(step, cuts)


def _cut(step: KernelStep, cuts: Sequence[tuple[int, int, int]]) -> None:
    """Axis by axis, but for those that stay whole."""
    calls, have, number, shape = step.walk.calls, step.tensor(0), step.source(), list(step.tensor(0).shape)
    for axis, (start, stop, by) in enumerate(cuts):
        if (start, stop, by) == (0, shape[axis], 1):
            continue
        if axis == have.batched:
            raise step.outside("of the batch")
        shape[axis] = step.out.shape[axis]
        made = calls.tensor(end_of(replace(step.out, shape=tuple(shape))))
        calls.call("aten::slice_copy.Tensor_out", [number, *map(step.plain, (axis, start, stop, by))], made)
        number = made
    step.walk.numbers[step.op.outputs[0]] = number


@kernel_rows.add("CONCATENATION")
def concatenate(step: KernelStep) -> None:
    """Along an axis."""
    _without_activation(step)
    step.call("aten::cat.out", step.walk.calls.tensors(step.sources), step.plain(step.op.fields["axis"]))


@kernel_rows.add("PACK")
def pack(step: KernelStep) -> None:
    """Along a new axis."""
    step.call("aten::stack.out", step.walk.calls.tensors(step.sources), step.plain(step.op.fields["axis"]))


@kernel_rows.add("TILE")
def tile(step: KernelStep) -> None:
    """Repeated as a whole."""
    step.call("aten::repeat.out", step.source(), step.sizes(step.ints(1)))


@kernel_rows.add("GATHER")
def gather(step: KernelStep) -> None:
    """Rows of a table, or positions of another axis."""
    axis = step.op.fields["axis"] % len(step.tensor(0).shape)
    if step.op.fields.get("batchDims", 0) or step.tensor(0).batched == axis:
        raise step.outside("for each sample, or of samples,")
    table, places = step.source(0), step.source(1)
    if axis == 0 and len(step.tensor(0).shape) == 2:
        step.call("aten::embedding.out", table, places, step.plain(-1), step.plain(False), step.plain(False))
    elif len(step.tensor(1).shape) == 1:
        step.call("aten::index_select.out", table, step.plain(axis), places)
    else:
        picked = step.walk.calls.tensors([*[step.plain(None)] * axis, places], some_absent=True)
        step.call("aten::index.Tensor_out", table, picked)


def _reduce(step: KernelStep) -> None:
    """Over axes, which stay as axes of size 1 or go."""
    code, arguments = step.op.code, [step.sizes(step.ints(1)), step.plain(bool(step.op.fields["keepDims"]))]
    step.call(_REDUCTIONS[code], step.source(), *arguments, *([step.plain(None)] if code == "SUM" else []))


for _code in _REDUCTIONS:
    kernel_rows.add(_code)(_reduce)


def _place(step: KernelStep) -> None:
    """The first place of the largest or smallest number along an axis."""
    step.call(_PLACES[step.op.code], step.source(), step.plain(step.ints(1)[0]), step.plain(False))


for _code in _PLACES:
    kernel_rows.add(_code)(_place)


@kernel_rows.add("CUMSUM")
def running_sum(step: KernelStep) -> None:
    """Along an axis."""
    if step.op.fields["exclusive"] or step.op.fields["reverse"]:
        raise step.outside("backwards")
    step.call("aten::cumsum.out", step.source(), step.plain(step.ints(1)[0]), step.plain(None))
