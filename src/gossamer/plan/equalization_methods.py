"""The methods of moving scale between channels, one function each; a site is a set of channels that are scaled together."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial

import torch
from torch import Tensor

from gossamer.errors import ConfigError
from gossamer.numerics.equalize import aware_factors, even_channels, smoothing_factors
from gossamer.plan.cross_layer import balanced_factors
from gossamer.plan.equalization import Equalization, EqualizationJob, Move, edits_of, equalizations, with_moves
from gossamer.plan.equalization_sites import Site, input_axis_weight
from gossamer.progress import Progress

ALPHAS = (0.25, 0.5, 0.75)  # of SmoothQuant
AWARE_STEPS = 20  # of AWQ's grid
WORTH = 0.9  # of the error before must a multiplication of its own leave at most

Change = tuple[Tensor, Tensor | None]  # factors and shifts of a site's classes
Run = Callable[[EqualizationJob], tuple[Move, ...]]
Candidates = Callable[[EqualizationJob, Site], Iterator[Change]]


def smoothed(job: EqualizationJob, site: Site) -> Iterator[Change]:
    """SmoothQuant's factors for each of ALPHAS, where one layer or norm makes the channels: the error of sums that several make,
    which all that follows reads, is not seen by the layers that read them."""
    if len(site.values) > 1:
        return
    seen = job.seen
    values = site.largest((reader, torch.maximum(-seen.low[reader.source], seen.high[reader.source])) for reader in site.readers)
    weights = site.largest((reader, input_axis_weight(job.program, reader)) for reader in site.readers)
    for alpha in ALPHAS:
        yield smoothing_factors(values, weights, alpha), None


def evened(job: EqualizationJob, site: Site) -> Iterator[Change]:
    """RepQ-ViT's factors and shifts, where a norm makes the channels and nothing but layers reads them."""
    if site.norm and site.movable:
        low = -site.largest(((reader, -job.seen.low[reader.source]) for reader in site.readers), least=-torch.inf)
        high = site.largest(((reader, job.seen.high[reader.source]) for reader in site.readers), least=-torch.inf)
        yield even_channels(low, high)


def aware(job: EqualizationJob, site: Site) -> Iterator[Change]:
    """AWQ's factors for each point of its grid but the first, which changes nothing."""
    sizes = site.largest((reader, job.seen.size[reader.source]) for reader in site.readers)
    for step in range(1, AWARE_STEPS):
        yield aware_factors(sizes, step / AWARE_STEPS), None


def least_error(job: EqualizationJob, candidates: Iterable[Candidates], *, insert: bool = False) -> tuple[Move, ...]:
    """For each site the candidate with which the layers that read it lose least, or none where nothing is better.

    insert  also put multiplications in front of layers whose input nothing upstream can scale, where that leaves at most WORTH
            of the error
    """
    chosen: list[tuple[Site, Tensor, Tensor | None]] = []
    sites = [site for site in (*job.sites, *(job.inputs if insert else ())) if job.coded_readers(site)]
    for position, site in enumerate(sites):
        job.on_progress(Progress("equalize", position, len(sites), site.values[0]))
        best = job.error(site, torch.ones(len(site.classes), dtype=torch.float64))
        best *= WORTH if site.inserted else 1.0
        found: Change | None = None
        for method in candidates:
            for factor, shift in method(job, site):
                error = job.error(site, factor, shift)
                if error < best:
                    best, found = error, (factor, shift)
        if found is not None:
            chosen.append((site, *found))
    return edits_of(job.scaling, chosen)


def _always(job: EqualizationJob, candidates: Candidates) -> tuple[Move, ...]:
    """The first candidate of each site, whatever it does to the layers."""
    changes = ((site, next(candidates(job, site), None)) for site in job.sites if job.coded_readers(site))
    return edits_of(job.scaling, [(site, *change) for site, change in changes if change is not None])


def cross_layer(job: EqualizationJob) -> tuple[Move, ...]:
    """Even out the ranges of weights that make channels and of those that read them, again and again until nothing changes."""
    return edits_of(job.scaling, [(site, factor, None) for site, factor in balanced_factors(job.program, job.scaling, job.sites)])


def best_of_all(job: EqualizationJob) -> tuple[Move, ...]:
    """Whatever leaves the least error in the outputs of the quantized network: nothing, one method, or the best one at each site."""
    if job.trial is None:
        raise ConfigError("equalization", "auto", "one of the methods by name here, since nothing is quantized that could be compared")
    least = job.trial(job.program)
    best: tuple[Move, ...] = ()
    both = (smoothed, evened, aware)
    runs: list[tuple[Run, float]] = [
        (cross_layer, 1.0),
        (partial(least_error, candidates=(smoothed,)), 1.0),
        (partial(least_error, candidates=(evened,)), 1.0),
        (partial(least_error, candidates=both), 1.0),
        (partial(least_error, candidates=both, insert=True), WORTH),
    ]
    for run, share in runs:
        edits = run(job)
        error = job.trial(with_moves(job.program, edits, job.scaling)) if edits else least
        if error < share * least:
            least, best = error, edits
    return best


equalizations.add("cross-layer", source="Nagel et al. 2019, arXiv:1906.04721")(Equalization(cross_layer, data=False))
equalizations.add("smoothquant", source="Xiao et al. 2022, arXiv:2211.10438; alpha chosen for each site by its layers' error")(
    Equalization(lambda job: least_error(job, (smoothed,)))
)
equalizations.add("smoothquant-insert", source="the same; with multiplications of their own where nothing upstream can take the factors")(
    Equalization(lambda job: least_error(job, (smoothed,), insert=True))
)
equalizations.add("repq", source="Li et al. 2022, arXiv:2212.08254")(Equalization(lambda job: _always(job, evened)))
equalizations.add("awq", source="Lin et al. 2023, arXiv:2306.00978")(Equalization(lambda job: least_error(job, (aware,), insert=True)))
equalizations.add("auto", source="the method above whose quantized network is nearest to the float one on calibration data")(
    Equalization(best_of_all)
)
