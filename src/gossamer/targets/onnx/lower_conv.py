"""Convolutions, linear layers, matrix products and embeddings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from torch import nn

from gossamer.numerics.affine import Quantizer
from gossamer.numerics.formats import PerAxis
from gossamer.program.forms import Size, product
from gossamer.program.graph import Ref
from gossamer.program.ops import bind
from gossamer.targets.onnx.coding import code_bias, emit_codes, emit_real_by_position
from gossamer.targets.onnx.lower_blocks import in_blocks, matmul_in_blocks
from gossamer.targets.onnx.lower_dynamic import matmul_of_range, rounds_its_input
from gossamer.targets.onnx.lowering import Call, lowerings
from gossamer.targets.onnx.merged_groups import with_merged_groups
from gossamer.targets.onnx.rewritten_conv import Written, apart_from_twins, times_before, with_more_channels, with_picked_pixels
from gossamer.targets.onnx.whole_blocks import with_whole_blocks, without_added


@lowerings.add("Conv")
def conv(call: Call) -> str:
    """input (N, I, *S), weight (O, I/groups, *K)."""
    source, before = _unpadded(call)
    dims = call.form("weight").rank - 2
    padding = call["padding"]
    if isinstance(padding, str):
        pads = [0] * 2 * dims if padding == "valid" else _same_padding(call, dims)
    else:
        pads = list(_per_axis(padding, dims)) * 2
    pads = [own + extra for own, extra in zip(pads, before, strict=True)]
    sizes = [
        size - front - back if isinstance(size, int) else size
        for size, front, back in zip(call.form("input").sizes[2:], before[:dims], before[dims:], strict=True)
    ]
    written = with_whole_blocks(call, with_merged_groups(call, Written(source, _said(call, dims, pads))))
    written = with_more_channels(call, written, sizes)
    weight = written.weight or call.tensor("weight")
    written = with_picked_pixels(call, replace(written, source=_for_floats(call, written.source, 1)), sizes)
    written, again = apart_from_twins(call, written)
    result = call.op("Conv", written.source, weight, *_bias(call, source, weight, written.added), **written.said)
    result = call.op("Slice", result, call.ints(0), call.ints(-again), call.ints(1 + dims)) if again else result
    return without_added(call, result, written)


@lowerings.add("ConvTranspose")
def conv_transpose(call: Call) -> str:
    """weight (I, O/groups, *K)."""
    source = _source(call)
    dims = call.form("weight").rank - 2
    inputs = [_for_floats(call, source, 1), call.tensor("weight"), *([] if call["bias"] is None else [call.tensor("bias")])]
    output_padding = _per_axis(call["output_padding"], dims)
    said = _said(call, dims, list(_per_axis(call["padding"], dims)) * 2)
    return call.op("ConvTranspose", *inputs, output_padding=output_padding if any(output_padding) else None, **said)


@lowerings.add("Gemm")
def linear(call: Call) -> str:
    """input (*, I), weight (O, I). Quantized inputs of more than two axes are flattened where the target's kernels read matrices."""
    source = call.tensor("input")
    form = call.form("input")
    if (blocks := in_blocks(call)) is not None:
        return matmul_in_blocks(call, blocks)
    if rounds_its_input(call):
        return matmul_of_range(call)
    if form.rank == 2 and times_before(call, source):
        rows = _linear_on_codes(call, call.op("Unsqueeze", source, call.ints(1)), source)
        return call.op("Squeeze", rows, call.ints(1))
    if form.rank == 2:
        return call.op("Gemm", _for_floats(call, source, 1), call.tensor("weight"), *_bias(call, source, call.tensor("weight")), transB=1)
    quantized = source in call.values.coded and call.tensor("weight") in call.values.coded
    if not quantized and _is_stored(call) and form.rank > 2:
        transposed = _transposed(call)
        result = call.op("MatMul", source, transposed)
        return result if call["bias"] is None else call.op("Add", result, call.tensor("bias"))
    if quantized and not call.values.spec.rows_only:
        return _linear_on_codes(call, source, source)
    flat: list[Size] = [product(form.sizes[:-1]), form.sizes[-1]]
    source_flat = call.values.rows.get(source) or _recoded(
        call, call.reshape(source, form.sizes, flat), call.values.coded.get(source), "in"
    )
    if quantized:
        call.values.rows[source] = source_flat  # layers that read one value share its rows
    result = call.op("Gemm", source_flat, call.tensor("weight"), *_bias(call, source_flat, call.tensor("weight")), transB=1)
    result = _recoded(call, result, call.values.result_quantizer(call.node), "out")
    return call.reshape(result, [flat[0], call.result.sizes[-1]], call.result.sizes)


def _linear_on_codes(call: Call, rows: str, source: str) -> str:
    """A linear layer as a product of codes with as many axes as they have; `rows`: `source`, or the same with another axis."""
    name = _name(call, "weight")
    values = call.values
    quantizer = values.program.quantizers[name]
    quantizer = replace(quantizer, granularity=PerAxis(1)) if isinstance(quantizer.granularity, PerAxis) else quantizer
    weight = values.weight(values.state[name].detach().T, f"{name}/t", quantizer)
    result = call.op("MatMul", rows, weight)
    return call.op("Add", result, *bias) if (bias := _bias(call, source, weight)) else result


