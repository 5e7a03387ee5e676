"""Functions of each number that this format has no operator for, as the formulas they stand for."""

from __future__ import annotations

from collections.abc import Callable
from math import log, pi
from typing import Any

import numpy as np
import torch

from gossamer.targets.tflite.layout import Laid
from gossamer.targets.tflite.lowering import BATCH, Call, aligned, lowerings
from gossamer.targets.tflite.tape import Part, Tape

_ERF = (1.061405429, -1.453152027, 1.421413741, -0.284496736, 0.254829592)


def _formula(onnx: str) -> Callable[[Callable[[Tape, Part, Call], Part]], Callable[[Tape, Part, Call], Part]]:
    """Register a function of the argument `self`."""

    def register(function: Callable[[Tape, Part, Call], Part]) -> Callable[[Tape, Part, Call], Part]:
        def lower(call: Call) -> Laid:
            laid = call.laid("self")
            tape = Tape(call)
            return Laid(function(tape, Part(tape, laid.tensor), call).number, laid.order, laid.columns)

        lowerings.add(onnx)(lower)
        return function

    return register


@_formula("Erf")
def erf(tape: Tape, x: Part, call: Call) -> Part:
    """To 1.5e-7 (Abramowitz and Stegun 1964, 7.1.26)."""
    return _erf_of_size(tape, x.one("ABS")) * x.one("SIGN")


def _erf_of_size(tape: Tape, size: Part) -> Part:
    """Of numbers >= 0."""
    t = tape.pair("DIV", 1.0, size * 0.3275911 + 1.0)
    total = t * _ERF[0] + _ERF[1]
    for factor in _ERF[2:]:
        total = total * t + factor
    return tape.pair("SUB", 1.0, total * t * (size * size).one("NEG").one("EXP"))


def gelu_by_formula(call: Call) -> Laid:
    """(x + |x| erf(|x| / sqrt(2))) / 2, or x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))) / 2."""
    laid, tape = call.laid("self"), Tape(call)
    x = Part(tape, laid.tensor)
    if call["approximate"] == "tanh":
        inner = (x + x * x * x * 0.044715) * (2 / pi) ** 0.5
        result = x * (inner.one("TANH") + 1.0) * 0.5
    else:
        size = x.one("ABS")
        result = (x + size * _erf_of_size(tape, size * 0.5**0.5)) * 0.5
    return Laid(result.number, laid.order, laid.columns)


@_formula("Tan")
def tan(tape: Tape, x: Part, call: Call) -> Part:
    """sin / cos."""
    return x.one("SIN") / x.one("COS")


@_formula("Atan")
def atan(tape: Tape, x: Part, call: Call) -> Part:
    """The angle of (1, x)."""
    return tape.pair("ATAN2", x, x * 0.0 + 1.0)


def _softplus(tape: Tape, x: Part) -> Part:
    """log(1 + exp(x)), without overflow."""
    return tape.pair("MAXIMUM", x, 0.0) + (x.one("ABS").one("NEG").one("EXP") + 1.0).one("LOG")


@_formula("Softplus")
def softplus(tape: Tape, x: Part, call: Call) -> Part:
    """log(1 + exp(beta x)) / beta."""
    return _softplus(tape, x * float(call["beta"])) * (1.0 / float(call["beta"]))


@_formula("Mish")
def mish(tape: Tape, x: Part, call: Call) -> Part:
    """x tanh(softplus(x))."""
    return x * _softplus(tape, x).one("TANH")


@_formula("Softsign")
def softsign(tape: Tape, x: Part, call: Call) -> Part:
    """x / (1 + |x|)."""
    return x / (x.one("ABS") + 1.0)


