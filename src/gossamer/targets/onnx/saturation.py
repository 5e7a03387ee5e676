"""Which layers of a network can saturate at 16 bits on processors without VNNI, read off their codes.

Kernels built on vpmaddubsw add x1 w1 + x2 w2 in 16 bits, for unsigned codes x up to 255 and signed codes w of weights that
follow each other. The sum leaves [-32768, 32767] when two weights of one sign exceed 128 together. Which weights follow each
other is up to the kernel, so any two of a channel count.
Source: Intel 2018, "Lower numerical precision deep learning inference and training" (saturation of vpmaddubsw).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gossamer.numerics.affine import Quantizer, quantize
from gossamer.numerics.formats import IntFormat
from gossamer.program.graph import Node, Ref
from gossamer.program.ops import bind, op_of
from gossamer.program.ops.kinds import Convolution, Linear, Movement
from gossamer.program.ops.own import DYNAMIC_RANGE
from gossamer.program.program import Program
from gossamer.targets.onnx.cpu import PRECISE, WORST_CODE, saturates

SHORT_LOW, SHORT_HIGH = -(2**15), 2**15 - 1
_MOST_NAMED = 3


@dataclass(frozen=True, slots=True)
class Saturation:
    """One layer that can saturate: in how many of its output channels, and the sum of two products farthest from 0."""

    layer: str
    weight: str
    channels: int
    of: int
    worst: int


def saturable_layers(program: Program) -> tuple[Saturation, ...]:
    """Layers whose codes can leave 16 bits, in order of execution; none for a float network.

    Depthwise convolutions have kernels of their own, which are exact.
    """
    return tuple(found for node in program.graph.nodes if (found := _layer(program, node)) is not None)


def can_saturate(program: Program) -> bool:
    """Whether any layer's codes can leave 16 bits."""
    return any(_layer(program, node) is not None for node in program.graph.nodes)


def saturation_notes(program: Program) -> tuple[str, ...]:
    """What users of the network's file on ONNX Runtime must know, in sentences; none where nothing can saturate."""
    setting = "session option {!r} set to {!r}".format(*PRECISE)
    notes = saturation_note(program, f"run there with the {setting}, or quantize with weights='int7'")
    return (*notes, f"This processor is one of them; the figures are of sessions with the {setting}.") if notes and saturates() else notes


def saturation_note(program: Program, way_out: str) -> tuple[str, ...]:
    """The sentence for runtimes whose kernels saturate, with what helps there; nothing where no layer can."""
    layers = saturable_layers(program)
    if not layers:
        return ()
    named = _named([layer.layer for layer in layers])
    return (f"On x86 processors with AVX2 and without VNNI, {len(layers)} of the layers can saturate at 16 bits ({named}): {way_out}.",)


def signed_note(program: Program) -> tuple[str, ...]:
    """The sentence for a runtime that is wrong on such processors about layers that read signed codes, whatever their weights; nothing where none does."""
    layers = [node.module or node.name for node in program.graph.nodes if _reads_signed(program, node)]
    if not layers:
        return ()
    return (
        f"On x86 processors with AVX2 and without VNNI, {len(layers)} of the layers can come out wrong, since they read int8 values "
        f"({_named(layers)}): quantize with activations='uint8'.",
    )


def _named(layers: list[str]) -> str:
    return ", ".join(map(repr, layers[:_MOST_NAMED])) + (", ..." if len(layers) > _MOST_NAMED else "")


def _reads_signed(program: Program, node: Node) -> bool:
    source = bind(node).get("input") if isinstance(op_of(node).kind, (Convolution, Linear)) else None
    quantizer = _coded(program, source.name)[0] if isinstance(source, Ref) else None
    return quantizer is not None and isinstance(quantizer.format, IntFormat) and quantizer.format.signed


def pair_sums(codes: Tensor) -> tuple[Tensor, Tensor]:
    """Lowest and highest sum of two products of one channel's weights with unsigned 8-bit codes. Shapes: (O, ...) -> (O,), (O,)."""
    rows = codes.flatten(1).to(torch.float64)
    if rows.shape[1] == 1:
        rows = torch.nn.functional.pad(rows, (0, 1))
    low = rows.clamp_max(0).topk(2, 1, largest=False).values.sum(1)
    high = rows.clamp_min(0).topk(2, 1).values.sum(1)
    return low * WORST_CODE, high * WORST_CODE


def _layer(program: Program, node: Node) -> Saturation | None:
    kind = op_of(node).kind
    if not isinstance(kind, (Convolution, Linear)):
        return None
    bound = bind(node)
    weight, source = bound["weight"], bound["input"]
    if not isinstance(weight, Ref) or weight.name not in program.quantizers or not _unsigned(program, source.name):
        return None
    quantizer, numbers = program.quantizers[weight.name], program.state[weight.name].detach()
    if (
        not isinstance(quantizer.format, IntFormat)
        or not quantizer.format.signed
        or (isinstance(kind, Convolution) and bound["groups"] == numbers.shape[0] and numbers.shape[1] == 1)
    ):
        return None
    low, high = pair_sums(quantize(numbers, quantizer))
    over = (low < SHORT_LOW) | (high > SHORT_HIGH)
    if not bool(over.any()):
        return None
    worst = max(float(high.max()), float(low.min()), key=abs)
    return Saturation(node.module or node.name, weight.name, int(over.sum()), numbers.shape[0], int(worst))


def _unsigned(program: Program, source: str) -> bool:
    """Whether a value reaches its readers as unsigned 8-bit codes: its own, or those of a rounding while the network runs."""
    quantizer, node = _coded(program, source)
    if quantizer is not None:
        fmt = quantizer.format
        return isinstance(fmt, IntFormat) and not fmt.signed and fmt.bits == 8
    return node is not None and node.op == DYNAMIC_RANGE


def _coded(program: Program, source: str) -> tuple[Quantizer | None, Node | None]:
    """The codes with which a value reaches its readers, past what only moves numbers; and the node that hands it out."""
    node = program.graph.by_name.get(source)
    while (
        source not in program.quantizers and node is not None and (op_of(node).onnx == "Identity" or isinstance(op_of(node).kind, Movement))
    ):
        source = node.uses[0]
        node = program.graph.by_name.get(source)
    return program.quantizers.get(source), node