@lowerings.add("MatMul")
def matmul(call: Call) -> str:
    """ONNX broadcasts like torch, vectors included."""
    left, right = list(call.args)[:2]
    dtype = call.result.dtype
    return call.op("MatMul", call.tensor(left, dtype), call.tensor(right, dtype))


@lowerings.add("Einsum")
def einsum(call: Call) -> str:
    """The same notation."""
    dtype = call.result.dtype
    return call.op("Einsum", *(call.tensor_of(arg, dtype) for arg in call["tensors"]), equation=call["equation"].replace(" ", ""))


def _is_stored(call: Call) -> bool:
    """Whether the weight is a parameter or buffer."""
    weight = call.args["weight"]
    return isinstance(weight, Ref) and weight.name in call.values.state


def _transposed(call: Call) -> str:
    """A float weight (O, I) as (I, O): stored so, unless it is stored with fewer bits, which the runtime transposes once, on loading."""
    weight = call.array("weight")
    if weight is None:
        return call.op("Transpose", call.tensor("weight"), perm=[1, 0])
    return call.values.draft.constant(np.ascontiguousarray(weight.T), name=f"{_name(call, 'weight')}/t")


def _for_floats(call: Call, source: str, axis: int) -> str:
    """The input as a layer with float weights must read it: what its codes stand for, by position of an axis."""
    values = call.values
    if not values.spec.guarded or source not in values.codes or not _is_stored(call) or call.tensor("weight") in values.coded:
        return source
    codes, coded, sizes = values.codes[source], values.coded[source], call.form("input").sizes
    return emit_real_by_position(values.draft, codes, call.node.name + "/in", coded, sizes, axis=axis) or source


def _recoded(call: Call, tensor: str, quantizer: Quantizer | None, end: str) -> str:
    """Code a tensor inside a lowering, so that the operator next to it reads or writes codes."""
    if quantizer is None:
        return tensor
    name = f"{call.node.name}/{end}"
    return call.values.define_codes(name, emit_codes(call.values.draft, tensor, name, quantizer), quantizer)


def _name(call: Call, argument: str) -> str:
    arg = call.args[argument]
    assert isinstance(arg, Ref)
    return arg.name


def _bias(call: Call, source: str, weight: str, added: int = 0) -> list[str]:
    """The bias input, if any: int32 codes where input and weight are codes, float otherwise. `added`: channels that it has no numbers for."""
    if call["bias"] is None:
        return []
    coded, name = call.values.coded, _name(call, "bias")
    if source in coded and weight in coded and name in call.values.state and not call.values.spec.float_biases:
        numbers = nn.functional.pad(call.values.state[name].detach(), (0, added))
        return [code_bias(call.values.draft, numbers, name, coded[source], coded[weight])]
    return [call.tensor("bias")]


def _kernel(call: Call) -> list[int]:
    return [size for size in call.form("weight").sizes[2:] if isinstance(size, int)]


def _said(call: Call, dims: int, pads: list[int]) -> dict[str, Any]:
    """Attributes of a convolution; None for what is so by itself."""
    strides, dilations = _per_axis(call["stride"], dims), _per_axis(call["dilation"], dims)
    return {
        "kernel_shape": _kernel(call),
        "strides": strides if strides != [1] * dims else None,
        "dilations": dilations if dilations != [1] * dims else None,
        "pads": pads if any(pads) else None,
        "group": call["groups"] if call["groups"] != 1 else None,
    }


def _per_axis(value: int | Sequence[int], dims: int) -> list[int]:
    """One number per spatial axis."""
    values = [value] if isinstance(value, int) else list(value)
    return values * dims if len(values) == 1 else values


def _same_padding(call: Call, dims: int) -> list[int]:
    """padding="same" of torch: the odd one goes behind."""
    totals = [d * (k - 1) for d, k in zip(_per_axis(call["dilation"], dims), _kernel(call), strict=True)]
    return [total // 2 for total in totals] + [total - total // 2 for total in totals]


def _source(call: Call) -> str:
    """The input, which must have a batch axis."""
    if call.form("input").rank != call.form("weight").rank:
        raise call.unsupported(f"{call.node.op} of an input without a batch axis")
    return call.tensor("input")


def _unpadded(call: Call) -> tuple[str, list[int]]:
    """The input, and the zeros that a pad before it adds (fronts, then backs), which the convolution then adds itself."""
    source, none = _source(call), [0] * 2 * (call.form("weight").rank - 2)
    program, name = call.values.program, _name(call, "input")
    node = program.graph.by_name.get(name)
    if node is None or node.op not in ("aten.constant_pad_nd.default", "aten.pad.default"):
        return source, none
    bound, dims = bind(node), call.form("weight").rank - 2
    amounts, inner = bound["pad"], bound["self"]
    whole = all(isinstance(amount, int) and amount >= 0 for amount in amounts) and len(amounts) <= 2 * dims
    zeros = bound.get("mode", "constant") == "constant" and not bound["value"]
    unpadded = call.tensor_of(inner)
    same_codes = call.values.coded.get(unpadded) == call.values.coded.get(source)
    if not (whole and zeros and (same_codes or name not in program.quantizers)):
        return source, none
    pairs = [amounts[i : i + 2] for i in range(0, len(amounts), 2)]
    pairs = [(0, 0)] * (dims - len(pairs)) + pairs[::-1]
    return unpadded, [pair[0] for pair in pairs] + [pair[1] for pair in pairs]