@_formula("Logarithms")
def logarithms(tape: Tape, x: Part, call: Call) -> Part:
    """log1p, expm1, log2, logsigmoid, logit."""
    match call.node.op:
        case "aten.log1p.default":
            return (x + 1.0).one("LOG")
        case "aten.expm1.default":
            return x.one("EXP") - 1.0
        case "aten.log2.default":
            return x.one("LOG") * (1 / log(2))
        case "aten.log_sigmoid.default":
            return _softplus(tape, x.one("NEG")).one("NEG")
    if call["eps"] is not None:
        x = tape.pair("MINIMUM", tape.pair("MAXIMUM", x, float(call["eps"])), 1 - float(call["eps"]))
    return x.one("LOG") - tape.pair("SUB", 1.0, x).one("LOG")


def _bent(tape: Tape, x: Part, alpha: float, inner: float, outer: float) -> Part:
    """outer * (x above 0, alpha (exp(inner x) - 1) below)."""
    below = tape.pair("MINIMUM", x, 0.0)
    return (tape.pair("MAXIMUM", x, 0.0) + ((below * inner).one("EXP") - 1.0) * alpha) * outer


@_formula("Selu")
def selu(tape: Tape, x: Part, call: Call) -> Part:
    """The constants of Klambauer et al. 2017, arXiv:1706.02515."""
    return _bent(tape, x, 1.6732632423543772, 1.0, 1.0507009873554805)


@_formula("Celu")
def celu(tape: Tape, x: Part, call: Call) -> Part:
    """alpha (exp(x / alpha) - 1) below 0."""
    return _bent(tape, x, float(call["alpha"]), 1 / float(call["alpha"]), 1.0)


@_formula("Threshold")
def threshold(tape: Tape, x: Part, call: Call) -> Part:
    """threshold, hardshrink and softshrink."""
    if call.node.op == "aten.threshold.default":
        return tape.choose(tape.pair("GREATER", x, float(call["threshold"])), x, x * 0.0 + float(call["value"]))
    limit = float(call["lambd"])
    if call.node.op == "aten.hardshrink.default":
        return tape.choose(tape.pair("GREATER", x.one("ABS"), limit), x, x * 0.0)
    return tape.pair("MAXIMUM", x - limit, 0.0) + tape.pair("MINIMUM", x + limit, 0.0)


@_formula("IsNaN")
def is_nan(tape: Tape, x: Part, call: Call) -> Part:
    """What differs from itself."""
    return tape.pair("NOT_EQUAL", x, x)


@_formula("IsInf")
def is_infinite(tape: Tape, x: Part, call: Call) -> Part:
    """Of either sign."""
    return tape.pair("EQUAL", x.one("ABS"), float("inf"))


def elu_with_factors(call: Call) -> Laid:
    """scale * (x above 0, alpha (exp(input_scale x) - 1) below)."""
    laid = call.laid("self")
    tape = Tape(call)
    factors = float(call["alpha"]), float(call["input_scale"]), float(call["scale"])
    return Laid(_bent(tape, Part(tape, laid.tensor), *factors).number, laid.order, laid.columns)


def _pairwise(call: Call, *names: str) -> tuple[Tape, list[Part], tuple[int, ...]]:
    tape = Tape(call)
    numbers, order = aligned(call, *names)
    kind = str(call.values.metas[call.node.name].dtype).removeprefix("torch.")  # type: ignore[union-attr]
    parts = [Part(tape, number) for number in numbers]
    return tape, [part.to(kind) if kind in ("float32", "int32", "int64") else part for part in parts], order


@lowerings.add("Lerp")
def lerp(call: Call) -> Laid:
    """self + weight (end - self)."""
    names = ("self", "end") if isinstance(call["weight"], (int, float)) else ("self", "end", "weight")
    _, (start, end, *weight), order = _pairwise(call, *names)
    return Laid((start + (end - start) * (weight[0] if weight else float(call["weight"]))).number, order)


@lowerings.add("Clamp")
def clamp(call: Call) -> Laid:
    """Between two tensors, either of which may be missing."""
    names = [name for name in ("min", "max") if call.args.get(name) is not None]
    tape, (x, *limits), order = _pairwise(call, "self", *names)
    for name, limit in zip(names, limits, strict=True):
        x = tape.pair("MAXIMUM" if name == "min" else "MINIMUM", x, limit)
    return Laid(x.number, order)


