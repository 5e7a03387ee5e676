"""Methods that learn how weights are rounded: layer by layer, or part by part of the network.

The network is walked through once, part by part (plan.segments). What a part reads comes from the part before it, quantized as
decided; what it should give comes from the float network. Parts that hold no weight with few bits are only walked through.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from gossamer.numerics.affine import Quantizer, clips_like, fake_quantize
from gossamer.numerics.ranges import fit_clamp
from gossamer.plan.edits import Edit, ShiftBias
from gossamer.plan.parts import Part, make_part, pick, to_rows
from gossamer.plan.reconstruction import Coded, Learning, Samples, Solution, Wanted, reconstruct
from gossamer.plan.rounding import Rounded, Rounding, RoundingJob, least_change_codes, roundings, weight_edits
from gossamer.plan.segments import cut, join_front
from gossamer.plan.site import Layer
from gossamer.program.clamps import clip_limits
from gossamer.program.execute import Observe
from gossamer.program.shapes import TensorMeta, infer_shapes
from gossamer.progress import OnProgress, Progress

TOLD = 25  # steps between two records of progress
MANY_BITS = 8  # of a weight: from here on second-order rounding is as good, so that only narrower ones are learned where there are any


def learned(learning: Learning, *, by_layer: bool = False) -> Rounding:
    """A method that learns with these settings: to be registered in plan.rounding.roundings, or run on a job.

    by_layer  each layer for itself, up to the activation behind it; else all layers of a part together
    """
    return Rounding(lambda job, on_progress: _Walk(job, learning, by_layer, on_progress).run(), second_moments=True)


@dataclass(frozen=True, slots=True)
class _Unit:
    """What is learned at once: the value that is compared (None: all outputs of the part), and the layers."""

    output: str | None
    layers: tuple[Layer, ...]


class _Walk:
    """The network's values between two parts over all samples, and what has been decided."""

    def __init__(self, job: RoundingJob, learning: Learning, by_layer: bool, on_progress: OnProgress) -> None:
        self._job, self._learning, self._by_layer, self._tell = job, learning, by_layer, on_progress
        by_node = {layer.node: layer for layer in job.placement.layers}
        self._learnable = {node for node in by_node if job.formats[node].bits < MANY_BITS} or by_node.keys()
        graphs = join_front(cut(job.program, by_node.keys()), self._learnable)
        self._metas = infer_shapes(job.program, 1)
        self._parts = [make_part(job.program, graph, by_node) for graph in graphs]
        self._unit = next((spec.shape[0] for spec in job.program.inputs if spec.shape and spec.shape[0] is not None), 1)
        self._weights: dict[str, Coded] = {}
        self._shifts: dict[str, Tensor] = {}
        self._values: dict[str, Quantizer] = dict(job.values)
        self._exact = self._inputs()
        self._coded = {name: self._rounded(name, rows) for name, rows in self._exact.items()}

    def run(self) -> Rounded:
        """Learn all parts."""
        units = [self._units(part) for part in self._parts]
        total, done = sum(map(len, units)) * self._learning.iterations, 0
        for place, part in enumerate(self._parts):
            size = max(1, self._learning.elements // max(1, part.elements(self._metas))) * self._unit
            samples = Samples(self._exact, self._coded, {}, size, self._unit)
            samples = replace(samples, target=_outputs(part, samples, self._exact))
            learned_here = {layer.node for unit in units[place] for layer in unit.layers}
            for layer in part.layers:
                if layer.node not in learned_here:
                    self._begin(layer)
            for unit in units[place]:
                self._learn(part, unit, samples, Progress("learn rounding", done, total, unit.layers[0].weight))
                done += self._learning.iterations
            self._pass_on(place, samples)
        self._tell(Progress("learn rounding", total, total))
        return Rounded(self._values, tuple(self._edits()))

    def _inputs(self) -> dict[str, Tensor]:
        """As many samples as fit, for each input of the network."""
        names = [spec.name for spec in self._job.program.inputs]
        wanted = self._count()
        found: list[list[Tensor]] = [[] for _ in names]
        for inputs, _ in self._job.batches:
            for rows, tensor in zip(found, inputs, strict=True):
                rows.append(to_rows(tensor.to(self._job.program.device)))
            if sum(rows.shape[0] for rows in found[0]) >= wanted:
                break
        whole = {name: torch.cat(rows)[:wanted] for name, rows in zip(names, found, strict=True)}
        count = min(rows.shape[0] for rows in whole.values())
        return {name: rows[: count // self._unit * self._unit] for name, rows in whole.items()}

    def _count(self) -> int:
        """Samples that memory allows: what a part reads and makes is there twice, in float and quantized."""
        names = [{*part.graph.inputs, *part.graph.outputs, *self._job.program.graph.inputs} for part in self._parts]
        sizes = [2 * sum(meta.size_bytes for name in held if isinstance(meta := self._metas[name], TensorMeta)) for held in names]
        units = min(self._learning.samples // self._unit, self._learning.memory_bytes // max(sizes))
        return max(1, units) * self._unit

    def _rounded(self, name: str, rows: Tensor) -> Tensor:
        return fake_quantize(rows, self._values[name]) if name in self._values else rows

    def _units(self, part: Part) -> list[_Unit]:
        """What is learned together: all layers of a part with few bits somewhere, or each such layer with the activation behind it."""
        few = [layer for layer in part.layers if layer.node in self._learnable]
        if not self._by_layer:
            return [_Unit(None, part.layers)] if few else []
        units = []
        for layer in few:
            user = part.graph.sole_user(layer.node)
            units.append(_Unit(layer.node if user is None or clip_limits(user) is None else user.name, (layer,)))
        return units

    def _learn(self, part: Part, unit: _Unit, samples: Samples, progress: Progress) -> None:
        weights = tuple(dict.fromkeys(layer.weight for layer in unit.layers if layer.weight not in self._weights))
        for layer in unit.layers:
            self._begin(layer)
        if unit.output is not None:
            part = part.until(unit.output)
            samples = replace(samples, target=_outputs(part, samples, self._exact))
        nodes = tuple(layer.node for layer in unit.layers if layer.node in self._shifts)
        wanted = Wanted(weights, nodes, tuple(self._scales(part)))

        def tell(step: int) -> None:
            if step % TOLD == 0:
                self._tell(replace(progress, done=progress.done + step))

        start = Solution(self._weights, self._shifts, self._values)
        found = reconstruct(part, samples, start, wanted, self._learning, allow=self._allowed, on_step=tell)
        self._weights, self._shifts, self._values = dict(found.weights), dict(found.shifts), dict(found.values)

    def _begin(self, layer: Layer) -> None:
        """Start from the second-order solution. A weight that layers share belongs to the first of them."""
        job = self._job
        if layer.weight not in self._weights:
            quantizer = job.quantizer(layer)
            self._weights[layer.weight] = Coded(quantizer, least_change_codes(job, layer, quantizer), job.program.masks.get(layer.weight))
        if job.scheme.bias_correction:
            coded = self._weights[layer.weight]
            shift = job.shift(layer, coded.quantizer, coded.codes)
            self._shifts[layer.node] = torch.tensor(shift, dtype=coded.codes.dtype, device=coded.codes.device)

    def _scales(self, part: Part) -> Iterator[tuple[str, ...]]:
        """Values that share a scale which can be learned here: made in this part alone, with codes that nothing prescribes."""
        made = part.graph.by_name
        for group in self._job.placement.groups:
            if all(name in made for name in group.roots) and not self._job.placement.gates.intersection(group.values):
                yield group.values

    def _allowed(self, solution: Solution) -> Solution:
        """Where a clamp is replaced by a range of codes, that range must clip alike."""
        values = dict(solution.values)
        for group in self._job.placement.groups:
            root, old, new = group.roots[0], self._values[group.roots[0]], values[group.roots[0]]
            node = self._job.program.graph.by_name.get(root)
            limits = clip_limits(node) if new != old and node is not None and node.uses else None
            if limits is not None and clips_like(old, *limits):
                fitted = fit_clamp(new, *limits)
                values.update(dict.fromkeys(group.values, fitted if clips_like(fitted, *limits) else old))
        return replace(solution, values=values)

    def _pass_on(self, place: int, samples: Samples) -> None:
        """Go behind a part: forget what nothing reads any more."""
        part = self._parts[place]
        solution = Solution(self._weights, self._shifts, self._values)
        coded = _outputs(part, samples, self._coded, solution.tensors(part), solution.watch(part))
        later = {name for other in self._parts[place + 1 :] for name in other.graph.inputs}
        self._exact = {name: rows for name, rows in {**self._exact, **samples.target}.items() if name in later}
        self._coded = {name: rows for name, rows in {**self._coded, **coded}.items() if name in later}

    def _edits(self) -> Iterator[Edit]:
        for name, coded in self._weights.items():
            yield from weight_edits(name, self._job.program.state[name].detach(), coded.quantizer, coded.codes)
        for node, shift in self._shifts.items():
            yield ShiftBias(node, tuple(shift.tolist()))


def _outputs(
    part: Part,
    samples: Samples,
    inputs: Mapping[str, Tensor],
    given: Mapping[str, Tensor] | None = None,
    observe: Mapping[str, Observe] | None = None,
) -> dict[str, Tensor]:
    """What the part gives for all samples, kept as rows."""
    found: dict[str, list[Tensor]] = {name: [] for name in part.graph.outputs}
    with torch.no_grad():
        for places in samples.batches():
            for name, value in part.run({name: pick(inputs[name], places) for name in part.graph.inputs}, given, observe).items():
                found[name].append(to_rows(value))
    return {name: torch.cat(rows) for name, rows in found.items()}


roundings.add("adaround", source="Nagel et al. 2020, arXiv:2004.10568")(learned(Learning(straight=False), by_layer=True))
roundings.add("brecq", source="Li et al. 2021, arXiv:2102.05426")(learned(Learning()))
roundings.add("qdrop", source="Wei et al. 2022, arXiv:2203.05740")(learned(Learning(drop=0.5, value_rate=1e-3)))
