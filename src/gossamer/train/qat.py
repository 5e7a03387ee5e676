"""Quantizers that learn with the weights, within what the target can run (LSQ, and LSQ+ with whole zero points).

Each scale is trained as a multiple of its start, and each zero point as a shift in code ranges, so that equal steps of an optimizer
are equal relative steps. Gradients are divided by what that substitution multiplies them with: under SGD the scales move exactly
as in the paper.

Source: Esser et al. 2020 (LSQ), arXiv:1902.08153; Bhalgat et al. 2020 (LSQ+), arXiv:2004.09576.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from gossamer.numerics.affine import SMALLEST_SCALE, Quantizer, clips_like, dequantize, fake_quantize, quantize, spread_out
from gossamer.numerics.formats import FloatFormat, PerTensor
from gossamer.numerics.lsq import gradient_strength, learned_quantize
from gossamer.numerics.ranges import fit_clamp
from gossamer.plan.placement import Site, has_weight, inference_graph
from gossamer.plan.rounding import BIAS_LIMIT
from gossamer.plan.spec import specs
from gossamer.program.clamps import clip_limits
from gossamer.program.ops import op_of
from gossamer.program.program import Program
from gossamer.program.shapes import infer_shapes

_FURTHEST = 16.0  # how far a scale may move from its start, as a factor: keeps it positive


@dataclass(frozen=True, slots=True, eq=False)
class _Learned:
    """The quantizer of some values while it learns.

    factor   of the start's scale, one per slice; start * factor is the scale
    shift    of the start's zero point in code ranges, (1,); None where the zero point is fixed
    ceiling  largest scale that still clips like the clamp which the codes replace
    """

    start: Quantizer
    scale: Tensor
    factor: nn.Parameter
    shift: nn.Parameter | None
    ceiling: float
    is_weight: bool

    def round(self, value: Tensor) -> Tensor:
        fmt, granularity = self.start.integers, self.start.granularity
        samples = 1 if self.is_weight or value.dim() == 0 else value.shape[0]
        strength = gradient_strength(value.numel() / (samples * len(self.start.scale)), fmt)
        scale = spread_out(self.current_scale(), granularity, value)
        return learned_quantize(value, scale, spread_out(self.current_zero(), granularity, value), fmt, strength)

    def current_scale(self) -> Tensor:
        return (self.scale * self.factor).clamp(max=self.ceiling)

    def current_zero(self) -> Tensor:
        zero = torch.tensor(self.start.zero_point, dtype=torch.float32, device=self.scale.device)
        return zero if self.shift is None else zero + self.shift * self._range

    @torch.no_grad()
    def divide_gradients(self) -> None:
        """Gradients of the paper's parameters, in units of ours."""
        if self.factor.grad is not None:
            self.factor.grad.div_(self.scale.square())
        if self.shift is not None and self.shift.grad is not None:
            self.shift.grad.div_(self.scale.square() * self._range**2)

    @torch.no_grad()
    def hold(self, least: Tensor | None) -> None:
        """Back into the allowed range after a step; `least` is the smallest scale of each slice."""
        floor = (SMALLEST_SCALE / self.scale).clamp_min(1 / _FURTHEST)
        if least is not None:
            floor = torch.maximum(floor, least / self.scale)
        self.factor.copy_(torch.maximum(self.factor.clamp(max=_FURTHEST), floor).clamp(max=self.ceiling / self.scale))
        if self.shift is not None:
            fmt, zero = self.start.format, self.start.zero_point[0]
            self.shift.clamp_((fmt.lo - zero) / self._range, (fmt.hi - zero) / self._range)

    @torch.no_grad()
    def finished(self) -> Quantizer:
        """The quantizer that was learned."""
        fmt = self.start.format
        zero = self.current_zero().round().clamp(fmt.lo, fmt.hi)
        return replace(self.start, scale=tuple(self.current_scale().tolist()), zero_point=tuple(int(code) for code in zero.tolist()))

    @property
    def _range(self) -> int:
        return self.start.integers.hi - self.start.integers.lo