@lowerings.add("Modulo")
def modulo(call: Call) -> Laid:
    """Quotients rounded down or towards 0, and what they leave."""
    tape, (x, y), order = _pairwise(call, "self", "other")
    name, mode = call.node.op.split(".")[1], call.get("rounding_mode")
    kind, whole = x.tensor.dtype, "int" in x.tensor.dtype
    x, y = (part.to("int32") if whole else part for part in (x, y))  # kernels divide no larger ones
    if name == "div" and mode is None:
        raise call.unsupported(f"{call.node.op} without rounding")
    down = name in ("floor_divide", "remainder") or mode == "floor"
    if down:
        quotient = tape.pair("FLOOR_DIV", x, y) if whole else (x / y).one("FLOOR")
    else:
        size = tape.pair("FLOOR_DIV", x.one("ABS"), y.one("ABS")) if whole else (x.one("ABS") / y.one("ABS")).one("FLOOR")
        quotient = size * x.one("SIGN") * y.one("SIGN")
    return Laid((x - quotient * y if name in ("remainder", "fmod") else quotient).to(kind).number, order)


@lowerings.add("Xor")
def exclusive_or(call: Call) -> Laid:
    """Of booleans: where they differ."""
    tape = Tape(call)
    numbers, order = aligned(call, "self", "other")
    parts = [_truth(tape, Part(tape, number)) for number in numbers]
    return Laid(tape.pair("NOT_EQUAL", *parts).number, order)


def _truth(tape: Tape, part: Part) -> Part:
    return part if part.tensor.dtype == "bool" else tape.pair("NOT_EQUAL", part, 0)


@lowerings.add("Glu")
def glu(call: Call) -> Laid:
    """The first half times the sigmoid of the second."""
    tape, axis = Tape(call), call["dim"] % len(call.shape("self"))
    laid = call.laid("self")
    x, at = Part(tape, laid.tensor), laid.order.index(axis)
    half = x.shape[at] // 2
    return Laid((tape.cut(x, at, 0, half) * tape.cut(x, at, half, 2 * half).one("LOGISTIC")).number, laid.order)


@lowerings.add("Full")
def full(call: Call) -> Laid:
    """One number everywhere, in the shape of another value or with a free batch size."""
    name = call.node.op.split(".")[1]
    said = next((argument for argument in ("fill_value", "value") if argument in call.args), "")
    numbers = call.array(said) if said else None
    value: Any = 1.0 if "ones" in name else 0.0 if "zero" in name or "empty" in name else None if numbers is None else numbers.item()
    if not isinstance(value, (int, float)) or call.values.metas[call.node.name].dtype != torch.float32:  # type: ignore[union-attr]
        raise call.unsupported(f"{call.node.op} with a computed number, or of another type than float32")
    return _filled(call, float(value))


def _filled(call: Call, value: float) -> Laid:
    grown, shape = call.grown(call.node.name), call.out_shape
    axes = [axis for axis, size in enumerate(grown) if size != shape[axis]]
    rank = len(shape)
    tape = Tape(call)
    if not axes:
        return Laid(tape.constant(torch.full(shape, value).numpy()).number, tuple(range(rank)))
    if len(axes) > 1 or shape[axes[0]] != 1:
        raise call.unsupported(f"{call.node.op} with a size that is a multiple of the batch")
    zeros = Part(tape, call.values.batch_of_zeros(rank))
    order = [axes[0], *(axis for axis in range(rank) if axis != axes[0])]
    sizes = [shape[axis] for axis in order]
    made = zeros + tape.constant(torch.full(sizes, value).numpy())
    return Laid(made.number, tuple(order))


