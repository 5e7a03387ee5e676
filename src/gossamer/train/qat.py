"""Quantizers that learn with the weights, within what the target can run (LSQ, and LSQ+ with whole zero points).

Gradients are those of the papers; steps are Adam's, whichever optimizer trains the weights: each scale is trained as a multiple of its
start, and each zero point as a shift in code ranges, so that equal steps are equal relative ones. The papers' own steps, gradient descent
with a factor of 1 / sqrt(numbers * highest code), are far out of balance here: 60 updates of a ResNet-20 at 3 bits moved scales of
single channels by factors of 0.06 to 5.5, those of values by 0.5 %, and did no better than constant scales.

Source: Esser et al. 2020 (LSQ), arXiv:1902.08153; Bhalgat et al. 2020 (LSQ+), arXiv:2004.09576; Kingma and Ba 2015 (Adam), arXiv:1412.6980.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from gossamer.errors import ConfigError
from gossamer.numerics.affine import SMALLEST_SCALE, Quantizer, clips_like, dequantize, fake_quantize, quantize, spread_out
from gossamer.numerics.formats import IntFormat, PerTensor
from gossamer.numerics.lsq import learned_quantize
from gossamer.numerics.ranges import fit_clamp
from gossamer.plan.integer_cases import why_float
from gossamer.plan.rounding import BIAS_LIMIT
from gossamer.plan.site import has_weight, site_of
from gossamer.plan.spec import specs
from gossamer.program.clamps import clip_limits
from gossamer.program.ops import op_of
from gossamer.program.program import Program

_FURTHEST = 16.0  # how far a scale may move from its start, as a factor: keeps it positive


@dataclass(frozen=True, slots=True, eq=False)
class _Learned:
    """The quantizer of some values while it learns.

    scale    the start's, one per slice; zero likewise, the zero point
    factor   of the scale, one per slice
    shift    of the start's zero point in code ranges, (1,); None where the zero point is fixed
    ceiling  largest scale that still clips like the clamp which the codes replace
    """

    start: Quantizer
    format: IntFormat
    scale: Tensor
    zero: Tensor
    factor: nn.Parameter
    shift: nn.Parameter | None
    ceiling: float

    def round(self, value: Tensor) -> Tensor:
        scale, zero = (spread_out(part, self.start.granularity, value) for part in (self.current_scale(), self.current_zero()))
        return learned_quantize(value, scale, zero, self.format)

    def current_scale(self) -> Tensor:
        return (self.scale * self.factor).clamp(max=self.ceiling)

    def current_zero(self) -> Tensor:
        return self.zero if self.shift is None else self.zero + self.shift * self._range

    @torch.no_grad()
    def hold(self, least: Tensor | None) -> None:
        """Back into the allowed range after a step; `least` is the smallest scale of each slice."""
        floor = (SMALLEST_SCALE / self.scale).clamp_min(1 / _FURTHEST)
        if least is not None:
            floor = torch.maximum(floor, least / self.scale)
        self.factor.copy_(torch.maximum(self.factor.clamp(max=_FURTHEST), floor).clamp(max=self.ceiling / self.scale))
        if self.shift is not None:
            fmt, zero = self.format, self.start.zero_point[0]
            self.shift.clamp_((fmt.lo - zero) / self._range, (fmt.hi - zero) / self._range)

    @torch.no_grad()
    def finished(self) -> Quantizer:
        """The quantizer that was learned."""
        fmt = self.format
        zero = self.current_zero().round().clamp(fmt.lo, fmt.hi)
        return replace(self.start, scale=tuple(self.current_scale().tolist()), zero_point=tuple(int(code) for code in zero.tolist()))

    @property
    def _range(self) -> int:
        return self.start.integers.hi - self.start.integers.lo


class LearnedQuantizers:
    """The quantizers of a program as parameters, tied and bounded so that its target still runs the result.

    Values whose codes an op only passes on share one quantizer. Gates keep the codes that the target prescribes. Where codes clip in
    place of a clamp, they keep clipping exactly like it. Scales of weights stay large enough for their bias to fit int32. Those of
    floating-point formats stay as planned.

    Raises: ConfigError when there is nothing to learn, or the program's target is unknown.
    """

    def __init__(self, program: Program) -> None:
        if not any(isinstance(quantizer.format, IntFormat) for quantizer in program.quantizers.values()):
            raise ConfigError(
                "Recipe.quantizer_learning_rate", "a rate", "None for a network without integer codes, whose scales could learn"
            )
        self._program = program
        self._site = site_of(program, specs[program.target])
        self._learned: dict[str, _Learned] = {}
        self._groups: dict[str, _Learned] = {}
        for names in self._ties():
            fmt = program.quantizers[names[0]].format
            if not isinstance(fmt, IntFormat):
                continue
            made = self._start(names, fmt)
            self._groups[names[0]] = made
            self._learned.update(dict.fromkeys(names, made))
        self._biases = tuple(self._layers_with_bias())
        self.optimizer = torch.optim.Adam(self.parameters.values())

    def code(self, name: str, value: Any) -> Any:
        """Round one value or parameter. Shape: any -> the same."""
        learned = self._learned.get(name)
        return fake_quantize(value, self._program.quantizers[name]) if learned is None else learned.round(value)

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        """What learns, by a name that no parameter of a network has."""
        found = {f"<scale of {name}>": learned.factor for name, learned in self._groups.items()}
        return found | {f"<zero point of {name}>": learned.shift for name, learned in self._groups.items() if learned.shift is not None}

    def step(self) -> None:
        """Use up the gradients for one step, then go back into what the target runs."""
        self.optimizer.step()
        self.optimizer.zero_grad()
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
        fixed: set[str] = set()

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

    def _start(self, names: tuple[str, ...], fmt: IntFormat) -> _Learned:
        quantizer = self._program.quantizers[names[0]]
        is_weight = names[0] in self._program.graph.state_names
        device = self._program.device
        ceiling, pinned = math.inf, is_weight
        for limits in map(self._replaced_clamp, names):
            if limits is not None:
                pinned = True
                ceiling = min(ceiling, _largest_scale(quantizer, *limits))
        scale, zero = (torch.tensor(part, dtype=torch.float32, device=device) for part in (quantizer.scale, quantizer.zero_point))
        has_zero = not fmt.signed or quantizer.zero_point[0] != 0  # signed codes around 0 may be all that a target takes
        learns_zero = not pinned and isinstance(quantizer.granularity, PerTensor) and has_zero
        shift = nn.Parameter(torch.zeros_like(scale)) if learns_zero else None
        return _Learned(quantizer, fmt, scale, zero, nn.Parameter(torch.ones_like(scale)), shift, ceiling)

    def _replaced_clamp(self, name: str) -> tuple[float | None, float | None] | None:
        """Limits of the clamp `name` that the codes of its result make unnecessary; None for all else."""
        node = self._site.graph.by_name.get(name)
        limits = None if node is None else clip_limits(node)
        if node is None or limits is None or not node.uses or node.uses[0] in self._program.quantizers:
            return None
        before = self._site.graph.by_name.get(node.uses[0])
        replaced = before is not None and not why_float(self._site, before) and self._site.results(before) == (name,)
        return limits if replaced and clips_like(self._program.quantizers[name], *limits) else None

    def _layers_with_bias(self) -> Iterator[tuple[str, str, str]]:
        """(group of the weight, source of the codes that it meets, bias) of each layer that runs on codes."""
        groups = {id(learned): name for name, learned in self._groups.items()}
        for node in self._site.graph.nodes:
            if not has_weight(node) or why_float(self._site, node):
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