class LearnedQuantizers:
    """The quantizers of a program as parameters, tied and bounded so that its target still runs the result.

    Values whose codes an op only passes on share one quantizer. Gates keep the codes that the target prescribes. Where codes clip in
    place of a clamp, they keep clipping exactly like it. Scales of weights stay large enough for their bias to fit int32.

    Raises: ConfigError when the program's target is unknown.
    """

    def __init__(self, program: Program) -> None:
        self._program = program
        self._site = Site(inference_graph(program.graph), infer_shapes(program), specs[program.target])
        self._learned: dict[str, _Learned] = {}
        self._groups: dict[str, _Learned] = {}
        for names in self._ties():
            made = self._start(names)
            self._groups[names[0]] = made
            self._learned.update(dict.fromkeys(names, made))
        self._biases = tuple(self._layers_with_bias())

    def code(self, name: str, value: Any) -> Any:
        """Round one value or parameter. Shape: any -> the same."""
        learned = self._learned.get(name)
        return fake_quantize(value, self._program.quantizers[name]) if learned is None else learned.round(value)

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        """What learns, by a name that no parameter of a network has."""
        found = {f"<scale of {name}>": learned.factor for name, learned in self._groups.items()}
        return found | {f"<zero point of {name}>": learned.shift for name, learned in self._groups.items() if learned.shift is not None}

    def divide_gradients(self) -> None:
        """Between backward and the optimizer's step."""
        for learned in self._groups.values():
            learned.divide_gradients()

    def hold(self) -> None:
        """After each step: back into what the target runs."""
        least = dict(self._least_scales())
        for name, learned in self._groups.items():
            learned.hold(least.get(name))

    def finished(self) -> dict[str, Quantizer]:
        """The quantizers of all values and parameters."""
        made = {name: learned.finished() for name, learned in self._groups.items()}
        first = {id(learned): name for name, learned in self._groups.items()}
        changed = {name: made[first[id(learned)]] for name, learned in self._learned.items()}
        return {**self._program.quantizers, **changed}

    def _ties(self) -> Iterator[tuple[str, ...]]:
        """Names that share one quantizer, except where the target prescribes it."""
        quantizers, spec = self._program.quantizers, self._site.spec
        leader: dict[str, str] = {}
        fixed = {name for name, quantizer in quantizers.items() if isinstance(quantizer.format, FloatFormat)}

        def find(name: str) -> str:
            while leader.get(name, name) != name:
                name = leader[name]
            return name

        for node in self._site.graph.nodes:
            op = op_of(node).onnx
            if op in spec.gate_ops:
                fixed.update(self._site.results(node))
            if op in spec.same_scale_ops:
                coded = [name for name in (*self._site.inputs(node), *self._site.results(node)) if name in quantizers]
                for first, other in pairwise(coded):
                    if quantizers[other] == quantizers[first]:
                        leader[find(other)] = find(first)
        groups: dict[str, list[str]] = {}
        for name in quantizers:
            groups.setdefault(find(name), []).append(name)
        return (tuple(names) for names in groups.values() if not fixed.intersection(names))

    def _start(self, names: tuple[str, ...]) -> _Learned:
        quantizer = self._program.quantizers[names[0]]
        is_weight = names[0] in self._program.graph.state_names
        device = self._program.device
        ceiling, pinned = math.inf, is_weight
        for limits in map(self._replaced_clamp, names):
            if limits is not None:
                pinned = True
                ceiling = min(ceiling, _largest_scale(quantizer, *limits))
        scale = torch.tensor(quantizer.scale, dtype=torch.float32, device=device)
        learns_zero = not pinned and isinstance(quantizer.granularity, PerTensor) and not quantizer.format.signed
        shift = nn.Parameter(torch.zeros_like(scale)) if learns_zero else None
        return _Learned(quantizer, scale, nn.Parameter(torch.ones_like(scale)), shift, ceiling, is_weight)

    def _replaced_clamp(self, name: str) -> tuple[float | None, float | None] | None:
        """Limits of the clamp `name` that the codes of its result make unnecessary; None for all else."""
        node = self._site.graph.by_name.get(name)
        limits = None if node is None else clip_limits(node)
        if node is None or limits is None or not node.uses or node.uses[0] in self._program.quantizers:
            return None
        before = self._site.graph.by_name.get(node.uses[0])
        replaced = before is not None and not self._site.why_float(before) and self._site.results(before) == (name,)
        return limits if replaced and clips_like(self._program.quantizers[name], *limits) else None

    def _layers_with_bias(self) -> Iterator[tuple[str, str, str]]:
        """(group of the weight, source of the codes that it meets, bias) of each layer that runs on codes."""
        groups = {id(learned): name for name, learned in self._groups.items()}
        for node in self._site.graph.nodes:
            if not has_weight(node) or self._site.why_float(node):
                continue
            layer = self._site.layer(node)
            if layer.bias is not None and layer.weight in self._learned and layer.source in self._program.quantizers:
                yield groups[id(self._learned[layer.weight])], layer.source, layer.bias

    @torch.no_grad()
    def _least_scales(self) -> Iterator[tuple[str, Tensor]]:
        """The smallest scale of each weight with which its bias fits into int32 codes of scale(source) * scale."""
        found: dict[str, Tensor] = {}
        state = self._program.state if self._biases else {}
        for group, source, bias in self._biases:
            learned = self._learned.get(source)
            scale = self._program.quantizers[source].scale[0] if learned is None else learned.current_scale()
            least = state[bias].detach().abs() / (scale * BIAS_LIMIT)
            least = least if len(least) == len(self._groups[group].scale) else least.amax()
            found[group] = torch.maximum(found[group], least) if group in found else least
        return iter(found.items())


def _largest_scale(quantizer: Quantizer, low: float | None, high: float | None) -> float:
    """The largest scale with which codes clip like clamp(low, high), by this quantizer's zero point."""
    fmt, zero = quantizer.format, quantizer.zero_point[0]
    bounds = [limit / (code - zero) for limit, code in ((low, fmt.lo), (high, fmt.hi)) if limit is not None and code != zero]
    if not bounds:
        return math.inf
    scale = float(torch.tensor(min(bounds)))
    fitted = fit_clamp(replace(quantizer, scale=(scale,)), low, high)
    return max(fitted.scale[0], quantizer.scale[0]) if clips_like(fitted, low, high) else quantizer.scale[0]


def weights_on_codes(program: Program) -> None:
    """Write into each weight with a quantizer the value of its nearest code, in place: what the target computes with."""
    state: Mapping[str, Tensor] = program.state
    owner: dict[int, Quantizer] = {}
    with torch.no_grad():
        for name, tensor in state.items():
            quantizer = program.quantizers.get(name)
            if quantizer is not None and owner.setdefault(id(tensor), quantizer) == quantizer:
                tensor.copy_(dequantize(quantize(tensor, quantizer), quantizer))
