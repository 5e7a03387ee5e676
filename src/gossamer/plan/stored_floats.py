"""Weights stored as floating-point numbers of fewer bits. Computing stays float32, so only files get smaller."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from gossamer.errors import DataError, PlanError
from gossamer.numerics.affine import Quantizer, from_range
from gossamer.numerics.formats import FloatFormat, Format, PerAxis, PerTensor
from gossamer.plan.edits import Edit, FoldBatchNorm, QuantizeValue
from gossamer.plan.plan import Frozen, Plan
from gossamer.plan.rules import FLOAT, Choice, layer_name
from gossamer.plan.scheme import pick_format
from gossamer.plan.spec import TargetSpec
from gossamer.program.fold import fold_batch_norms, foldable_batch_norms
from gossamer.program.graph import Node, Ref
from gossamer.program.ops import bind, op_of
from gossamer.program.ops.kinds import Convolution, Embedding, Linear
from gossamer.program.program import Program

SCALED_BITS = 8  # formats of so few bits reach only a small range, and get a scale for each position of axis 0


def plan_stored_floats(program: Program, spec: TargetSpec, choices: Mapping[str, Choice]) -> Plan:
    """Store the weights of linear layers, convolutions and embeddings in floating-point formats.

    choices  of rules.layer_choices, with tables; none of them of integers

    Raises: PlanError for a network without such layers, and for a weight beyond the format's largest number; ConfigError for a format
    that the target does not store (names the nearest).
    """
    folds = foldable_batch_norms(program)
    prepared = fold_batch_norms(program.copy().eval(), folds)
    wanted: dict[str, FloatFormat] = {}
    frozen: list[Frozen] = []
    known: tuple[Format, ...] = (*spec.float_formats, *spec.block_formats)
    layers = [node for node in prepared.graph.nodes if isinstance(op_of(node).kind, (Linear, Convolution, Embedding))]
    for node in layers:
        choice = choices[node.name]
        if choice.format == FLOAT:
            frozen.append(Frozen(layer_name(node), choice.why_float))
        elif not _stored(prepared, node):
            frozen.append(Frozen(layer_name(node), "its weight is computed, not stored"))
        else:
            fmt = pick_format(choice.format, known, choice.what, spec.name)
            assert isinstance(fmt, FloatFormat)
            wanted[node.name] = fmt
    if not wanted:
        raise PlanError("the network has no layer whose weight could be stored with fewer bits; export it as it is.")
    edits: tuple[Edit, ...] = (*(FoldBatchNorm(name) for name in folds), *stored_weights(prepared, wanted))
    return Plan(edits, program.digest, weights_digest=program.weights_digest(), target=spec.name, frozen=tuple(frozen))


def stored_weights(program: Program, formats: Mapping[str, FloatFormat]) -> Iterator[QuantizeValue]:
    """The edits that store weights of layers, by node, each weight once.

    Raises: PlanError for a weight beyond the format's largest number; DataError for one that is NaN or infinite.
    """
    done: set[str] = set()
    for name, fmt in formats.items():
        node = program.graph.by_name[name]
        stored = _stored(program, node)
        if stored and stored not in done:
            done.add(stored)
            yield QuantizeValue(stored, _quantizer(program.state[stored].detach(), fmt, stored))


def _stored(program: Program, node: Node) -> str:
    """The name of a layer's weight if it is a float32 parameter or buffer, else ""."""
    weight = bind(node)["weight"]
    known = isinstance(weight, Ref) and weight.name in program.state
    return weight.name if known and program.state[weight.name].dtype == torch.float32 else ""


def _quantizer(weight: Tensor, fmt: FloatFormat, name: str) -> Quantizer:
    if not bool(torch.isfinite(weight).all()):
        raise DataError(f"the weight {name!r} holds NaN or infinity; repair the network before storing it with fewer bits.")
    bound = weight.abs().flatten(1).amax(1)
    if fmt.bits <= SCALED_BITS:
        return from_range(-bound, bound, fmt, PerAxis(0), symmetric=True)
    if float(bound.max()) > fmt.hi:
        raise PlanError(
            f"the weight {name!r} reaches {float(bound.max()):g}, beyond the {fmt.hi:g} of {fmt.name}; take bf16 for its layer."
        )
    return Quantizer(fmt, PerTensor(), (1.0,), (0,))
