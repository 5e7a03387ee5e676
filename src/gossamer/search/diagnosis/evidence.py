"""What is coded in a quantized network, tensor by tensor, and what is seen of each while samples pass."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from gossamer.numerics.affine import Quantizer, fake_quantize
from gossamer.numerics.error_split import ErrorSplit, code_limits, split_error
from gossamer.numerics.formats import IntFormat, PerBlock, PerTensor
from gossamer.numerics.range_choice import percentile_range
from gossamer.numerics.spread import Spread, histogram
from gossamer.plan.site import has_weight
from gossamer.plan.spec import specs
from gossamer.program.graph import Graph, Node, Ref
from gossamer.program.ops import bind, op_of
from gossamer.program.ops.kinds import Convolution
from gossamer.program.ops.own import ROUNDED
from gossamer.program.program import Program
from gossamer.search.diagnosis.findings import VALUE, WEIGHT

BIAS_STEPS = 0.999 * 2.0**30  # of int32: the planner makes scales larger rather than let a bias take more
INNER = 0.999  # share of the numbers that the inner range holds
_BYTE = IntFormat(bits=8)


@dataclass(frozen=True, slots=True)
class Item:
    """One coded tensor. `nodes`: of a weight the layers that hold it; of a value the node that makes it (none for an input).

    quantizer  None for a value that a node rounds while the network runs
    """

    name: str
    kind: str
    quantizer: Quantizer | None
    nodes: tuple[str, ...]
    layer: str
    depthwise: bool

    @property
    def format(self) -> str:
        """Its codes in words."""
        if self.quantizer is None:
            return "at run time"
        granularity = self.quantizer.granularity
        scope = "" if isinstance(granularity, PerTensor) else " per block" if isinstance(granularity, PerBlock) else " per channel"
        return self.quantizer.format.name + scope


def items_of(program: Program) -> tuple[Item, ...]:
    """All coded tensors in order of execution; a value that only passes on codes of another one is not listed again."""
    return tuple(_items(program))


def _items(program: Program) -> Iterator[Item]:
    graph, quantizers = program.graph, program.quantizers
    same_scale = specs[program.target].same_scale_ops if program.target else frozenset()
    for name in graph.inputs:
        if name in quantizers:
            yield Item(name, VALUE, quantizers[name], (), name, False)
    seen: set[str] = set()
    for node in graph.nodes:
        weight = bind(node)["weight"] if has_weight(node) else None
        if isinstance(weight, Ref) and weight.name in quantizers and weight.name not in seen:
            seen.add(weight.name)
            holders = tuple(user.name for user in graph.users[weight.name] if has_weight(user))
            yield Item(weight.name, WEIGHT, quantizers[weight.name], holders, node.module or node.name, is_depthwise(program, node))
        source = node.uses[0] if node.uses else ""
        if node.name in quantizers and not (op_of(node).onnx in same_scale and quantizers.get(source) == quantizers[node.name]):
            maker = maker_of(graph, node)
            yield Item(node.name, VALUE, quantizers[node.name], (node.name,), maker.module or maker.name, is_depthwise(program, maker))
        elif node.op in ROUNDED:
            yield Item(node.name, VALUE, None, (node.name,), node.module or node.name, False)


def maker_of(graph: Graph, node: Node) -> Node:
    """The layer whose result a value is, looking through what works number by number on that result alone; else the node itself."""
    found = node
    while not has_weight(found) and len(found.uses) == 1 and graph.sole_user(found.uses[0]) is not None and found.uses[0] in graph.by_name:
        found = graph.by_name[found.uses[0]]
    return found if has_weight(found) else node


def is_depthwise(program: Program, node: Node) -> bool:
    """Whether a node is a convolution with one input channel for each output channel."""
    if not isinstance(op_of(node).kind, Convolution):
        return False
    weight = program.state[bind(node)["weight"].name]
    return bool(bind(node)["groups"] == weight.shape[0] and weight.shape[1] == 1)


@dataclass(frozen=True, slots=True)
class BiasEvidence:
    """What was seen of the biases of a weight's layer.

    code     largest |bias| in steps of the accumulator, scale(input) * scale(weight); 0 where there is none
    growth   how much larger the scale of the channel is than its weights need
    channel  which one: of those whose bias takes all of int32 the one with the largest error
    share    of the weight's error energy that such channels make
    """

    code: float = 0.0
    growth: float = 1.0
    channel: int = 0
    share: float = 0.0


@dataclass(frozen=True, slots=True, eq=False)
class Evidence:
    """What was seen of one tensor.

    split          of its error when it alone is coded
    channel_sizes  (C,) largest |number| of each channel
    codes          lowest and highest number that codes stand for; of scales per channel the widest
    inner          range that holds 99.9 % of the numbers
    per_tensor     whether all channels share one scale of integer codes (floating-point codes are as fine for small numbers)
    bias           of a weight: the biases of its layers
    """

    depthwise: bool
    per_tensor: bool
    split: ErrorSplit
    channel_sizes: Tensor
    codes: tuple[float, float]
    inner: tuple[float, float]
    bias: BiasEvidence = BiasEvidence()


class Watch:
    """Gathers evidence of one value, part by part."""

    def __init__(self, item: Item) -> None:
        self._item = item
        self._split = ErrorSplit()
        self._spread = Spread()
        self._sizes: Tensor | None = None
        self._codes = (0.0, 0.0)

    def see(self, true: Tensor, coded: Tensor) -> None:
        """A part of the true value, and the same coded."""
        quantizer = self._item.quantizer
        if quantizer is None:
            noise = float((coded.to(torch.float64) - true.to(torch.float64)).square().sum())
            self._split += ErrorSplit(float(true.to(torch.float64).square().sum()), 0.0, noise, 0, true.numel())
        else:
            self._split += split_error(true, coded, quantizer)
            self._codes = _limits(quantizer, true)
        self._spread = histogram(self._spread, true)
        sizes = channel_sizes(true)
        self._sizes = sizes if self._sizes is None else torch.maximum(self._sizes, sizes)

    def found(self) -> Evidence:
        """All of it."""
        quantizer = self._item.quantizer
        assert self._sizes is not None
        return Evidence(
            depthwise=self._item.depthwise,
            per_tensor=quantizer is not None and _one_scale(quantizer),
            split=self._split,
            channel_sizes=self._sizes,
            codes=self._codes,
            inner=percentile_range(self._spread, _BYTE, False, share=INNER),
        )


def weight_evidence(item: Item, true: Tensor, coded: Tensor, program: Program) -> Evidence:
    """Evidence of a weight: its float numbers, those that its codes stand for, and the quantized program."""
    quantizer = item.quantizer
    assert quantizer is not None
    return Evidence(
        depthwise=item.depthwise,
        per_tensor=_one_scale(quantizer),
        split=split_error(true, coded, quantizer),
        channel_sizes=true.abs().flatten(1).amax(1),
        codes=_limits(quantizer, true),
        inner=percentile_range(histogram(Spread(), true), _BYTE, False, share=INNER),
        bias=_biases(item, true, coded, program),
    )


def _one_scale(quantizer: Quantizer) -> bool:
    return isinstance(quantizer.granularity, PerTensor) and isinstance(quantizer.format, IntFormat)


def channel_sizes(value: Tensor) -> Tensor:
    """Largest |number| of each channel: of the second axis of images and vectors, of the last one of sequences. Shape (C,)."""
    if value.dim() < 2:
        return value.abs().reshape(-1)
    axis = value.dim() - 1 if value.dim() == 3 else 1
    return value.abs().movedim(axis, 0).flatten(1).amax(1)


def largest_bias_codes(program: Program, node: Node, quantizers: Mapping[str, Quantizer]) -> Tensor | None:
    """|bias| / (scale(input) * scale(weight)) of each channel of a layer, (O,); None where a part of that is missing."""
    bound = bind(node)
    source, weight, bias = (quantizers.get(bound["input"].name), quantizers.get(bound["weight"].name), bound["bias"])
    if source is None or weight is None or not isinstance(bias, Ref) or isinstance(weight.granularity, PerBlock):
        return None
    scale = torch.tensor(weight.scale, dtype=torch.float64) * source.scale[0]
    return program.state[bias.name].detach().abs().to("cpu", torch.float64) / scale


def _biases(item: Item, true: Tensor, coded: Tensor, program: Program) -> BiasEvidence:
    """Of the layer whose bias is largest in steps."""
    found, quantizer = BiasEvidence(), item.quantizer
    for name in item.nodes:
        codes = largest_bias_codes(program, program.graph.by_name[name], program.quantizers)
        if codes is None or quantizer is None or not isinstance(quantizer.format, IntFormat) or float(codes.max()) <= found.code:
            continue
        errors = (coded - true).to("cpu", torch.float64).square().flatten(1).sum(1)
        share = float(errors[codes >= BIAS_STEPS].sum() / errors.sum()) if bool(errors.any()) else 0.0
        channel = int((errors * (codes >= BIAS_STEPS)).argmax()) if share else int(codes.argmax())
        needed = float(true[channel].abs().max()) / quantizer.format.hi
        scale = quantizer.scale[channel if len(quantizer.scale) > 1 else 0]
        found = BiasEvidence(float(codes.max()), scale / needed if needed else 1.0, channel, share)
    return found


def _limits(quantizer: Quantizer, like: Tensor) -> tuple[float, float]:
    low, high = code_limits(quantizer, like[:1] if isinstance(quantizer.granularity, PerTensor) else like)
    return float(low.min()), float(high.max())


def coded_weight(program: Program, item: Item) -> Tensor:
    """The numbers that a weight's codes stand for."""
    assert item.quantizer is not None
    return fake_quantize(program.state[item.name].detach(), item.quantizer)
