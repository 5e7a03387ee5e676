"""Matrix products that quantize their input while they run: DynamicQuantizeLinear and MatMulInteger, one kernel in ONNX Runtime."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from gossamer.errors import UnsupportedOp
from gossamer.numerics.affine import Quantizer, quantize
from gossamer.numerics.formats import PerAxis
from gossamer.program.graph import Ref
from gossamer.program.ops import bind
from gossamer.program.ops.own import DYNAMIC_RANGE
from gossamer.targets.onnx.coding import store_codes
from gossamer.targets.onnx.lowering import Call, lowerings

_FLOAT = 1  # TensorProto.FLOAT


def rounds_its_input(call: Call) -> bool:
    """Whether a linear layer reads what the op before it quantizes while it runs."""
    node = call.values.program.graph.by_name.get(call["input"].name)
    return node is not None and node.op == DYNAMIC_RANGE


def matmul_of_range(call: Call) -> str:
    """input (*, I), weight (O, I) with one scale per output: codes of both are multiplied, then scaled."""
    name, draft = call["weight"].name, call.values.draft
    quantizer = call.values.program.quantizers[name]
    stored = quantize(call.values.state[name].detach().float().cpu(), quantizer).numpy().astype(np.int8)
    codes, scale, zero = draft.emit("DynamicQuantizeLinear", (call.tensor("input"),), name=f"{call['input'].name}/q", outputs=3)
    weight = call.values.for_reader(store_codes(draft, np.ascontiguousarray(stored.T), name, quantizer.format), stored.shape[1], name)
    zeros = draft.constant(np.zeros(len(quantizer.scale), np.int8), name="z", shared=False)
    total = call.op("Cast", call.op("MatMulInteger", codes, weight, zero, zeros), to=_FLOAT)
    scales = call.op("Mul", scale, draft.constant(np.asarray(quantizer.scale, np.float32), name=f"{name}/s"))
    result = call.op("Mul", total, scales)
    return result if call["bias"] is None else call.op("Add", result, call.tensor("bias"))


@lowerings.add("DynamicRange")
def dynamic_range(call: Call) -> str:
    """Part of the products behind it, so nothing by itself."""
    return left_to_readers(
        call,
        lambda weight: weight.granularity == PerAxis(0) and weight.format.bits <= call["bits"] == 8,
        way_out="round inputs only in front of linear layers with weights of at most 8 bits, one scale per output",
    )


def left_to_readers(call: Call, fits: Callable[[Quantizer], bool], *, way_out: str) -> str:
    """The tensor that is to be rounded, where all layers that read it round it themselves. Raises UnsupportedOp for one that cannot."""
    program = call.values.program
    for user in program.graph.users.get(call.node.name, ()):
        weight = bind(user).get("weight")
        quantizer = program.quantizers.get(weight.name) if isinstance(weight, Ref) else None
        if quantizer is None or not fits(quantizer):
            raise UnsupportedOp(call.node.op, user.where, needed="ONNX", way_out=way_out)
    return call.tensor("self")
