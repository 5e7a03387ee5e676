"""ONNX files that take and give codes: the ends of a drafted graph, changed after the walk that wrote it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch

from gossamer.numerics.affine import Quantizer
from gossamer.program.program import Program
from gossamer.targets.onnx.coding import CODES, REAL, emit_codes, emit_real
from gossamer.targets.onnx.draft import Draft
from gossamer.targets.onnx.proto import Port
from gossamer.targets.target import end_codes

METADATA = "gossamer.codes"  # key of the file's metadata: JSON, dtype, scale and zero_point of each input and output that is codes
_DTYPES = {"uint8": torch.uint8, "int8": torch.int8}


def code_ends(draft: Draft, program: Program, inputs: Sequence[Port], outputs: Sequence[Port], io: str) -> tuple[list[Port], list[Port]]:
    """Let the graph's float inputs and outputs be codes; the ports as they then are. Edits the draft in place."""
    return (
        [_input(draft, program.quantizers[port.name], port, io) if port.dtype == torch.float32 else port for port in inputs],
        [_output(draft, program.quantizers[name], port, io) for name, port in zip(program.graph.outputs, outputs, strict=True)],
    )


def ends_metadata(program: Program, inputs: Sequence[Port], outputs: Sequence[Port], io: str) -> Mapping[str, str]:
    """What the codes at the ends stand for, real = scale * (code - zero_point), for the file's metadata."""
    named = [(port.name, program.quantizers[port.name]) for port in inputs if port.dtype == _DTYPES[io] and port.name in program.quantizers]
    named += [(port.name, program.quantizers[name]) for name, port in zip(program.graph.outputs, outputs, strict=True)]
    codes = {name: end_codes(quantizer, io) for name, quantizer in named}
    return {METADATA: json.dumps({name: {"dtype": io, "scale": q.scale[0], "zero_point": q.zero_point[0]} for name, q in codes.items()})}


def _input(draft: Draft, quantizer: Quantizer, port: Port, io: str) -> Port:
    codes = port.name + CODES
    if io == "uint8":
        place = next(place for place, node in enumerate(draft.nodes) if codes in node.outputs)
        draft.nodes[place] = replace(draft.nodes[place], op="Identity", inputs=(port.name,), attributes=())
    else:
        start = len(draft.nodes)
        place = next(place for place, node in enumerate(draft.nodes) if node.op == "QuantizeLinear" and node.inputs[0] == port.name)
        real = emit_real(draft, port.name, port.name + "/in", end_codes(quantizer, io))
        (decode,) = draft.nodes[start:]
        del draft.nodes[start:]
        draft.nodes[place] = replace(draft.nodes[place], inputs=(real, *draft.nodes[place].inputs[1:]))
        draft.nodes.insert(place, decode)
    return replace(port, dtype=_DTYPES[io])


def _output(draft: Draft, quantizer: Quantizer, port: Port, io: str) -> Port:
    inner = draft.fresh(port.name + REAL)
    place = next(place for place, node in enumerate(draft.nodes) if port.name in node.outputs)
    real = draft.nodes[place]
    draft.rename(port.name, inner)  # other readers go on reading real numbers
    if io == "uint8" and real.op == "DequantizeLinear":
        draft.append("Identity", (real.inputs[0],), (port.name,))
    else:
        codes = emit_codes(draft, inner, port.name + "/out", end_codes(quantizer, io))
        draft.rename(codes, port.name)
    return replace(port, dtype=_DTYPES[io])
