"""Planning static quantization: what gets codes, which range they cover, how weights are rounded. Changes nothing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import reduce
from typing import Any

from gossamer.batches import Batches, as_batches
from gossamer.errors import PlanError
from gossamer.numerics.affine import Quantizer, clips_like
from gossamer.numerics.formats import IntFormat, PerTensor
from gossamer.numerics.ranges import choose_quantizer, fit_clamp
from gossamer.numerics.spread import merge
from gossamer.plan.calibrate import Calibration, calibrate
from gossamer.plan.edits import (
    ConvolveBatchNorm,
    CopyForCodes,
    Edit,
    FoldBatchNorm,
    QuantizeValue,
    SplitAttention,
    SplitGate,
    SplitTransposed,
)
from gossamer.plan.equalization_static import StaticCoding, equalize_static
from gossamer.plan.float_readers import values_read_both_ways
from gossamer.plan.placement import Placement, place_quantizers
from gossamer.plan.plan import Frozen, Plan
from gossamer.plan.rounding import RoundingJob, roundings
from gossamer.plan.rules import LayerFormats, layer_formats, value_formats
from gossamer.plan.scheme import Scheme, check_scheme, pick_format
from gossamer.plan.spec import TargetSpec, specs
from gossamer.plan.stored_floats import stored_weights
from gossamer.plan.tables import table_edits
from gossamer.plan.token_ranges import token_quantizers
from gossamer.plan.value_formats import EXACT_BITS, ValueFormats
from gossamer.program.attention import split_attention, whole_attention
from gossamer.program.clamps import clip_limits
from gossamer.program.coded_copies import with_copies
from gossamer.program.fold import fold_batch_norms, foldable_batch_norms
from gossamer.program.gates import gated_activations, split_gates
from gossamer.program.graph import Graph
from gossamer.program.norm_convolutions import convolve_batch_norms, lone_batch_norms
from gossamer.program.ops import op_of
from gossamer.program.program import Program, check_float
from gossamer.program.transposed import conv_name, split_transposed, transposed_convolutions
from gossamer.progress import OnProgress, silent

FEW_BITS = 4  # of weights: up to here second-order rounding is worth its cost in wide layers, too

ONE_SAMPLE = "it was calibrated on a single sample, whose ranges other samples may leave; give a few hundred."


def plan_quantization(
    program: Program,
    calibration: Any,
    target: str = "onnxruntime",
    *,
    weights: str = "int8",
    activations: str | None = None,
    rules: Mapping[str, str] | None = None,
    scheme: Scheme | None = None,
    on_progress: OnProgress = silent,
) -> Plan:
    """Plan static integer quantization of a float program for a target, from a few hundred samples without labels.

    calibration    samples like those the network will meet: an iterable of batches, a Dataset, or arrays
    weights        format of weights, symmetric, one scale for each output channel
    activations    format of values, one scale and zero point for each; None for the one that the target likes best
    rules          other formats by layer, such as {"head": "float", "features.*": "int4"}: "*" matches anything, the first rule that
                   matches a layer decides, "float" keeps it float with all that only it would have brought onto codes; so do
                   "fp16", "bf16", "fp8_e4m3" and "fp8_e5m2", which store its weight with fewer bits. Behind a slash comes the format of
                   the value that the layer reads: "int4/uint4", or "/uint4" for that alone. A value that several layers read has the
                   finest of what they ask for
    scheme         how ranges, scales and codes are found; None for the defaults of Scheme

    What the target cannot compute on codes stays float and is listed in `plan.frozen`; a single sample is noted in `plan.notes`.
    Raises: PlanError for a program that is quantized, or has nothing to quantize, and for rules that decide nothing (suggests the
    nearest name); ConfigError for an unknown target or method and for a format that the target does not run (names the nearest);
    DataError for data that cannot be used.
    Source: Nagel et al. 2021, arXiv:2106.08295 (the pipeline); Nagel et al. 2019, arXiv:1906.04721 (bias correction);
    Frantar et al. 2022, arXiv:2210.17323 (second-order rounding).
    """
    check_float(program)
    spec, scheme = specs[target], Scheme() if scheme is None else scheme
    check_scheme(scheme, Scheme)
    activation = _activations(activations, spec)
    spec = spec.for_values(activation.bits)
    roundings.entry(scheme.rounding)
    formats = layer_formats(program, rules or {}, weights, spec)
    asked = value_formats(program, rules or {}, weights, activation, spec)
    values = ValueFormats(activation, asked, exact=weights == f"int{EXACT_BITS}")
    return _plan(
        program, as_batches(calibration, what="calibration", batch_size=program.at_once()), spec, formats, values, scheme, on_progress
    )


def _plan(
    program: Program,
    batches: Batches,
    spec: TargetSpec,
    formats: LayerFormats,
    value_kinds: ValueFormats,
    scheme: Scheme,
    on_progress: OnProgress,
) -> Plan:
    """Prepare, place, equalize, calibrate, round."""
    rounding = roundings[scheme.rounding]
    prepared, edits = _prepare(program, spec, formats.kept_float)
    names = {edit.node: conv_name(edit.node) for edit in edits if isinstance(edit, SplitTransposed)}
    norms = [edit.node for edit in edits if isinstance(edit, ConvolveBatchNorm)]
    formats, value_kinds = formats.renamed(names).joined(norms, spec.weight_formats[0]), value_kinds.renamed(names)
    placement = place_quantizers(prepared, spec, kept_float=formats.kept_float, code_ends=scheme.code_ends)
    if not placement.layers:
        why = f": {placement.frozen[0].where}, {placement.frozen[0].reason}" if placement.frozen else ""
        raise PlanError(f"the network has no layer that {spec.name} computes in integers{why}; export it as it is.")
    coding = StaticCoding(
        formats.codes,
        value_kinds.default,
        scheme,
        place=lambda changed: place_quantizers(changed, spec, kept_float=formats.kept_float, code_ends=scheme.code_ends),
        values_of=lambda changed, placed, seen: _value_quantizers(
            changed.graph, placed, seen, value_kinds, scheme.ranges, spec.symmetric_values
        ),
        symmetric=spec.symmetric_values,
    )
    prepared, placement, scaled = equalize_static(prepared, placement, batches, coding, on_progress)
    seen = calibrate(
        prepared,
        batches,
        placement,
        ranges=scheme.ranges,
        second_moments=rounding.second_moments,
        wide=[name for name, fmt in formats.codes.items() if fmt.bits <= FEW_BITS],
        on_progress=on_progress,
    )
    values = _value_quantizers(prepared.graph, placement, seen, value_kinds, scheme.ranges, spec.symmetric_values)
    for name, quantizer in token_quantizers(prepared, placement, seen, values, symmetric=spec.symmetric_values).items():
        limits = _absorbed_limits(prepared.graph, placement, name)
        values[name] = quantizer if limits is None else fit_clamp(quantizer, *limits)
    job = RoundingJob(prepared, placement, values, seen.moments, batches, formats.codes, scheme)
    rounded = rounding.run(job, on_progress)
    coded = (QuantizeValue(name, quantizer) for name, quantizer in rounded.values.items())
    return Plan(
        edits=(*edits, *table_edits(prepared, spec), *scaled, *coded, *rounded.edits, *stored_weights(prepared, formats.stored)),
        model_digest=program.digest,
        weights_digest=program.weights_digest(),
        target=spec.name,
        frozen=(
            *placement.frozen,
            *(_not_absorbed(prepared.graph, placement, rounded.values) if spec.absorbed_ops and not spec.fused_clamps else ()),
        ),
        notes=(*((ONE_SAMPLE,) if seen.samples == 1 else ()), *value_kinds.notes(placement)),
    )


def _activations(name: str | None, spec: TargetSpec) -> IntFormat:
    known = spec.activation_formats
    return known[0] if name is None and known else pick_format(name or "int8", known, "activations", spec.name)


def _prepare(program: Program, spec: TargetSpec, kept_float: Mapping[str, str]) -> tuple[Program, tuple[Edit, ...]]:
    """The network as it will be quantized: batch norms folded or made convolutions, transposed convolutions, gated activations and attention split where that
    lets them run on codes, values copied that are read on codes and in float."""
    folds = foldable_batch_norms(program)
    prepared = fold_batch_norms(program.copy().eval(), folds)
    edits: tuple[Edit, ...] = tuple(FoldBatchNorm(name) for name in folds)
    lone = _useful_convolutions(prepared, spec, kept_float)
    prepared = convolve_batch_norms(prepared, lone)
    edits += tuple(ConvolveBatchNorm(name) for name in lone)
    transposed = _useful_splits(prepared, spec, kept_float)
    prepared = split_transposed(prepared, transposed)
    edits += tuple(SplitTransposed(name) for name in transposed)
    gates = [name for name in gated_activations(prepared) if op_of(prepared.graph.by_name[name]).onnx not in spec.integer_ops]
    if gates and spec.gate_ops and spec.gate_ops <= spec.integer_ops and "Mul" in spec.integer_ops:
        split = split_gates(prepared, tuple(gates))
        integer = place_quantizers(split, spec, kept_float=kept_float).integer
        useful = tuple(name for name in gates if {name, *split.graph.by_name[name].uses[1:]} <= integer)  # the product and its gate
        prepared = split_gates(prepared, useful)
        edits += tuple(SplitGate(name) for name in useful)
    if spec.code_products:
        whole = whole_attention(prepared)
        prepared = split_attention(prepared, whole)
        edits += tuple(SplitAttention(name) for name in whole)
    if spec.floats_beside_codes:
        placement = place_quantizers(prepared, spec, kept_float=kept_float)
        copies = values_read_both_ways(prepared, placement, spec)
        prepared = with_copies(prepared, copies)
        edits += tuple(CopyForCodes(value, readers) for value, readers in copies)
    return prepared, edits


def _useful_convolutions(program: Program, spec: TargetSpec, kept_float: Mapping[str, str]) -> tuple[str, ...]:
    """Batch norms behind ops on codes, which run on codes themselves once they are convolutions."""
    names = tuple(name for name in lone_batch_norms(program) if name not in kept_float)
    if not names or "Conv" not in spec.integer_ops:
        return ()
    integer = place_quantizers(convolve_batch_norms(program, names), spec, kept_float=kept_float).integer
    return tuple(name for name in names if {name, program.graph.by_name[name].uses[0]} <= integer)


def _useful_splits(program: Program, spec: TargetSpec, kept_float: Mapping[str, str]) -> tuple[str, ...]:
    """Transposed convolutions that run on codes once they are split."""
    names = tuple(name for name in transposed_convolutions(program) if name not in kept_float)
    if not names or not {"Conv", "Pixels"} <= spec.integer_ops:
        return ()
    split = split_transposed(program, names)
    integer = place_quantizers(split, spec, kept_float=kept_float).integer
    return tuple(name for name in names if conv_name(name) in integer)


def _value_quantizers(
    graph: Graph, placement: Placement, seen: Calibration, kinds: ValueFormats, ranges: str, symmetric: bool
) -> dict[str, Quantizer]:
    """The quantizer of each value, one for each group."""
    quantizers: dict[str, Quantizer] = {}
    for group in placement.groups:
        fmt = kinds.of(placement, group.values)
        if placement.gates.intersection(group.values):
            gate = replace(fmt, bits=max(fmt.bits, 8))  # what the target prescribes has no fewer bits
            signed = bool(placement.signed_gates.intersection(group.values))
            quantizer = Quantizer(gate, PerTensor(), (2.0 ** (signed - gate.bits),), (0 if signed else gate.lo,))
        else:
            spread = reduce(merge, (seen.spreads[name] for name in group.roots))
            factor = bool(placement.factors.intersection(group.values)) and spread.low < 0
            kind = replace(fmt, signed=True) if factor else fmt
            quantizer = choose_quantizer(spread, kind, ranges, symmetric=symmetric or factor, what=f"the value {group.roots[0]!r}")
            limits = _absorbed_limits(graph, placement, group.roots[0])
            fits = limits is not None and len(group.roots) == 1 and kind.bits <= 8  # wider codes are symmetric: kernels clamp them
            quantizer = fit_clamp(quantizer, *limits) if fits and limits is not None else quantizer
        quantizers.update(dict.fromkeys(group.values, quantizer))
    return quantizers


def _absorbed_limits(graph: Graph, placement: Placement, name: str) -> tuple[float | None, float | None] | None:
    """Limits of a clamp whose result has the codes of the op before it; None for any other value."""
    node = graph.by_name.get(name)
    coded = node is not None and node.uses and (node.uses[0] in placement.integer or node.name in placement.integer)
    return clip_limits(node) if coded and node is not None else None


def _not_absorbed(graph: Graph, placement: Placement, quantizers: Mapping[str, Quantizer]) -> Iterator[Frozen]:
    """Clamps that codes shared with other values cannot replace: they and the op before them stay float."""
    for name, quantizer in quantizers.items():
        limits = _absorbed_limits(graph, placement, name)
        if limits is None or clips_like(quantizer, *limits):
            continue
        if name in placement.integer or graph.by_name[name].uses[0] not in quantizers:
            node = graph.by_name[name if name in placement.integer else graph.by_name[name].uses[0]]
            yield Frozen(f"{node.module or node.name} ({op_of(node).onnx})", f"the codes of {name!r} do not clip like it")
