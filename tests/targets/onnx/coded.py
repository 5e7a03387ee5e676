"""A simple way to give a program quantizers: ranges of one batch, one rule per class of op; and the codes of its file in one form and another."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from gossamer.numerics.affine import Quantizer, from_range
from gossamer.numerics.formats import IntFormat, PerAxis, PerTensor
from gossamer.plan.spec import TargetSpec
from gossamer.program.fold import fold_batch_norms
from gossamer.program.gates import split_gates
from gossamer.program.graph import Node, Ref
from gossamer.program.ops import bind, op_of
from gossamer.program.program import Program
from gossamer.targets.onnx.emit import to_onnx
from gossamer.targets.onnx.lower_activation import GATE
from gossamer.targets.onnx.run import open_session
from gossamer.targets.onnx.spec import SPEC

ACTIVATION, WEIGHT = SPEC.activation_formats[0], SPEC.weight_formats[0]
BYTE = IntFormat(bits=8, signed=False)


def quantize_program(program: Program, *batch: Tensor, weights: IntFormat = WEIGHT) -> Program:
    """A copy with quantizers for ONNX Runtime everywhere it computes in integers."""
    program = split_gates(fold_batch_norms(program))
    ranges: dict[str, tuple[Tensor, Tensor]] = {}

    def watch(name: str, value: object) -> None:
        if isinstance(value, Tensor) and value.is_floating_point():
            ranges[name] = value.min(), value.max()

    with torch.no_grad():
        program.run(*batch, observe=watch)
    quantizers = {name: _activation(ranges[name]) for name in program.graph.inputs}
    for node in program.graph.nodes:
        quantizers |= _weight(program, node, weights)
        if node.name in ranges:
            quantizers |= _result(program, node, ranges[node.name], quantizers)
    return program.with_graph(program.graph, quantizers=quantizers, target=SPEC.name)


def _activation(limits: tuple[Tensor, Tensor]) -> Quantizer:
    return from_range(*limits, ACTIVATION, PerTensor(), symmetric=False)


def _weight(program: Program, node: Node, fmt: IntFormat) -> dict[str, Quantizer]:
    weight = bind(node).get("weight") if op_of(node).onnx in ("Conv", "Gemm") else None
    if not isinstance(weight, Ref) or weight.name not in program.state:
        return {}
    rows = program.state[weight.name].detach().flatten(1)
    return {weight.name: from_range(rows.amin(1), rows.amax(1), fmt, PerAxis(0), symmetric=True)}


def _result(program: Program, node: Node, limits: tuple[Tensor, Tensor], known: dict[str, Quantizer]) -> dict[str, Quantizer]:
    kind, user = op_of(node).onnx, program.graph.sole_user(node.name)
    if user is not None and op_of(user).onnx in SPEC.absorbed_ops and kind in ("Conv", "Gemm", "Add"):
        return {}
    if kind in SPEC.float_result_ops and node.name in program.graph.outputs:
        return {}
    if kind in SPEC.same_scale_ops and node.uses[0] in known:
        return {node.name: known[node.uses[0]]}
    if kind in ("Sigmoid", "HardSigmoid"):
        return {node.name: GATE}
    return {node.name: _activation(limits)} if kind in SPEC.integer_ops | SPEC.absorbed_ops else {}


def codes_in_forms(program: Program, specs: Sequence[TargetSpec], path: Path) -> list[dict[str, np.ndarray]]:
    """What the runtime gives for a program's values when its file is written as each spec says; the last file stays."""
    found = []
    (x,) = program.example_inputs(3, seed=1)
    for spec in specs:
        path.write_bytes(to_onnx(program, spec=spec))
        found.append(open_session(path, threads=1, values=True).run_values(x.numpy()))
    return found
