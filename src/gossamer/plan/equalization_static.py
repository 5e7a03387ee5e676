"""What moving scale does to a network whose weights and values get codes before it runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from torch import Tensor

from gossamer.batches import Batches
from gossamer.numerics.affine import Quantizer, fake_quantize
from gossamer.numerics.formats import IntFormat
from gossamer.numerics.ranges import choose_quantizer, choose_weight_quantizer, range_methods
from gossamer.numerics.spread import Spread
from gossamer.plan.calibrate import Calibration, calibrate
from gossamer.plan.equalization import EqualizationJob, Move, equalized, kept_scales
from gossamer.plan.equalization_sites import few_samples
from gossamer.plan.equalization_trial import Trial
from gossamer.plan.placement import Placement
from gossamer.plan.scheme import Scheme
from gossamer.program.program import Program
from gossamer.progress import OnProgress

ValuesOf = Callable[[Program, Placement, Calibration], Mapping[str, Quantizer]]
Place = Callable[[Program], Placement]


@dataclass(frozen=True, eq=False)
class StaticCoding:
    """How static quantization rounds: formats of weights by layer, the format of values, and where and how their ranges come from."""

    weights: Mapping[str, IntFormat]
    values: IntFormat
    scheme: Scheme
    place: Place
    values_of: ValuesOf
    symmetric: bool = False

    def weight(self, node: str, weight: Tensor) -> Tensor:
        """Nearest codes, one scale for each output channel."""
        return fake_quantize(weight, choose_weight_quantizer(weight, self.weights[node], self.scheme.weight_ranges))

    def columns(self, columns: Tensor) -> Tensor:
        """One quantizer for all that a layer reads."""
        spread = range_methods[self.scheme.ranges].update(Spread(), columns)
        return fake_quantize(
            columns, choose_quantizer(spread, self.values, self.scheme.ranges, symmetric=self.symmetric, what="a layer's input")
        )

    def quantized(self, program: Program, samples: Batches) -> Program:
        """The program with codes as a plan without second-order rounding would choose them."""
        placement = self.place(program)
        seen = calibrate(program, samples, placement, ranges=self.scheme.ranges, second_moments=False)
        quantizers = dict(self.values_of(program, placement, seen))
        for layer in placement.layers:
            weight = program.state[layer.weight].detach()
            quantizers[layer.weight] = choose_weight_quantizer(weight, self.weights[layer.node], self.scheme.weight_ranges)
        return program.with_graph(program.graph, quantizers=quantizers)


def equalize_static(
    program: Program, placement: Placement, batches: Batches, coding: StaticCoding, on_progress: OnProgress
) -> tuple[Program, Placement, tuple[Move, ...]]:
    """The program with scale moved as the scheme asks, what runs on codes then, and the edits that do it. What cannot give scale away is
    told in `frozen` of the placement."""
    if coding.scheme.equalization == "none":
        return program, placement, ()
    samples = few_samples(program, batches)
    job = EqualizationJob(
        program,
        coded=frozenset(layer.node for layer in placement.layers),
        samples=samples,
        coder=coding,
        trial=Trial(program, samples, coding.quantized).error,
        centred=coding.scheme.bias_correction,
        on_progress=on_progress,
    )
    moved, edits = equalized(job, coding.scheme.equalization)
    placement = coding.place(moved) if edits else placement
    return moved, replace(placement, frozen=(*placement.frozen, *kept_scales(job))), edits
