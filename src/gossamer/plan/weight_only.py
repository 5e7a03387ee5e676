"""Planning codes for weights alone: values stay float, so no calibration is needed. For networks that wait for their weights to be read."""

from __future__ import annotations

from collections.abc import Collection
from functools import partial
from typing import Any

from torch import Tensor

from gossamer.errors import ConfigError, PlanError
from gossamer.numerics.affine import Quantizer
from gossamer.numerics.formats import FLOAT_FORMATS, FloatFormat, Format, IntFormat
from gossamer.numerics.ranges import choose_block_quantizer, weight_range_methods
from gossamer.plan.edits import Edit, FoldBatchNorm, QuantizeInput
from gossamer.plan.equalization_blocks import BlockCoding, equalize_blocks
from gossamer.plan.plan import Plan
from gossamer.plan.scheme import pick_format
from gossamer.plan.spec import TargetSpec, specs
from gossamer.plan.stored_floats import plan_stored_floats
from gossamer.plan.weight_layers import coded_weights, weighted_layers
from gossamer.program.fold import fold_batch_norms, foldable_batch_norms
from gossamer.program.graph import Node
from gossamer.program.program import Program


def plan_weight_quantization(
    program: Program,
    target: str = "onnxruntime",
    *,
    weights: str = "int4",
    block: int = 32,
    ranges: str = "mse",
    round_inputs: bool = True,
    calibration: Any = None,
    equalization: str = "none",
    skip: Collection[str] = (),
) -> Plan:
    """Plan codes for the weights of linear layers, one scale for each `block` weights of a row.

    weights       "int4", "int8": symmetric; "uint4", "uint8": with a zero point for each block; "fp16", "bf16", "fp8_e4m3", "fp8_e5m2":
                  of convolutions and embeddings, too, in a smaller file that is computed in float32 (none of the choices below then)
    ranges        how the range of a block is chosen, a name in numerics.ranges.weight_range_methods: "mse" (least error, norm 2.4), "hqq"
                  (most errors small, a few may be large; Badri & Shaji 2023) or "min-max"
    round_inputs  let the kernels round what they read to 8-bit codes while they run (one scale per block), which is faster. The
                  program does the same, so what it computes is what the file computes
    calibration   inputs without labels; with them weights are rounded so that each layer's output changes least (GPTQ), without
                  them one by one
    equalization  how scale moves between channels first, a name in plan.equalization.equalizations: "awq" (weights that meet large values
                  become larger, so that they lose less; needs calibration), "auto" or "none"
    skip          layers that stay float; "*" in a name matches anything

    Everything else stays float and is listed in `plan.frozen`.
    Raises: PlanError for a program that is quantized or has no such layer, and for a name in `skip` that does not exist (suggests
    the nearest); ConfigError for a format or block size that the target does not run, for an unknown range method, and for 8 bits
    without rounded inputs where that would be slower than float; DataError for data that cannot be used.
    Source: Frantar et al. 2022 (GPTQ), arXiv:2210.17323; Dettmers & Zettlemoyer 2023 (blocks), arXiv:2212.09720; Lin et al. 2023
    (AWQ), arXiv:2306.00978.
    """
    if program.quantizers:
        raise PlanError(f"the network is quantized already (for {program.target!r}); plan from the float network.")
    spec = specs[target]
    if weights in FLOAT_FORMATS:
        known: tuple[Format, ...] = (*spec.float_formats, *spec.block_formats)
        wanted = pick_format(weights, known, "weights", target)
        assert isinstance(wanted, FloatFormat)
        return plan_stored_floats(program, target, wanted, skip)
    fmt = _format(weights, block, round_inputs, spec)
    weight_range_methods.entry(ranges)
    folds = foldable_batch_norms(program)
    prepared = fold_batch_norms(program.copy().eval(), folds)
    layers, frozen = weighted_layers(prepared, skip, convolutions=False)
    if not layers:
        why = f": {frozen[0].where}, {frozen[0].reason}" if frozen else ""
        raise PlanError(f"the network has no linear layer whose weight can have codes of its own{why}.")
    coding = BlockCoding(fmt, block, ranges, spec.input_bits if round_inputs else 0)
    prepared, scaled = equalize_blocks(prepared, layers, calibration, coding, equalization)
    edits: list[Edit] = [*(FoldBatchNorm(name) for name in folds), *scaled]
    choose = partial(_in_blocks, fmt=fmt, block=block, ranges=ranges)
    for node, codes in coded_weights(prepared, layers, calibration, choose):
        edits += codes
        if round_inputs:
            edits.append(QuantizeInput(node.name, spec.input_bits, block))
    return Plan(tuple(edits), program.digest, weights_digest=program.weights_digest(), target=target, frozen=frozen)


def _in_blocks(node: Node, weight: Tensor, fmt: IntFormat, block: int, ranges: str) -> Quantizer:
    return choose_block_quantizer(weight, fmt, ranges, size=block)


def _format(weights: str, block: int, round_inputs: bool, spec: TargetSpec) -> IntFormat:
    if not spec.block_formats:
        raise ConfigError("target", spec.name, "one that takes weights with one scale per block")
    fmt = pick_format(weights, spec.block_formats, "weights", spec.name)
    if block not in spec.block_sizes:
        raise ConfigError("block", block, f"one of {', '.join(map(str, sorted(spec.block_sizes)))}, what {spec.name} has kernels for")
    if round_inputs and not spec.input_bits:
        raise ConfigError("round_inputs", True, f"False: {spec.name} has no kernel that rounds its input")
    if not round_inputs and fmt.name in spec.rounded_only:
        raise ConfigError(
            "round_inputs", False, f"True with {weights}, which {spec.name} computes slower than float otherwise; or take int4"
        )
    return fmt
