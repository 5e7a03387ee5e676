"""Quantized values in ONNX: QuantizeLinear and DequantizeLinear pairs around float operators.

The runtime fuses each pattern DequantizeLinear -> operator -> QuantizeLinear into an integer kernel. One pair per
value, never per reader: duplicated pairs kept 7 of 8 residual additions of a ResNet-18 in float.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
from torch import Tensor

from gossamer.errors import PlanError, UnsupportedOp
from gossamer.numerics.affine import Quantizer, quantize
from gossamer.numerics.affine import clips_like as clips_like
from gossamer.numerics.formats import FloatFormat, Format, PerAxis, PerTensor
from gossamer.program.forms import Size
from gossamer.targets.onnx.draft import Array, Draft
from gossamer.targets.onnx.storage import bits_of_floats, storage_of_codes

CODES, REAL, ZERO = "/q", "/dq", "/z"  # ends of the tensor names of a value's codes, of what they stand for, of a weight's zero points
WIDE, SCALE = "/q8", "/s"  # ends of the names of a weight's narrower codes once they are int8, and of a float weight's scales
DECODED_WEIGHT, DECODED_BIAS, BIAS_SCALE = "w", "b", "m"  # names, short since they say nothing: the codes next to them have the parameter's
COPY = "/copy"  # end of the names of a weight's codes for further layers that read them
UNCLIPPED = "/wide"  # end of the name of codes before they are clipped to fewer bits
FLOAT, INT8 = 1, 3  # of TensorProto
_MATRIX = 2  # axes


def code_dtype(fmt: Format) -> type[np.generic]:
    """The numpy type that holds codes of a format. Raises UnsupportedOp for one that ONNX Runtime has no kernels for."""
    types: dict[tuple[int, bool], type[np.generic]] = {(8, True): np.int8, (8, False): np.uint8, (32, True): np.int32}
    bits = max(fmt.bits, 8)
    if isinstance(fmt, FloatFormat) or (bits, fmt.signed) not in types:
        raise UnsupportedOp(fmt.name, "", needed="ONNX Runtime", way_out="choose int8 or uint8")
    return types[bits, fmt.signed]


def emit_codes(draft: Draft, tensor: str, name: str, quantizer: Quantizer) -> str:
    """Emit the QuantizeLinear of an activation; return its codes, which are clipped where they use fewer bits than the kernels' 8."""
    scale, zero, axis = _parameters(draft, quantizer)
    fmt = quantizer.format
    if fmt.bits >= 8:
        return draft.emit("QuantizeLinear", (tensor, scale, zero), name=name + CODES, axis=axis)[0]
    wide = draft.emit("QuantizeLinear", (tensor, scale, zero), name=name + UNCLIPPED, axis=axis)[0]
    limits = (draft.constant(np.asarray(limit, code_dtype(fmt))) for limit in (fmt.lo, fmt.hi))
    return draft.emit("Clip", (wide, *limits), name=name + CODES)[0]


def emit_real(draft: Draft, codes: str, name: str, quantizer: Quantizer) -> str:
    """Emit the DequantizeLinear of codes; return what they stand for."""
    scale, zero, axis = _parameters(draft, quantizer)
    return draft.emit("DequantizeLinear", (codes, scale, zero), name=name + REAL, axis=axis)[0]


def emit_real_by_position(draft: Draft, codes: str, name: str, quantizer: Quantizer, sizes: Sequence[Size], *, axis: int = 1) -> str | None:
    """Like emit_real, with one (equal) scale for each position of an axis: of `axis`, or of the first other one of several fixed positions.

    ONNX Runtime leaves codes with several scales as they are. With one scale, it rounds float weights of a layer between codes to int8
    on its own, with one scale for all of them (WeightBiasQuantization), so that a layer that is kept float for its sensitivity would
    lose most; and where codes are turned into other codes, it leaves out the first rounding (DoubleQDQPairsRemover).
    None where no axis has several positions.
    """
    fitting = [(place, size) for place, size in enumerate(sizes) if isinstance(size, int) and size > 1]
    if not fitting:
        return None
    place, size = next((pair for pair in fitting if pair[0] == axis % len(sizes)), fitting[0])
    each = replace(quantizer, granularity=PerAxis(place), scale=quantizer.scale * size, zero_point=quantizer.zero_point * size)
    return emit_real(draft, codes, name, each)


def code_weight(
    draft: Draft, weight: Tensor, name: str, quantizer: Quantizer, *, spread: Callable[[str], str] | None = None, integer: bool = True
) -> str:
    """Emit a weight's codes as a constant with a DequantizeLinear; return what stands for the float weight.

    spread   emits operators on the codes before that
    integer  whether an integer kernel computes with the codes: then zero points of convolutions are left out where they are 0.
             ONNX Runtime makes integer kernels of linear layers with zero points only. Its session.x64quantprecision replaces codes
             and zero points by name, stumbles over shared ones, and gives codes that stay one zero point where there are several scales
    """
    codes = quantize(weight.detach().float(), quantizer).numpy().astype(code_dtype(quantizer.format))
    scale, zero, axis = _parameters(draft, quantizer, own_zero=name + ZERO)
    zeros = () if integer and weight.dim() > _MATRIX and not any(quantizer.zero_point) else (zero,)
    stored = store_codes(draft, codes, name, quantizer.format)
    stored = stored if spread is None else spread(stored)
    return draft.emit("DequantizeLinear", (stored, scale, *zeros), name=DECODED_WEIGHT, axis=axis)[0]


