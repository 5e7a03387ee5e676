"""Planning codes for weights alone: values stay float, so no calibration is needed. For networks that wait for their weights to be read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gossamer.errors import ConfigError, PlanError
from gossamer.numerics.formats import FLOAT_FORMATS, FloatFormat, IntFormat
from gossamer.plan.edits import Edit, FoldBatchNorm, QuantizeInput
from gossamer.plan.equalization_blocks import BlockCoding, equalize_blocks
from gossamer.plan.plan import Plan
from gossamer.plan.rules import FLOAT, Choice, layer_choices, no_values
from gossamer.plan.scheme import BlockScheme, check_scheme, pick_format
from gossamer.plan.spec import TargetSpec, able_targets, specs
from gossamer.plan.stored_floats import plan_stored_floats, stored_weights
from gossamer.plan.weight_layers import coded_weights, weighted_layers
from gossamer.program.fold import fold_batch_norms, foldable_batch_norms
from gossamer.program.ops import op_of
from gossamer.program.ops.kinds import Linear
from gossamer.program.program import Program, check_float

_DEFAULT = BlockScheme()


def plan_weight_quantization(
    program: Program,
    target: str = "onnxruntime",
    *,
    weights: str = "int4",
    block: int = 32,
    round_inputs: bool = True,
    calibration: Any = None,
    rules: Mapping[str, str] | None = None,
    scheme: BlockScheme = _DEFAULT,
) -> Plan:
    """Plan codes for the weights of linear layers, one scale for each `block` weights of a row.

    weights       "int4", "int8": symmetric; "uint4", "uint8": with a zero point for each block; "fp16", "bf16", "fp8_e4m3", "fp8_e5m2":
                  of convolutions and embeddings, too, in a smaller file that is computed in float32 (no other choice matters then)
    round_inputs  let the kernels round what they read to 8-bit codes while they run (one scale per block), which is faster. The
                  program does the same, so what it computes is what the file computes
    calibration   inputs without labels; with them weights are rounded so that each layer's output changes least (GPTQ), without
                  them one by one
    rules         other formats by layer, such as {"head": "float", "blocks.*": "int8"}: "*" matches anything, the first rule that matches
                  a layer decides, "float" keeps it as it is
    scheme        how ranges, scales and codes are found

    Everything else stays float and is listed in `plan.frozen`.
    Raises: PlanError for a program that is quantized or has no such layer, and for rules that decide nothing (suggests the nearest
    name); ConfigError for a format or block size that the target does not run, for an unknown method, and for 8 bits without rounded
    inputs where that would be slower than float; DataError for data that cannot be used.
    Source: Frantar et al. 2022 (GPTQ), arXiv:2210.17323; Dettmers & Zettlemoyer 2023 (blocks), arXiv:2212.09720; Lin et al. 2023
    (AWQ), arXiv:2306.00978.
    """
    check_float(program)
    check_scheme(scheme, BlockScheme)
    spec = specs[target]
    choices = layer_choices(program, rules or {}, weights, tables=True)
    no_values(choices, "values stay float")
    if weights in FLOAT_FORMATS and all(choice.why_float for choice in choices.values()):
        return plan_stored_floats(program, spec, choices)
    folds = foldable_batch_norms(program)
    prepared = fold_batch_norms(program.copy().eval(), folds)
    formats, stored = _formats(prepared, choices, (weights, block, round_inputs), spec)
    layers, frozen = weighted_layers(prepared, choices, spec, convolutions=False)
    if not layers:
        why = f": {frozen[0].where}, {frozen[0].reason}" if frozen else ""
        raise PlanError(f"the network has no linear layer whose weight can have codes of its own{why}.")
    coding = BlockCoding(formats, block, scheme.ranges, spec.input_bits if round_inputs else 0)
    prepared, scaled = equalize_blocks(prepared, layers, calibration, coding, scheme.equalization)
    edits: list[Edit] = [*(FoldBatchNorm(name) for name in folds), *scaled, *stored_weights(prepared, stored)]
    for node, codes in coded_weights(prepared, layers, calibration, lambda node, weight: coding.quantizer(node.name, weight)):
        edits += codes
        if round_inputs:
            edits.append(QuantizeInput(node.name, spec.input_bits, block))
    return Plan(tuple(edits), program.digest, weights_digest=program.weights_digest(), target=target, frozen=frozen)


def _formats(
    program: Program, choices: Mapping[str, Choice], kind: tuple[str, int, bool], spec: TargetSpec
) -> tuple[dict[str, IntFormat], dict[str, FloatFormat]]:
    """Formats of linear layers that get codes, and formats in which other weights are stored, by node. `kind`: weights, block, rounding."""
    weights, block, round_inputs = kind
    if weights not in FLOAT_FORMATS:
        _check(Choice(weights), block, round_inputs, spec)
    codes: dict[str, IntFormat] = {}
    stored: dict[str, FloatFormat] = {}
    for node in program.graph.nodes:
        choice = choices.get(node.name)
        if choice is None or choice.format == FLOAT:
            continue
        if choice.why_float:
            stored[node.name] = pick_format(choice.format, spec.float_formats, choice.what, spec.name)
        elif isinstance(op_of(node).kind, Linear):
            codes[node.name] = _check(choice, block, round_inputs, spec)
    return codes, stored


def _check(choice: Choice, block: int, round_inputs: bool, spec: TargetSpec) -> IntFormat:
    if not spec.block_formats:
        able = able_targets(lambda other: bool(other.block_formats))
        raise ConfigError("target", spec.name, f"one that takes weights with one scale per block ({able})")
    fmt = pick_format(choice.format, spec.block_formats, choice.what, spec.name)
    if block not in spec.block_sizes:
        raise ConfigError("block", block, f"one of {', '.join(map(str, sorted(spec.block_sizes)))}, what {spec.name} has kernels for")
    if round_inputs and not spec.input_bits:
        raise ConfigError("round_inputs", True, f"False: {spec.name} has no kernel that rounds its input")
    if not round_inputs and fmt.name in spec.rounded_only:
        raise ConfigError(
            "round_inputs", False, f"True with {choice.format}, which {spec.name} computes slower than float otherwise; or take int4"
        )
    return fmt
