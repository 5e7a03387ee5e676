"""Resizing images: upsample_* in all its modes."""

from __future__ import annotations

import numpy as np
import torch

from gossamer.program.ops import function
from gossamer.targets.onnx.draft import Array
from gossamer.targets.onnx.lower_pool import mix_axis
from gossamer.targets.onnx.lowering import Call, lowerings


@lowerings.add("Resize")
def resize(call: Call) -> str:
    """upsample_*: by given factors where torch uses them, by sizes otherwise."""
    base = call.node.op.split(".")[1]
    if base.endswith("_aa"):
        return _antialiased(call)
    name = next(iter(call.args))
    rank = call.form(name).rank
    aligned = bool(call.get("align_corners", False))
    mode = "nearest" if "nearest" in base else "cubic" if "cubic" in base else "linear"
    if "nearest_exact" in base:
        transform, rounding = "half_pixel", "round_prefer_ceil"
    elif mode == "nearest":
        transform, rounding = "asymmetric", "floor"
    else:
        transform, rounding = "align_corners" if aligned else "half_pixel", None
    factors = _factors(call, rank - 2)
    # of all axes: where ONNX Runtime moves a Transpose past it, it overlooks that `axes` could say which ones are meant
    if factors and not aligned:
        scale, sizes = call.constant(np.array([1.0, 1.0, *factors]), torch.float32), []
    else:
        scale, sizes = "", [call.sizes(call.result.sizes)]
    return call.op(
        "Resize",
        call.tensor(name),
        "",
        scale,
        *sizes,
        mode=mode,
        coordinate_transformation_mode=transform,
        nearest_mode=rounding,
        cubic_coeff_a=-0.75 if mode == "cubic" else None,
    )


def _factors(call: Call, dims: int) -> list[float]:
    """Scale factors where the op was given some."""
    given = call.get("scale_factors")
    if given is None:
        one = [call.get(f"scales_{axis}") for axis in "dhw"[3 - dims :]]
        given = [] if None in one else one
    return [float(factor) for factor in given or ()]


def _antialiased(call: Call) -> str:
    """One matrix product per axis: ONNX Runtime's own antialiasing differs from torch's by up to 9 %."""
    source, form = call.tensor(next(iter(call.args))), call.form(next(iter(call.args)))
    factors: list[float] | list[None] = _factors(call, 2) or [None, None]
    for axis, factor in zip((2, 3), factors, strict=True):
        have, want = form.sizes[axis], call.result.sizes[axis]
        if not (isinstance(have, int) and isinstance(want, int)):
            raise call.unsupported(f"{call.node.op} of a size that depends on the batch")
        source = mix_axis(call, source, 4, axis, _weights(call, have, want, factor))
    return source


def _weights(call: Call, have: int, want: int, factor: float | None) -> Array:
    """(have, want): what the op itself makes of each unit vector along one axis."""
    run = function(call.node.op.rpartition(".")[0] + ".default")
    units = torch.eye(have, dtype=torch.float64)[None, None]
    rows: torch.Tensor = run(units, [want, have], call["align_corners"], factor, None)
    weights: Array = np.ascontiguousarray(rows[0, 0].numpy().T)
    return weights