def store_floats(draft: Draft, weight: Tensor, name: str, quantizer: Quantizer, fmt: FloatFormat) -> str:
    """Emit a weight as floating-point numbers of fewer bits; return it as float32. The runtime computes that once, on loading."""
    bits, stored = bits_of_floats(quantize(weight.detach().float(), quantizer), fmt)
    constant = draft.constant(bits, name=name + CODES, stored=stored)
    real = draft.emit("Cast", (constant,), name=name + REAL, to=FLOAT)[0]
    if isinstance(quantizer.granularity, PerTensor) and quantizer.scale == (1.0,):
        return real
    scale = draft.constant(quantizer.tensors(weight)[0].numpy(), name=name + SCALE, shared=False)
    return draft.emit("Mul", (real, scale), name=name + REAL)[0]


def store_codes(draft: Draft, codes: Array, name: str, fmt: Format) -> str:
    """Codes of a weight as a constant of as few bits as files can hold them with; return them as int8 or uint8. Stored once for each name."""
    narrow = storage_of_codes(fmt.bits) if fmt.signed else ""
    stored = draft.constant(codes, name=name + CODES, stored=narrow, owner=name)
    return draft.emit("Cast", (stored,), name=name + WIDE, to=INT8)[0] if narrow else stored


def copy_codes(draft: Draft, codes: str, rows: int, name: str, reader: int) -> str:
    """A weight's codes for one more layer that reads them, the `reader`-th: a slice that is all of them.

    ONNX Runtime computes it on loading, and does not take slices with different ends for one; its session.x64quantprecision needs codes that no other
    layer reads.
    """
    start, end = (draft.constant(np.asarray([place], np.int64)) for place in (0, rows + reader))
    return draft.emit("Slice", (codes, start, end), name=name + COPY)[0]


def code_bias(draft: Draft, bias: Tensor, name: str, source: Quantizer, weight: Quantizer) -> str:
    """Emit a bias as int32 at exactly scale(input) * scale(weight), the scale of the accumulator; zero point 0, as for all that have none.

    Scales of channels are a product of constants in the file, which runtimes compute once, on loading: storing it would take as much as the bias itself.
    """
    scales = bias_scales(source, weight)
    if scales.ndim:
        factors = (_scale(draft, source), _scale(draft, weight))
        scale = draft.emit("Mul", factors, name=BIAS_SCALE)[0]
    else:
        scale = draft.constant(scales, name="s")
    stored = draft.constant(bias_codes(bias, scales), name=name + CODES)
    return draft.emit("DequantizeLinear", (stored, scale), name=DECODED_BIAS, axis=0 if scales.ndim else None)[0]


def bias_scales(source: Quantizer, weight: Quantizer) -> Array:
    """scale(input) * scale(weight) as a product in float32: () or one per output channel."""
    product = np.float32(source.scale[0]) * np.asarray(weight.scale, dtype=np.float32)
    return product if isinstance(weight.granularity, PerAxis) else product[0]


def bias_codes(bias: Tensor, scales: Array) -> Array:
    """round(bias / scale) to int32, half to even, computed in float64. Raises PlanError where that does not fit."""
    codes = np.rint(bias.detach().cpu().double().numpy() / scales.astype(np.float64))
    if np.abs(codes).max(initial=0) >= 2**31:
        channel = int(np.abs(codes).reshape(-1).argmax())
        raise PlanError(
            f"the bias of channel {channel} does not fit int32 at its layer's scale; give that channel's weight a larger scale."
        )
    return codes.astype(np.int32)


def _parameters(draft: Draft, quantizer: Quantizer, *, own_zero: str = "") -> tuple[str, str, int | None]:
    """Names of scale and zero point, and the axis for PerAxis. `own_zero`: name of a zero point that nothing else shares."""
    axis = quantizer.granularity.axis if isinstance(quantizer.granularity, PerAxis) else None
    zero = np.asarray(quantizer.zero_point if axis is not None else quantizer.zero_point[0], dtype=code_dtype(quantizer.format))
    return _scale(draft, quantizer), draft.constant(zero, name=own_zero or "z", shared=not own_zero), axis


def _scale(draft: Draft, quantizer: Quantizer) -> str:
    """Name of the scales, (channels,) for PerAxis, else ()."""
    scale = np.asarray(quantizer.scale, dtype=np.float32)
    return draft.constant(scale if isinstance(quantizer.granularity, PerAxis) else scale[0], name="s")
