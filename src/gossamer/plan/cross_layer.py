"""Cross-layer equalization of a whole graph: weights that make channels and weights that read them get equal ranges.

Source: Nagel et al. 2019, arXiv:1906.04721, section 4.1; for pairs of layers there, here for channels that any number of layers make
and read.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gossamer.coupling.scaling import Scaling
from gossamer.numerics.equalize import cross_layer_factors
from gossamer.plan.equalization_sites import Site
from gossamer.program.ops import op_of
from gossamer.program.ops.kinds import Convolution, Linear
from gossamer.program.program import Program

_ROUNDS = 100  # over all sites, at most
_STILL = 1e-4  # of the logarithm of a factor: less is no change


@dataclass(eq=False)
class _Weight:
    """The largest |w| of each pair of channels, as scaled so far, with the classes of both. Shapes: all the same."""

    sizes: Tensor
    made: Tensor
    read: Tensor


def balanced_factors(program: Program, scaling: Scaling, sites: Sequence[Site]) -> Iterator[tuple[Site, Tensor]]:
    """Factors (C,) of the sites whose channels layers make and read, iterated until they change no more."""
    graph = program.graph
    weights = [_weight(program, scaling, name) for name in scaling.parts if len(scaling.parts[name]) == 2]
    known = [weight for weight in weights if weight is not None]
    chosen = [site for site in sites if all(isinstance(op_of(graph.by_name[name]).kind, (Convolution, Linear)) for name in site.values)]
    ours = {id(site): _touching(site, known) for site in chosen}
    total = {id(site): torch.ones(len(site.classes), dtype=torch.float64) for site in chosen}
    factor = torch.ones(scaling.classes, dtype=torch.float64)
    for _ in range(_ROUNDS):
        largest = 0.0
        for site in chosen:
            makers, readers = ours[id(site)]
            step = cross_layer_factors(_ranges(site, makers, "made"), _ranges(site, readers, "read"))
            largest = max(largest, float(step.log().abs().max()))
            total[id(site)] *= step
            factor[torch.from_numpy(site.classes)] = step
            for weight in makers:
                weight.sizes = weight.sizes * factor[weight.made]
            for weight in readers:
                weight.sizes = weight.sizes / factor[weight.read]
            factor[torch.from_numpy(site.classes)] = 1.0
        if largest < _STILL:
            break
    for site in chosen:
        yield site, total[id(site)]


def _weight(program: Program, scaling: Scaling, name: str) -> _Weight | None:
    """None for what is no weight of a layer, such as that of a norm behind which another follows."""
    made, read = scaling.parts[name]
    sizes = program.state[name].detach().abs().to("cpu", torch.float64)
    if sizes.dim() < 2:
        return None
    sizes = sizes.flatten(2).amax(2) if sizes.dim() > 2 else sizes
    matrices = (part.labels.reshape(part.labels.shape[:2]).expand(sizes.shape) for part in (made, read))
    return _Weight(sizes, *matrices)


def _touching(site: Site, weights: Sequence[_Weight]) -> tuple[list[_Weight], list[_Weight]]:
    classes = torch.from_numpy(site.classes)
    makers = [weight for weight in weights if bool(torch.isin(weight.made, classes).any())]
    return makers, [weight for weight in weights if bool(torch.isin(weight.read, classes).any())]


def _ranges(site: Site, weights: Sequence[_Weight], side: str) -> Tensor:
    """The largest |w| of each class on one side. Shape (C,)."""
    classes = torch.from_numpy(site.classes)
    best = torch.zeros(len(classes) + 1, dtype=torch.float64)
    for weight in weights:
        labels = weight.made if side == "made" else weight.read
        places = torch.searchsorted(classes, labels.contiguous()).clamp_max(len(classes) - 1)
        places = torch.where(classes[places] == labels, places, len(classes))
        best.scatter_reduce_(0, places.reshape(-1), weight.sizes.reshape(-1), "amax")
    return best[:-1]
