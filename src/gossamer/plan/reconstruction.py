"""Learning how the weights of a part of a network are rounded, so that it gives what it gives in float."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from gossamer.errors import ConfigError
from gossamer.numerics.adaround import beta_at, code_window, indecision_slope, logits_of, share
from gossamer.numerics.affine import Quantizer, fake_quantize
from gossamer.numerics.lsq import learned_quantize
from gossamer.plan.parts import Part, bias_of, pick
from gossamer.program.execute import Observe


@dataclass(frozen=True, slots=True, kw_only=True)
class Learning:
    """How long and how fast rounding is learned. The defaults suit minutes on one core: on parts of EfficientNet-Lite0 they gave most per second.

    iterations    steps of Adam for each part
    elements      numbers that one step computes at most, over all values of a part: it decides how many samples a step takes
    samples       calibration samples that are kept in memory at most
    memory_bytes  for the values between two parts, float and quantized; fewer samples are kept where more would be needed
    rate          of the roundings' logits, at first; rates fall to zero along a cosine
    bias_rate     of biases, in units of the norm of a channel's weights
    scale_rate    of the logarithms of the scales of weights; 0 leaves scales alone
    value_rate    of the logarithms of the scales of values; 0 leaves them alone
    drop          share of the numbers of quantized values that stay float in a step (QDrop)
    strength      how much all weights together must decide for a code, in units of the error that learning starts from
    warm_up       share of the steps before that counts
    straight      steps run with the codes as decided, gradients pass straight through: there is nothing to ask for then, so that
                  `strength` and `warm_up` do not matter; a little better than AdaRound's soft steps when there are only hundreds of them
    start         from the float weight's place between its two codes (0) to the warm start's code (1)
    seed          of the samples that are drawn, and of what is dropped

    Raises: ConfigError for numbers outside their ranges.
    """

    iterations: int = 100
    elements: int = 4_000_000
    samples: int = 1024
    memory_bytes: int = 2**30
    rate: float = 0.1
    bias_rate: float = 1e-3
    scale_rate: float = 1e-3
    value_rate: float = 0.0
    drop: float = 0.0
    strength: float = 10.0
    warm_up: float = 0.2
    straight: bool = True
    start: float = 0.25
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("iterations", "elements", "samples", "memory_bytes"):
            if getattr(self, name) < 1:
                raise ConfigError(f"Learning.{name}", getattr(self, name), "at least 1")
        for name in ("rate", "bias_rate", "scale_rate", "value_rate", "strength"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ConfigError(f"Learning.{name}", getattr(self, name), "at least 0, and finite")
        for name in ("drop", "warm_up", "start"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"Learning.{name}", getattr(self, name), "in [0, 1]")


@dataclass(frozen=True, eq=False)
class Coded:
    """A weight's quantizer and codes; `keep` is its mask, None where it has none."""

    quantizer: Quantizer
    codes: Tensor
    keep: Tensor | None = None

    def value(self) -> Tensor:
        """The numbers that the codes stand for."""
        scale, zero = self.quantizer.tensors(self.codes)
        return (self.codes - zero) * scale


@dataclass(frozen=True, eq=False)
class Solution:
    """What is decided for a part: codes by weight, what is added to biases by layer node, the quantizers of values."""

    weights: Mapping[str, Coded]
    shifts: Mapping[str, Tensor]
    values: Mapping[str, Quantizer]

    def tensors(self, part: Part) -> dict[str, Tensor]:
        """Weights and biases of the part as decided."""
        given = {layer.weight: self.weights[layer.weight].value() for layer in part.layers if layer.weight in self.weights}
        for layer in part.layers:
            if layer.node in self.shifts:
                given[bias_of(layer.node)] = part.state[bias_of(layer.node)] + self.shifts[layer.node]
        return given

    def watch(self, part: Part) -> dict[str, Observe]:
        """Rounds values of the part to their codes."""
        return {node.name: _round(self.values[node.name]) for node in part.graph.nodes if node.name in self.values}


def _round(quantizer: Quantizer) -> Observe:
    return lambda _, value: fake_quantize(value, quantizer)


