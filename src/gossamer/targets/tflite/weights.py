"""Weights and biases of layers as kernels want them: floats, codes, or stored with fewer bits and computed with in float."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from gossamer.numerics import integer
from gossamer.numerics.affine import Quantizer, quantize
from gossamer.numerics.formats import FloatFormat, IntFormat, PerAxis, PerTensor
from gossamer.program.graph import Ref
from gossamer.program.ops.own import DYNAMIC_ROWS
from gossamer.targets.tflite.draft import Array, DraftTensor
from gossamer.targets.tflite.lowering import Call


@dataclass(frozen=True, slots=True)
class Weight:
    """A weight with the network's axes.

    numbers    what is stored: codes, or floats
    quantizer  of the codes; None for floats
    decoded    whether the layer computes in float, so that what is stored becomes floats first
    """

    numbers: Array
    quantizer: Quantizer | None = None
    decoded: bool = False

    def stored(self, call: Call, array: Array, axis: int, *, halves: bool = False) -> int:
        """The tensor that the layer reads: `array` is `numbers` with its axes moved, output channels at `axis`.

        halves  the kernel reads codes of 4 bits two at a time; those of convolutions are slower than float then, so that they take a byte each, as do
                those of rows of odd length
        """
        arg = call.args["weight"]
        assert isinstance(arg, Ref)
        even = array.shape[-1] % 2 == 0  # kernels disagree on where the next row starts otherwise
        few = halves and even and not self.decoded and self.quantizer is not None and self.quantizer.format.bits <= 4
        number = call.values.draft.constant(array, arg.name, self.quantizer, axis, "int4" if few else "")
        if not self.decoded:
            return number
        made = call.values.draft.add(DraftTensor(f"{arg.name}/real", array.shape, "float32"))
        call.values.draft.op("DEQUANTIZE", (number,), (made,), "DequantizeOptions")
        return made


def weight_of(call: Call) -> Weight:
    """The weight of a layer. Raises UnsupportedOp for one that is computed, or in a format that files do not hold."""
    arg = call.args["weight"]
    program = call.values.program
    known = call.array("weight")
    if not isinstance(arg, Ref) or (arg.name not in program.state and known is None):
        raise call.unsupported(f"{call.node.op} with a computed weight")
    if arg.name not in program.state and known is not None:
        return Weight(known)
    weight = program.state[arg.name].detach().to(torch.float32).cpu()
    quantizer = program.quantizers.get(arg.name)
    if quantizer is None:
        return Weight(weight.numpy())
    if isinstance(quantizer.format, FloatFormat):
        if quantizer.format.name != "fp16":
            raise call.unsupported(f"{call.node.op} with a weight of {quantizer.format.name}")
        return Weight(quantize(weight, quantizer).numpy().astype(np.float16), None, decoded=True)
    codes = quantize(weight, quantizer).numpy().astype(np.int8)
    return Weight(codes, quantizer, decoded=not call.integer and not reads_rows(call))


def reads_rows(call: Call) -> bool:
    """Whether a layer's input gets codes while the network runs, which its kernel does by itself."""
    source = call.args["input"]
    node = call.values.program.graph.by_name.get(source.name) if isinstance(source, Ref) else None
    return node is not None and node.op == DYNAMIC_ROWS


def bias_of(call: Call, channels: int, weight: Weight) -> int:
    """The bias; for an integer layer as int32 at scale(input) * scale(weight). Zeros where there is none: kernels want one."""
    arg = call.args["bias"]
    state = call.values.program.state
    numbers = state[arg.name].detach().to(torch.float32).cpu() if isinstance(arg, Ref) else torch.zeros(channels)
    if not call.integer or weight.quantizer is None:
        return call.values.draft.constant(numbers.numpy(), "bias")
    source = call.args["input"]
    assert isinstance(source, Ref)
    scales = integer.accumulator_scales(call.values.program.quantizers[source.name], weight.quantizer, torch.empty(1, 1))
    wide = call.values.program.quantizers[source.name].format.bits > 8
    codes = integer.bias_to_codes(numbers, scales).numpy().astype(np.int64 if wide else np.int32)
    flat = tuple(scales.reshape(-1).tolist())
    by_channel = isinstance(weight.quantizer.granularity, PerAxis)  # of one channel, too: XNNPACK wants biases like weights
    coding = Quantizer(IntFormat(bits=32), PerAxis(0) if by_channel else PerTensor(), flat, (0,) * len(flat))
    return call.values.draft.constant(codes, "bias", coding, 0)
