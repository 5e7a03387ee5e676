"""Applying a quantization plan: fold batch norms, round weights, shift biases, attach quantizers."""

from __future__ import annotations

from collections.abc import Container, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from gossamer.apply.equalize import scale_channels
from gossamer.errors import PlanError
from gossamer.numerics.affine import Quantizer, dequantize, quantize
from gossamer.numerics.packing import unpack_steps
from gossamer.plan.edits import (
    ROWS,
    WHOLE,
    ConvolveBatchNorm,
    CopyForCodes,
    Edit,
    FoldBatchNorm,
    QuantizeInput,
    QuantizeValue,
    RoundWeight,
    ScaleChannels,
    ScaleInput,
    ShiftBias,
    SplitAttention,
    SplitGate,
    SplitTransposed,
)
from gossamer.program.attention import split_attention, whole_attention
from gossamer.program.coded_copies import with_copies
from gossamer.program.fold import fold_batch_norms, foldable_batch_norms
from gossamer.program.gates import gated_activations, split_gates
from gossamer.program.graph import Graph, Node, Ref
from gossamer.program.norm_convolutions import convolve_batch_norms, lone_batch_norms
from gossamer.program.ops import bind, op_of, with_arguments
from gossamer.program.ops.kinds import Convolution, Linear
from gossamer.program.ops.own import DYNAMIC, DYNAMIC_RANGE, DYNAMIC_ROWS
from gossamer.program.program import Program
from gossamer.program.transposed import split_transposed, transposed_convolutions


def quantize_program(program: Program, edits: Sequence[Edit], target: str) -> Program:
    """A quantized copy of a float program; it shares no memory with the argument.

    Raises: PlanError for a program that is quantized already, and for edits that name what it does not have.
    """
    check_float(program)
    folded = restructure(program, edits)
    quantizers = {edit.value: edit.quantizer for edit in edits if isinstance(edit, QuantizeValue)}
    known = {*folded.graph.inputs, *folded.graph.by_name, *folded.graph.state_names}
    if not quantizers.keys() <= known:
        raise PlanError(f"the plan quantizes {sorted(quantizers.keys() - known)[0]!r}, which this network does not have.")
    state = round_weights(folded, [edit for edit in edits if isinstance(edit, RoundWeight)], quantizers)
    graph, state = shift_biases(folded.graph, state, [edit for edit in edits if isinstance(edit, ShiftBias)])
    graph = round_inputs(graph, [edit for edit in edits if isinstance(edit, QuantizeInput)])
    return folded.with_graph(graph, state, quantizers=quantizers, target=target)


def restructure(program: Program, edits: Sequence[Edit]) -> Program:
    """A copy with the edits made that leave a float network's outputs as they are: batch norms folded or made convolutions; split
    gates, attention and transposed convolutions; copies; scaled channels.

    Raises: PlanError for edits that name what the network does not have.
    """
    folds = tuple(edit.node for edit in edits if isinstance(edit, FoldBatchNorm))
    missing = set(folds) - set(foldable_batch_norms(program))
    if missing:
        raise PlanError(f"the plan folds {sorted(missing)[0]!r}, which is no batch norm behind a layer of this network.")
    folded = fold_batch_norms(program.copy(), folds)
    lone = tuple(edit.node for edit in edits if isinstance(edit, ConvolveBatchNorm))
    if unknown := set(lone) - set(lone_batch_norms(folded)):
        raise PlanError(
            f"the plan makes {sorted(unknown)[0]!r} a convolution, which is no batch norm of this network that follows no layer."
        )
    folded = convolve_batch_norms(folded, lone)
    gates = tuple(edit.node for edit in edits if isinstance(edit, SplitGate))
    if unknown := set(gates) - set(gated_activations(folded)):
        raise PlanError(f"the plan splits {sorted(unknown)[0]!r}, which is no gated activation of this network.")
    attention = tuple(edit.node for edit in edits if isinstance(edit, SplitAttention))
    if unknown := set(attention) - set(whole_attention(folded)):
        raise PlanError(f"the plan splits {sorted(unknown)[0]!r}, which is no attention of this network that can be split.")
    transposed = tuple(edit.node for edit in edits if isinstance(edit, SplitTransposed))
    if unknown := set(transposed) - set(transposed_convolutions(folded)):
        raise PlanError(f"the plan splits {sorted(unknown)[0]!r}, which is no transposed convolution of this network that can be split.")
    split = split_attention(split_gates(split_transposed(folded, transposed), gates), attention)
    split = with_copies(split, [(edit.value, edit.readers) for edit in edits if isinstance(edit, CopyForCodes)])
    return scale_channels(split, [edit for edit in edits if isinstance(edit, (ScaleChannels, ScaleInput))])