@lowerings.add("Range")
def places_of_samples(call: Call) -> Laid:
    """start, start + step ... for each sample of the batch."""
    if call.grown(call.node.name)[0] != BATCH or call.out_shape != (1,):
        raise call.unsupported(f"{call.node.op} of a length that is no batch size")
    tape = Tape(call)
    ones = Part(tape, call.values.batch_of_zeros(1)) + 1.0
    axis = call.values.draft.constant(np.asarray(0, np.int32), "axis")
    counted = tape.add("CUMSUM", (ones.number, axis), (1,), "float32", 0, "CumsumOptions", exclusive=True, reverse=False)
    kind = str(call.values.metas[call.node.name].dtype).removeprefix("torch.")  # type: ignore[union-attr]
    found = counted * float(call.get("step", 1)) + float(call.get("start", 0))
    return Laid(found.to(kind).number, (0,))


@lowerings.add("Copy")
def copy(call: Call) -> Laid:
    """src in the shape of self."""
    _, (x, y), order = _pairwise(call, "self", "src")
    return Laid((x * 0.0 + y).number, order)


@lowerings.add("Variance")
def variance(call: Call) -> Any:
    """Variance or deviation over axes, and the mean with it."""
    shape, name = call.shape("self"), call.node.op.split(".")[1]
    dims = call["dim"]
    axes = tuple(range(len(shape))) if dims is None or dims == () else (dims,) if isinstance(dims, int) else tuple(dims)
    count = 1
    for axis in axes:
        count *= shape[axis]
    correction = call.get("correction", 1 if call.get("unbiased", True) else 0)
    correction = 1 if correction is None else correction
    tape = Tape(call)
    x = tape.part("self")
    mean = tape.reduce("MEAN", x, axes)
    away = x - mean
    keep = bool(call["keepdim"])
    found = tape.reduce("SUM", away * away, axes, keep=keep) * (1.0 / (count - correction))
    found = found.one("SQRT") if name == "std" else found
    plain = tuple(range(len(found.shape)))
    if name != "var_mean":
        return Laid(found.number, plain)
    return Laid(found.number, plain), Laid(tape.reduce("MEAN", x, axes, keep=keep).number, plain)


@lowerings.add("VectorNorm")
def vector_norm(call: Call) -> Laid:
    """(sum |x|^p)^(1/p), or the largest |x|."""
    power = call.get("ord", call.get("p"))
    power = 2 if power is None else power
    shape, dims = call.shape("self"), call["dim"]
    axes = tuple(range(len(shape))) if dims is None else (dims,) if isinstance(dims, int) else tuple(dims)
    tape, keep = Tape(call), bool(call["keepdim"])
    size = tape.part("self").one("ABS")
    if abs(power) == float("inf"):
        found = tape.reduce("REDUCE_MAX" if power > 0 else "REDUCE_MIN", size, axes, keep=keep)
    elif power == 1:
        found = tape.reduce("SUM", size, axes, keep=keep)
    elif power == 2:
        found = tape.reduce("SUM", size * size, axes, keep=keep).one("SQRT")
    elif power > 0:
        found = tape.pair("POW", tape.reduce("SUM", tape.pair("POW", size, float(power)), axes, keep=keep), 1 / float(power))
    else:
        raise call.unsupported(f"{call.node.op} of order {power}")
    return Laid(found.number, tuple(range(len(found.shape))))


@lowerings.add("LogSumExp")
def log_sum_exp(call: Call) -> Laid:
    """log(sum(exp(x))), without overflow."""
    dims = call["dim"]
    axes = (dims,) if isinstance(dims, int) else tuple(dims)
    tape = Tape(call)
    x = tape.part("self")
    most = tape.reduce("REDUCE_MAX", x, axes)
    found = tape.reduce("SUM", (x - most).one("EXP"), axes).one("LOG") + most
    if not call["keepdim"]:
        found = tape.reduce("SUM", found, axes, keep=False)
    return Laid(found.number, tuple(range(len(found.shape))))
