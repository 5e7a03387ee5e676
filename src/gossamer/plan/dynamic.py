"""Planning dynamic range quantization: int8 weights, values quantized while the network runs, by what they then hold. No data needed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from gossamer.errors import ConfigError, PlanError
from gossamer.numerics.affine import Quantizer
from gossamer.numerics.formats import IntFormat
from gossamer.numerics.ranges import choose_weight_quantizer
from gossamer.plan.edits import ROWS, WHOLE, Edit, FoldBatchNorm, QuantizeInput
from gossamer.plan.plan import Frozen, Plan
from gossamer.plan.rules import FLOAT, layer_choices, no_values
from gossamer.plan.scheme import pick_format
from gossamer.plan.spec import able_targets, specs
from gossamer.plan.stored_floats import stored_weights
from gossamer.plan.tables import table_edits
from gossamer.plan.weight_layers import coded_weights, weighted_layers
from gossamer.program.fold import fold_batch_norms, foldable_batch_norms
from gossamer.program.graph import Node
from gossamer.program.ops import bind, op_of
from gossamer.program.ops.kinds import Convolution, Linear
from gossamer.program.program import Program, check_float


def plan_dynamic_quantization(
    program: Program,
    target: str = "onnxruntime",
    *,
    weights: str = "int8",
    calibration: Any = None,
    rules: Mapping[str, str] | None = None,
) -> Plan:
    """Plan integer weights for all layers, and integer products for the linear ones, whose inputs get codes while the network runs.

    weights      format of weights, symmetric, one scale for each output channel; the range with the least error (norm 2.4)
    calibration  inputs without labels; with them weights are rounded so that each layer's output changes least
    rules        other formats by layer, such as {"head": "float", "features.*": "int4"}: "*" matches anything, the first rule that
                 matches a layer decides, "float" keeps it float; "fp16", "bf16" and such store its weight with fewer bits

    Convolutions store codes and compute in float: their file is smaller, not their time. Embedding tables have codes by row.
    Raises: PlanError for a program that is quantized or has no such layer, and for rules that decide nothing (suggests the nearest
    name); ConfigError for a format or target that cannot; DataError for data that cannot be used.
    Source: Krishnamoorthi 2018, arXiv:1806.08342 (weights only, dynamic ranges); Frantar et al. 2022, arXiv:2210.17323 (rounding).
    """
    check_float(program)
    spec = specs[target]
    if not spec.dynamic_formats:
        able = able_targets(lambda other: bool(other.dynamic_formats))
        raise ConfigError("target", target, f"one with products that quantize their input while they run ({able})")
    pick_format(weights, spec.dynamic_formats, "weights", target)
    choices = layer_choices(program, rules or {}, weights, tables=True)
    no_values(choices, "values get theirs while the network runs")
    folds = foldable_batch_norms(program)
    prepared = fold_batch_norms(program.copy().eval(), folds)
    layers, frozen = weighted_layers(prepared, choices, spec, convolutions=True)
    if not layers:
        raise PlanError("the network has no layer whose weight can have codes of its own; export it as it is.")
    formats = {
        layer.node: pick_format(choices[layer.node].format, spec.dynamic_formats, choices[layer.node].what, target) for layer in layers
    }
    stored = {
        node: pick_format(choice.format, spec.float_formats, choice.what, target)
        for node, choice in choices.items()
        if choice.why_float and choice.format != FLOAT
    }
    edits: list[Edit] = [*(FoldBatchNorm(name) for name in folds), *stored_weights(prepared, stored)]
    for node, codes in coded_weights(prepared, layers, calibration, lambda node, weight: _by_output(node, weight, formats[node.name])):
        edits += codes
        if isinstance(op_of(node).kind, Linear):
            edits.append(QuantizeInput(node.name, spec.input_bits, ROWS if spec.input_rows else WHOLE))
        else:
            frozen = (*frozen, Frozen(node.module or node.name, "a convolution: its weight has codes, its products are computed in float"))
    edits += table_edits(prepared, spec, [name for name, choice in choices.items() if choice.why_float])
    return Plan(tuple(edits), program.digest, weights_digest=program.weights_digest(), target=target, frozen=frozen)


def _by_output(node: Node, weight: Tensor, fmt: IntFormat) -> Quantizer:
    """One scale for each output channel, which a transposed convolution without groups has on axis 1."""
    kind = op_of(node).kind
    axis = 1 if isinstance(kind, Convolution) and kind.transposed and bind(node)["groups"] == 1 else 0
    return choose_weight_quantizer(weight, fmt, "mse", axis=axis)