def check_float(program: Program) -> None:
    """Raise PlanError for a program that has quantizers."""
    if program.quantizers:
        raise PlanError(f"the network is quantized already (for {program.target!r}); start from the float network.")


def round_weights(program: Program, edits: Sequence[RoundWeight], quantizers: dict[str, Quantizer]) -> dict[str, Tensor]:
    """The state with each named weight at exactly the values of its moved codes."""
    state = dict(program.state)
    for edit in edits:
        quantizer, weight = quantizers.get(edit.value), state.get(edit.value)
        if quantizer is None or weight is None:
            raise PlanError(f"the plan rounds {edit.value!r}, which is no weight that it quantizes.")
        steps = unpack_steps(edit.steps, tuple(weight.shape)).to(weight.device)
        mask = program.masks.get(edit.value)
        if mask is not None and bool(steps[~mask].any()):
            raise PlanError(f"the plan moves zeros of the mask of {edit.value!r} off zero; make the plan for this network.")
        codes = quantize(weight.detach(), quantizer) + steps
        codes = codes.clamp(quantizer.format.lo, quantizer.format.hi)
        state[edit.value] = nn.Parameter(dequantize(codes, quantizer))
    return state


def shift_biases(graph: Graph, state: dict[str, Tensor], edits: Sequence[ShiftBias]) -> tuple[Graph, dict[str, Tensor]]:
    """The graph and state with a shifted bias for each named layer, a new one where it has none or shares it."""
    nodes = dict(graph.by_name)
    state = dict(state)
    for edit in edits:
        node = nodes.get(edit.node)
        if node is None or not isinstance(op_of(node).kind, (Convolution, Linear)):
            raise PlanError(f"the plan shifts the bias of {edit.node!r}, which is no layer of this network.")
        bound = bind(node)
        weight = state[bound["weight"].name]
        shift = torch.tensor(edit.shift, dtype=torch.float64, device=weight.device)
        old = bound["bias"]
        bias = (
            state[old.name].detach().to(torch.float64)
            if isinstance(old, Ref)
            else torch.zeros(weight.shape[0], dtype=torch.float64, device=weight.device)
        )
        if shift.shape != bias.shape:
            raise PlanError(f"the plan shifts {len(edit.shift)} biases of {edit.node!r}, which has {len(bias)}.")
        own = isinstance(old, Ref) and graph.sole_user(old.name) is not None
        name = old.name if own else _fresh(bound["weight"].name.removesuffix("weight") + "bias", state)
        state[name] = nn.Parameter((bias + shift).to(weight.dtype))
        nodes[edit.node] = with_arguments(node, bias=Ref(name))
    return replace(graph, nodes=tuple(nodes[node.name] for node in graph.nodes)), state


_OTHERS = {WHOLE: DYNAMIC_RANGE, ROWS: DYNAMIC_ROWS}


def round_inputs(graph: Graph, edits: Sequence[QuantizeInput]) -> Graph:
    """The graph with the inputs of the named layers rounded while it runs, once for all layers that round a value alike."""
    wanted = {edit.node: edit for edit in edits}
    missing = wanted.keys() - {node.name for node in graph.nodes if isinstance(op_of(node).kind, (Convolution, Linear))}
    if missing:
        raise PlanError(f"the plan rounds the input of {sorted(missing)[0]!r}, which is no layer of this network.")
    made: dict[tuple[str, int, int], str] = {}
    taken = {*graph.inputs, *graph.by_name, *graph.state_names}
    nodes: list[Node] = []
    for node in graph.nodes:
        edit = wanted.get(node.name)
        if edit is not None:
            source = bind(node)["input"].name
            key = (source, edit.bits, edit.block)
            if key not in made:
                made[key] = _fresh(f"{source}_rounded", taken)
                taken.add(made[key])
                op, sizes = (DYNAMIC, (edit.bits, edit.block)) if edit.block > 0 else (_OTHERS[edit.block], (edit.bits,))
                nodes.append(Node(made[key], op, (Ref(source), *sizes), module=node.module, source=node.source))
            node = with_arguments(node, input=Ref(made[key]))
        nodes.append(node)
    return replace(graph, nodes=tuple(nodes))


def _fresh(wish: str, taken: Container[str]) -> str:
    name = wish
    while name in taken:
        name = f"{name}_"
    return name
