"""Planning codes for weights alone: values stay float, so no calibration is needed. For networks that wait for their weights to be read."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor

from gossamer.batches import as_batches
from gossamer.errors import ConfigError, DataError, PlanError, nearest
from gossamer.numerics.affine import Quantizer, quantize
from gossamer.numerics.formats import IntFormat
from gossamer.numerics.moments import Moments
from gossamer.numerics.packing import pack_steps
from gossamer.numerics.ranges import choose_block_quantizer
from gossamer.numerics.rounding import second_order_codes
from gossamer.plan.calibrate import calibrate
from gossamer.plan.edits import Edit, FoldBatchNorm, QuantizeInput, QuantizeValue, RoundWeight
from gossamer.plan.placement import Layer, Placement
from gossamer.plan.plan import Frozen, Plan
from gossamer.plan.quantization import pick_format
from gossamer.plan.spec import TargetSpec, specs
from gossamer.program.fold import fold_batch_norms, foldable_batch_norms
from gossamer.program.graph import Node, Ref
from gossamer.program.ops import bind, op_of
from gossamer.program.ops.kinds import Convolution, Linear
from gossamer.program.program import Program


def plan_weight_quantization(
    program: Program,
    target: str = "onnxruntime",
    *,
    weights: str = "int4",
    block: int = 32,
    round_inputs: bool = True,
    calibration: Any = None,
    skip: Collection[str] = (),
) -> Plan:
    """Plan codes for the weights of linear layers, one scale for each `block` weights of a row.

    weights       "int4", "int8": symmetric; "uint4", "uint8": with a zero point for each block
    round_inputs  let the kernels round what they read to 8-bit codes while they run (one scale per block), which is faster. The
                  program does the same, so what it computes is what the file computes
    calibration   inputs without labels; with them weights are rounded so that each layer's output changes least (GPTQ), without
                  them one by one
    skip          layers that stay float; "*" in a name matches anything

    Everything else stays float and is listed in `plan.frozen`. The range of a block is the one with the least error (norm 2.4).
    Raises: PlanError for a program that is quantized or has no such layer, and for a name in `skip` that does not exist (suggests
    the nearest); ConfigError for a format or block size that the target does not run, and for 8 bits without rounded inputs
    where that would be slower than float; DataError for data that cannot be used.
    Source: Frantar et al. 2022 (GPTQ), arXiv:2210.17323; Dettmers & Zettlemoyer 2023 (blocks), arXiv:2212.09720.
    """
    if program.quantizers:
        raise PlanError(f"the network is quantized already (for {program.target!r}); plan from the float network.")
    spec = specs[target]
    fmt = _format(weights, block, round_inputs, spec)
    folds = foldable_batch_norms(program)
    prepared = fold_batch_norms(program.copy().eval(), folds)
    layers, frozen = _layers(prepared, skip)
    if not layers:
        why = f": {frozen[0].where}, {frozen[0].reason}" if frozen else ""
        raise PlanError(f"the network has no linear layer whose weight can have codes of its own{why}.")
    moments = _moments(prepared, layers, calibration)
    edits: list[Edit] = [FoldBatchNorm(name) for name in folds]
    done: set[str] = set()
    for layer in layers:
        if layer.weight not in done:
            done.add(layer.weight)
            edits += _weight_edits(prepared.state[layer.weight].detach(), layer, fmt, block, moments.get(layer.node))
        if round_inputs:
            edits.append(QuantizeInput(layer.node, spec.input_bits, block))
    return Plan(tuple(edits), program.digest, weights_digest=program.weights_digest(), target=target, frozen=frozen)


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


def _layers(program: Program, skip: Collection[str]) -> tuple[tuple[Layer, ...], tuple[Frozen, ...]]:
    """Linear layers with a weight of their own, and the layers that stay float."""
    matched: dict[str, bool] = dict.fromkeys(skip, False)
    layers, frozen = [], []
    for node in program.graph.nodes:
        if not isinstance(op_of(node).kind, (Linear, Convolution)):
            continue
        name = node.module or node.name
        asked = [pattern for pattern in skip if fnmatchcase(name, pattern)]
        matched.update(dict.fromkeys(asked, True))
        reason = f"skipped as asked ({asked[0]})" if asked else _why_float(program, node)
        if reason:
            frozen.append(Frozen(name, reason))
        else:
            bound = bind(node)
            layers.append(Layer(node.name, bound["input"].name, bound["weight"].name, bound["bias"] and bound["bias"].name))
    for pattern, found in matched.items():
        if not found:
            known = {node.module for node in program.graph.nodes if isinstance(op_of(node).kind, Linear) and node.module}
            raise PlanError(f"skip names {pattern!r}, which is no layer of this network; {nearest(pattern, known)}")
    return tuple(layers), tuple(frozen)


def _why_float(program: Program, node: Node) -> str:
    if not isinstance(op_of(node).kind, Linear):
        return "only matrix products have kernels for weights in blocks"
    weight = bind(node)["weight"]
    if not isinstance(weight, Ref) or weight.name not in program.state:
        return "its weight is computed, not stored"
    for user in program.graph.users[weight.name]:
        alone = isinstance(op_of(user).kind, Linear) and bind(user)["weight"] == weight and user.uses.count(weight.name) == 1
        if not alone:
            return f"its weight is also used by {user.module or user.name}, which needs the float numbers"
    return "" if weight.name not in program.graph.outputs else "its weight is an output of the network"


def _moments(program: Program, layers: tuple[Layer, ...], calibration: Any) -> Mapping[str, Moments]:
    """Second moments of each layer's inputs, or none without data."""
    if calibration is None:
        return {}
    batches = as_batches(calibration, what="calibration")
    nothing: Placement = Placement(groups=(), gates=frozenset(), layers=layers, integer=frozenset(), frozen=())
    seen = calibrate(program, batches, nothing, ranges="min-max", second_moments=True).moments
    for layer in layers:
        found = seen.get(layer.node)
        if found is None or not bool(torch.isfinite(found.total).all()):
            raise DataError(f"the calibration data makes NaN or infinite values at {layer.node!r}; clean the data or the weights.")
    return seen


def _weight_edits(weight: Tensor, layer: Layer, fmt: IntFormat, block: int, moments: Moments | None) -> Iterator[Edit]:
    quantizer = choose_block_quantizer(weight, fmt, "mse", size=block)
    yield QuantizeValue(layer.weight, quantizer)
    if moments is not None and moments.second is not None:
        steps = _second_order(weight, quantizer, moments) - quantize(weight, quantizer)
        if steps.any():
            yield RoundWeight(layer.weight, pack_steps(steps))


def _second_order(weight: Tensor, quantizer: Quantizer, moments: Moments) -> Tensor:
    scale, zero = quantizer.tensors(weight)
    covariance = moments.covariance(centred=False)
    return second_order_codes(weight[None], scale[None], covariance, quantizer.format, zero_point=zero[None])[0]
