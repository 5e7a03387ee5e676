"""Matrix products whose weights have one scale per block: the runtime's MatMulNBits, which keeps them packed in memory.

Measured on ONNX Runtime 1.32: with a rounded input it computes exactly what the dynamic_quantize op does, to float rounding.
"""

from __future__ import annotations

import numpy as np

from gossamer.numerics.affine import Quantizer, quantize
from gossamer.numerics.formats import PerBlock
from gossamer.numerics.packing import pack_bits
from gossamer.program.graph import Ref
from gossamer.program.ops.own import DYNAMIC
from gossamer.targets.onnx.draft import Array
from gossamer.targets.onnx.lower_dynamic import left_to_readers
from gossamer.targets.onnx.lowering import Call, lowerings

_ROUNDED_INPUT = 4  # accuracy_level: runs of the input get int8 codes


def in_blocks(call: Call) -> Quantizer | None:
    """The quantizer of a linear layer's weight when it has one scale per block."""
    weight = call.args["weight"]
    quantizer = call.values.program.quantizers.get(weight.name) if isinstance(weight, Ref) else None
    return quantizer if quantizer is not None and isinstance(quantizer.granularity, PerBlock) else None


def matmul_in_blocks(call: Call, quantizer: Quantizer) -> str:
    """input (*, I), weight (O, I) with blocks along I."""
    name = call["weight"].name
    codes, scale, zero = pack_blocks(call.values.state[name].detach().cpu().numpy(), quantizer)
    source = call["input"].name
    node = call.values.program.graph.by_name.get(source)
    rounded = node is not None and node.op == DYNAMIC
    draft = call.values.draft
    constants = [draft.constant(codes, name=f"{name}/q"), draft.constant(scale, name=f"{name}/s"), draft.constant(zero, name=f"{name}/z")]
    assert isinstance(quantizer.granularity, PerBlock)
    (result,) = draft.emit(
        "com.microsoft::MatMulNBits",
        (call.tensor("input"), *constants),
        name=call.node.name,
        K=call.form("weight").sizes[1],
        N=call.form("weight").sizes[0],
        bits=quantizer.format.bits,
        block_size=quantizer.granularity.size,
        accuracy_level=_ROUNDED_INPUT if rounded else 0,
    )
    return result if call["bias"] is None else call.op("Add", result, call.tensor("bias"))


def pack_blocks(weight: Array, quantizer: Quantizer) -> tuple[Array, Array, Array]:
    """Codes (O, blocks, bytes of a block), scales (O * blocks,) and packed zero points, as MatMulNBits reads them: unsigned, low bits first."""
    import torch

    fmt, blocks = quantizer.format, quantizer.granularity
    assert isinstance(blocks, PerBlock)
    rows, count = weight.shape[0], blocks.count(weight.shape[1])
    whole = quantize(torch.from_numpy(np.asarray(weight, np.float32)), quantizer).numpy().astype(np.int64) - fmt.lo
    zero = np.asarray(quantizer.zero_point, np.int64).reshape(rows, count) - fmt.lo
    padded = np.repeat(zero, blocks.size, axis=1)  # what the weight does not fill stands for 0
    padded[:, : weight.shape[1]] = whole
    codes = pack_bits(padded.astype(np.uint8), fmt.bits).reshape(rows, count, blocks.size * fmt.bits // 8)
    scale = np.asarray(quantizer.scale, np.float32)
    return codes, scale, pack_bits(zero.astype(np.uint8), fmt.bits).reshape(-1)


@lowerings.add("DynamicQuantize")
def dynamic_quantize(call: Call) -> str:
    """Part of the products behind it, so nothing by itself."""
    return left_to_readers(
        call,
        lambda weight: weight.granularity == PerBlock(1, call["block"]) and call["bits"] == 8,
        way_out="round inputs only in front of layers with weights in blocks of that size",
    )