@dataclass(frozen=True, eq=False)
class Samples:
    """What a part reads and should give, row by row.

    exact   inputs of the part in the float network, by name
    coded   in the quantized one
    target  outputs in the float network
    size    samples of one step; step i of n reads what `draw(i)` picks
    unit    samples that must stay together
    """

    exact: Mapping[str, Tensor]
    coded: Mapping[str, Tensor]
    target: Mapping[str, Tensor]
    size: int
    unit: int = 1

    @property
    def count(self) -> int:
        """Samples in all."""
        return next(iter(self.coded.values())).shape[0]

    def batches(self) -> Iterator[Tensor]:
        """Places of all samples, `size` at a time."""
        yield from torch.split(torch.arange(self.count), max(self.unit, self.size // self.unit * self.unit))

    def draw(self, random: torch.Generator) -> Tensor:
        """Places of the samples of one step."""
        units = torch.randint(self.count // self.unit, (max(1, self.size // self.unit),), generator=random)
        return (units[:, None] * self.unit + torch.arange(self.unit)).flatten()

    def error(self, part: Part, solution: Solution) -> float:
        """Sum of squared differences between what the part gives with a solution and what it should give."""
        given, watch, total = solution.tensors(part), solution.watch(part), 0.0
        with torch.no_grad():
            for places in self.batches():
                found = part.run({name: pick(self.coded[name], places) for name in part.graph.inputs}, given, watch)
                total += sum(float((value - pick(self.target[name], places)).square().sum()) for name, value in found.items())
        return total


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is to be learned: codes of weights, biases of layers by node, and scales of values, of which some share one."""

    weights: tuple[str, ...]
    biases: tuple[str, ...] = ()
    scales: tuple[tuple[str, ...], ...] = ()


class Coins:
    """Which numbers are dropped: masks cut at random places from one long row of coins, since new coins for all cost more than a layer."""

    LENGTH = 2**21 + 1  # odd, so that repeats meet other channels

    def __init__(self, share: float, seed: int, device: torch.device) -> None:
        self._share = share
        self._random = torch.Generator().manual_seed(seed)
        self._row = (torch.rand(self.LENGTH, generator=self._random) < share).to(device)

    def mix(self, exact: Tensor, rounded: Tensor) -> Tensor:
        """`rounded`, with a share of its numbers from `exact`. Shapes: all alike. Source: Wei et al. 2022 (QDrop), arXiv:2203.05740."""
        if not self._share or exact is rounded:
            return rounded
        start, shape = int(torch.randint(self.LENGTH, (), generator=self._random)), to_shape(exact)
        row = self._row.repeat(-(-(start + exact.numel()) // self.LENGTH))
        mask = row[start : start + exact.numel()].view(shape)
        return torch.where(mask.movedim(-1, 1) if exact.dim() == 4 else mask, exact, rounded)


def to_shape(value: Tensor) -> torch.Size:
    """The shape in which a value is kept: channels of images last."""
    return value.movedim(1, -1).shape if value.dim() == 4 else value.shape


@dataclass(eq=False)
class _Student:
    """What is learned of a part, as tensors with gradients."""

    part: Part
    start: Solution
    learning: Learning
    wanted: Wanted
    coins: Coins
    lower: dict[str, Tensor] = field(default_factory=dict)
    logits: dict[str, Tensor] = field(default_factory=dict)
    stretch: dict[str, Tensor] = field(default_factory=dict)
    shifts: dict[str, Tensor] = field(default_factory=dict)
    steps: dict[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in self.wanted.weights:
            coded, weight = self.start.weights[name], self.part.state[name]
            scale, zero = coded.quantizer.tensors(weight)
            position = weight / scale + zero
            lower = code_window(position, coded.codes, coded.quantizer.integers)
            wanted = (1 - self.learning.start) * (position - lower).clamp(0, 1) + self.learning.start * (coded.codes - lower)
            self.lower[name] = lower
            self.logits[name] = logits_of(wanted.clamp(0.01, 0.99)).requires_grad_()
            self.stretch[name] = torch.zeros_like(scale).requires_grad_()
        for node in self.wanted.biases:
            self.shifts[node] = torch.zeros_like(self.start.shifts[node]).requires_grad_()
        if self.learning.value_rate:
            for names in self.wanted.scales:
                self.steps.update(dict.fromkeys(names, torch.zeros((), device=self.part.device).requires_grad_()))

    def groups(self) -> list[dict[str, object]]:
        """What Adam is given."""
        learning = self.learning
        wanted = (
            (list(self.logits.values()), learning.rate),
            (list(self.shifts.values()), learning.bias_rate),
            (list(self.stretch.values()), learning.scale_rate),
            (list({id(step): step for step in self.steps.values()}.values()), learning.value_rate),
        )
        return [{"params": params, "lr": rate} for params, rate in wanted if params and rate]

    def tensors(self) -> dict[str, Tensor]:
        """Weights and biases on the way."""
        given = self.start.tensors(self.part)
        for name in self.wanted.weights:
            coded = self.start.weights[name]
            scale, zero = coded.quantizer.tensors(self.lower[name])
            above = share(self.logits[name])
            if self.learning.straight:
                above = above + ((above >= 0.5).to(above.dtype) - above).detach()
            weight = (self.lower[name] - zero + above) * (scale * self.stretch[name].exp())
            given[name] = weight if coded.keep is None else weight * coded.keep
        for node, shift in self.shifts.items():
            given[bias_of(node)] = given[bias_of(node)] + shift * self._unit(node)
        return given

    def _unit(self, node: str) -> Tensor:
        weight = next(layer.weight for layer in self.part.layers if layer.node == node)
        norms: Tensor = torch.linalg.vector_norm(self.part.state[weight].flatten(1), dim=1)
        return norms

    def watch(self) -> dict[str, Observe]:
        """Rounds values, some of their numbers not."""
        return {node.name: self._rounding(node.name) for node in self.part.graph.nodes if node.name in self.start.values}

    def _rounding(self, name: str) -> Observe:
        quantizer = self.start.values[name]
        (scale,), (zero,), fmt = quantizer.scale, quantizer.zero_point, quantizer.integers

        def run(_: str, value: Tensor) -> Tensor:
            if name in self.steps:
                rounded = learned_quantize(value, scale * self.steps[name].exp(), value.new_tensor(zero), fmt)
            else:
                rounded = torch.fake_quantize_per_tensor_affine(value, scale, zero, fmt.lo, fmt.hi)
            return self.coins.mix(value, rounded)

        return run

    def solution(self) -> Solution:
        """What has been learned, decided."""
        weights, shifts, values = dict(self.start.weights), dict(self.start.shifts), dict(self.start.values)
        for name in self.wanted.weights:
            coded, logits = weights[name], self.logits[name].detach()
            codes = self.lower[name] + (share(logits) >= 0.5)
            scale = coded.quantizer.tensors(codes)[0] * self.stretch[name].detach().exp()
            quantizer = replace(coded.quantizer, scale=tuple(scale.flatten().tolist())) if self.learning.scale_rate else coded.quantizer
            weights[name] = Coded(quantizer, codes if coded.keep is None else codes.where(coded.keep, coded.codes), coded.keep)
        for node, shift in self.shifts.items():
            shifts[node] = shifts[node] + shift.detach() * self._unit(node)
        for name, step in self.steps.items():
            values[name] = replace(values[name], scale=(float(torch.tensor(values[name].scale[0]) * step.detach().exp().cpu()),))
        return Solution(weights, shifts, values)


def reconstruct(
    part: Part,
    samples: Samples,
    start: Solution,
    wanted: Wanted,
    learning: Learning,
    *,
    allow: Callable[[Solution], Solution] = lambda solution: solution,
    on_step: Callable[[int], None] = lambda step: None,
) -> Solution:
    """Learn roundings, starting from a solution that decides everything in the part; never worse than it on these samples.

    allow    makes a solution one that the target can run
    on_step  hears the number of each step

    Source: Nagel et al. 2020 (AdaRound), arXiv:2004.10568; differs: scales and biases may learn along.
    """
    error = samples.error(part, start)
    if error == 0:
        return start
    student = _Student(part, start, learning, wanted, Coins(learning.drop, learning.seed, part.device))
    _descend(student, samples, error / samples.count, on_step)
    found = allow(student.solution())
    return found if samples.error(part, found) < error else start


def _descend(student: _Student, samples: Samples, unit: float, on_step: Callable[[int], None]) -> None:
    learning, inputs = student.learning, student.part.graph.inputs
    optimizer = torch.optim.Adam(student.groups())
    first = [group["lr"] for group in optimizer.param_groups]
    draws = torch.Generator().manual_seed(learning.seed)
    weights = sum(logits.numel() for logits in student.logits.values())
    watch = student.watch()
    for step in range(learning.iterations):
        on_step(step)
        done = step / learning.iterations
        for group, rate in zip(optimizer.param_groups, first, strict=True):
            group["lr"] = rate * (0.505 + 0.495 * math.cos(math.pi * done))
        places = samples.draw(draws)
        read = {name: pick(samples.coded[name], places) for name in inputs}
        if learning.drop:
            mixed = (name for name in inputs if samples.exact[name] is not samples.coded[name])
            read.update({name: student.coins.mix(pick(samples.exact[name], places), read[name]) for name in mixed})
        found = student.part.run(read, student.tensors(), watch)
        errors = [(value - pick(samples.target[name], places)).square().sum() for name, value in found.items()]
        optimizer.zero_grad()
        (torch.stack(errors).sum() / (len(places) * unit)).backward()  # type: ignore[no-untyped-call]
        if done >= learning.warm_up and not learning.straight:
            beta = beta_at((done - learning.warm_up) / (1 - learning.warm_up))
            for logits in student.logits.values():
                assert logits.grad is not None
                logits.grad.add_(indecision_slope(logits.detach(), beta), alpha=learning.strength / weights)
        optimizer.step()
