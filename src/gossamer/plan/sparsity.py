"""Choosing which single weights stay: from a sparsity and a method to masks. Changes nothing.

A plan holds masks alone, about a bit a weight. One-shot solvers (OBC, SparseGPT) also say what the other weights become; that is
a function of the mask and of the layers' inputs, so `repair` computes it, on the inputs that the sparse network has by then.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gossamer.batches import Batches, as_batches
from gossamer.errors import ConfigError, DataError, PlanError, nearest
from gossamer.numerics.magnitude import for_squares
from gossamer.numerics.obs import damped, obc_keep, obc_keep_n_of_m, obs_saliency, sparsegpt
from gossamer.numerics.packing import pack_mask
from gossamer.numerics.saliency import Criterion, criteria
from gossamer.numerics.sparsity import (
    Block,
    NOfM,
    Pattern,
    Unstructured,
    deviation,
    equal_damage_zeros,
    erk_zeros,
    even_zeros,
    keep_above,
    keep_largest,
    keep_largest_blocks,
    keep_n_of_m,
    parse_pattern,
)
from gossamer.plan.edits import SparsifyWeight
from gossamer.plan.evidence import gather
from gossamer.plan.plan import Frozen, Plan
from gossamer.plan.sparse_layers import RATIOS, Site, find_sites, input_moments, measure_damage, pick_sites
from gossamer.program.program import Program, check_program
from gossamer.progress import OnProgress, Progress, silent

SOLVERS = ("obc", "sparsegpt")
THRESHOLDS = ("threshold", "dynamic_threshold")
CRITERIA = ("lamp", "taylor", "fisher", "hessian", "stability", "random")  # of numerics.saliency that make sense for one weight
METHODS = ("magnitude", *THRESHOLDS, *CRITERIA, *SOLVERS)
ALLOCATIONS = ("layerwise", "global", "erk", "sensitivity")
OBC_COST = 2e12  # multiply-adds of one layer, about ten minutes of one core


def plan_sparsity(
    program: Program,
    sparsity: float | None = None,
    *,
    threshold: float | None = None,
    pattern: str = "unstructured",
    method: str = "magnitude",
    allocation: str = "layerwise",
    batches: Any = None,
    skip: Collection[str] = (),
    only: Collection[str] = (),
    on_progress: OnProgress = silent,
) -> Plan:
    """Decide which weights of convolutions, linear and recurrent layers become zero.

    sparsity    share of zeros, in [0, 1), of all weights that are planned for. With a pattern N:M it follows from the pattern
    threshold   of the methods "threshold" (a size: smaller weights go) and "dynamic_threshold" (in standard deviations of each
                layer's weights; with a sparsity instead, the one number of deviations that reaches it)
    pattern     "unstructured"; "N:M", such as "2:4": N of each M neighbours along the input axis stay; "OxI", such as "4x1":
                blocks of O outputs times I inputs go together
    method      "magnitude"; "lamp", "taylor", "fisher", "hessian", "stability" or "random" as in numerics.saliency, for single
                weights; "obc" (exact, for layers up to a few thousand inputs) or "sparsegpt" (fast), made for `repair` after
                `apply`. Those with gradients need labels (loss is cross-entropy), stability, obc and sparsegpt only inputs
    allocation  zeros of each layer: "layerwise" the same share of each; "global" one ranking; "erk" layers in proportion to
                the lengths of their axes; "sensitivity" equal measured damage to the outputs (needs `batches`)
    skip, only  weights, layers or modules to leave out, or to plan for alone

    Weights that are masked already stay masked and count, so rising sparsities nest; a layer never loses zeros.
    Raises: ConfigError for an argument outside its rule; PlanError for a layer that does not exist (suggests the nearest), that
    would keep nothing, or is too large for the method, and for a quantized program; DataError for missing or bad data.
    """
    check_program(program)
    shape = parse_pattern(pattern)
    _check_arguments(shape, sparsity, threshold, method, allocation)
    if program.quantizers:
        raise PlanError(f"the network is quantized already (for {program.target!r}); make the float network sparse.")
    sites, frozen = find_sites(program)
    chosen, left = pick_sites(sites, skip, only)
    chosen, unfit = _fitting(chosen, shape)
    if not chosen:
        raise PlanError(f"no layer of this network can hold zeros of the pattern {pattern!r}; see skip=, only= and the pattern.")
    _check_finite(program, chosen)
    chooser = _Chooser(program, chosen, shape, method, allocation, _data(method, allocation, batches), on_progress)
    keeps = chooser.choose(sparsity, threshold)
    if not keeps:
        raise PlanError(f"{method!r} knows the inputs of none of these layers ({chooser.frozen[0].reason}); use the method 'magnitude'.")
    edits = []
    for site in (site for site in chosen if site.name in keeps):  # a solver leaves out layers, and says so
        keep = keeps[site.name]
        if not bool(keep.any()):
            raise PlanError(
                f"{site.name!r} would keep no weight ({method}, {allocation}); ask for less, another allocation (such as 'erk'), or skip it."
            )
        if not bool(keep.all()):
            edits.append(SparsifyWeight(site.name, pack_mask(keep)))
    return Plan(tuple(edits), program.digest, frozen=(*frozen, *left, *unfit, *chooser.frozen))


def _check_arguments(pattern: Pattern, sparsity: float | None, threshold: float | None, method: str, allocation: str) -> None:
    if method not in METHODS:
        raise ConfigError("method", method, f"one of {', '.join(METHODS)} ({nearest(str(method), METHODS)})")
    if allocation not in ALLOCATIONS:
        raise ConfigError("allocation", allocation, f"one of {', '.join(ALLOCATIONS)}")
    for name, value in (("sparsity", sparsity), ("threshold", threshold)):
        if value is not None and (isinstance(value, bool) or not isinstance(value, (int, float))):
            raise ConfigError(name, value, "a number")
    if sparsity is not None and not 0 <= sparsity < 1:
        raise ConfigError("sparsity", sparsity, "a share of zeros in [0, 1)")
    if threshold is not None and not 0 <= threshold < float("inf"):
        raise ConfigError("threshold", threshold, "0 or a positive number")
    if threshold is not None and method not in THRESHOLDS:
        raise ConfigError("threshold", threshold, f"left out with the method {method!r}; it belongs to 'threshold' and 'dynamic_threshold'")
    if method in THRESHOLDS and allocation != "layerwise":
        raise ConfigError("allocation", allocation, f"left out: {method!r} sets the zeros of each layer itself")
    if method in THRESHOLDS and not isinstance(pattern, Unstructured):
        raise ConfigError("pattern", pattern, f"'unstructured' with the method {method!r}")
    if method in SOLVERS and isinstance(pattern, Block):
        raise ConfigError("pattern", pattern, f"'unstructured' or 'N:M' with the method {method!r}")
    if isinstance(pattern, NOfM):
        share = 1 - pattern.n / pattern.m
        if allocation != "layerwise" or (sparsity is not None and abs(sparsity - share) > 1e-9):
            raise ConfigError(
                "sparsity", (sparsity, allocation), f"left out: the pattern {pattern.n}:{pattern.m} makes {share:g} of each layer zero"
            )
    elif (sparsity is None) == (threshold is None) or (method == "threshold" and threshold is None):
        raise ConfigError(
            "plan_sparsity", (sparsity, threshold), "given a sparsity, or with 'threshold' and 'dynamic_threshold' a threshold"
        )


def _data(method: str, allocation: str, batches: Any) -> Batches | None:
    needs = _criterion(method).needs if method in CRITERIA else ""
    if batches is not None:
        return as_batches(batches, what="calibration" if not needs else "scoring")
    if needs and needs != "response":
        raise DataError(f"the method {method!r} needs gradients; pass batches= with labels.")
    if needs or method in SOLVERS or allocation == "sensitivity":
        what = method if needs or method in SOLVERS else allocation
        raise DataError(f"{what!r} needs runs of the network; pass batches= (labels are not needed).")
    return None


def _criterion(name: str) -> Criterion:
    found = criteria[name]
    assert isinstance(found, Criterion), "CRITERIA names measures"
    return found


def _fitting(sites: Sequence[Site], pattern: Pattern) -> tuple[list[Site], list[Frozen]]:
    """Sites whose input axis a pattern N:M divides; the others stay dense, and the plan says so."""
    if not isinstance(pattern, NOfM):
        return list(sites), []
    whole = [site for site in sites if site.shape[1] % pattern.m == 0 and not site.transposed]
    rest = [site for site in sites if site not in whole]
    return whole, [Frozen(site.name, f"its {site.shape[1]} inputs are no multiple of {pattern.m}, or it is transposed") for site in rest]


def _check_finite(program: Program, sites: Sequence[Site]) -> None:
    state = program.state
    for site in sites:
        if not bool(torch.isfinite(state[site.name]).all()):
            raise PlanError(f"the weight {site.name!r} holds NaN or infinite numbers; train it again.")


@dataclass
class _Chooser:
    """Finds the masks of all sites."""

    program: Program
    sites: Sequence[Site]
    pattern: Pattern
    method: str
    allocation: str
    batches: Batches | None
    on_progress: OnProgress

    def __post_init__(self) -> None:
        state = self.program.state
        self.frozen: list[Frozen] = []
        self.weights = {site.name: state[site.name].detach() for site in self.sites}
        masks = self.program.masks
        self.old = {name: masks.get(name, torch.ones_like(weight, dtype=torch.bool)) for name, weight in self.weights.items()}

    def choose(self, sparsity: float | None, threshold: float | None) -> dict[str, Tensor]:
        """Name of each weight -> its mask, which holds the zeros of the mask before."""
        if threshold is not None:
            dynamic = self.method == "dynamic_threshold"
            units = {name: deviation(weight) if dynamic else 1.0 for name, weight in self.weights.items()}
            keeps = {name: keep_above(weight, threshold * units[name]) for name, weight in self.weights.items()}
        elif self.method in SOLVERS:
            keeps = self._solve(sparsity)
        else:
            keeps = self._rank(self._scores(), sparsity)
        return {name: keep & self.old[name] for name, keep in keeps.items()}

    def _scores(self) -> dict[str, Tensor]:
        """Importance of each weight, at least 0; -1 where it is masked, so that it goes first."""
        if self.method == "magnitude":
            square = isinstance(self.pattern, Block)  # blocks go by their norm
            found = {name: for_squares(weight).square() if square else weight.abs() for name, weight in self.weights.items()}
        elif self.method == "dynamic_threshold":
            found = {name: weight.abs() / max(deviation(weight), 1e-30) for name, weight in self.weights.items()}
        else:
            criterion = _criterion(self.method)
            assert isinstance(criterion, Criterion), "methods of weights are measures"
            evidence = gather(criterion.needs, self.program, self._batches, None, 0) if criterion.needs else {}
            random = torch.Generator().manual_seed(0)
            found = {}
            for name, weight in self.weights.items():
                given = evidence[name].reshape(-1, 1) if criterion.needs else None
                score = criterion.measure(weight.reshape(-1, 1), given, random).reshape(weight.shape)
                found[name] = score.abs()
        for name, score in found.items():
            if not bool(torch.isfinite(score).all()):
                raise DataError(f"the method {self.method!r} gives NaN for {name!r}; check the data for NaN.")
        return {name: torch.where(self.old[name], score.to(torch.float64), -1.0) for name, score in found.items()}

    def _rank(self, scores: Mapping[str, Tensor], sparsity: float | None) -> dict[str, Tensor]:
        if isinstance(self.pattern, NOfM):
            return {name: keep_n_of_m(score, self.pattern.n, self.pattern.m) for name, score in scores.items()}
        together = self.allocation == "global" or self.method == "dynamic_threshold"
        if together:
            return dict(zip(scores, self._keep(list(scores.values()), self._total(sparsity)), strict=True))
        zeros = self._zeros(sparsity)
        return {name: self._keep([score], zeros[name])[0] for name, score in scores.items()}

    def _keep(self, scores: list[Tensor], zeros: int) -> list[Tensor]:
        if isinstance(self.pattern, Block):
            return keep_largest_blocks(scores, zeros, self.pattern)
        return keep_largest(scores, zeros)

    def _total(self, sparsity: float | None) -> int:
        return round((sparsity or 0.0) * sum(site.size for site in self.sites))

    def _zeros(self, sparsity: float | None, saliency: Callable[[], Mapping[str, Tensor]] | None = None) -> dict[str, int]:
        """How many weights of each site become zero, those that are zero already included."""
        sizes, total = [site.size for site in self.sites], self._total(sparsity)
        if self.allocation == "layerwise":
            counts = even_zeros(sizes, total)
        elif self.allocation == "erk":
            counts = erk_zeros([site.shape for site in self.sites], total)
        elif self.allocation == "sensitivity":
            damages = measure_damage(self.program, self.sites, self._batches, self.on_progress)
            counts = equal_damage_zeros(sizes, RATIOS, [damages[site.name] for site in self.sites], total)
        else:
            assert saliency is not None, "a global ranking has scores"
            scores = saliency()
            counts = [int((~keep).sum()) for keep in keep_largest([scores[site.name] for site in self.sites], total)]
        masked = [int((~self.old[site.name]).sum()) for site in self.sites]
        return {site.name: max(count, least) for site, count, least in zip(self.sites, counts, masked, strict=True)}

    def _solve(self, sparsity: float | None) -> dict[str, Tensor]:
        """Masks of OBC or SparseGPT, one layer at a time."""
        moments, frozen = input_moments(self.program, self.sites, self._batches, self.on_progress)
        self.frozen += frozen
        self.sites = [site for site in self.sites if site.name in moments]
        hessians = {name: damped(second) for name, second in moments.items()}
        rows = {site.name: _rows(self.weights[site.name], hessians[site.name], self.pattern) for site in self.sites}

        def saliency() -> Mapping[str, Tensor]:
            found = {}
            for name, (weight, hessian) in rows.items():
                scores = torch.stack([obs_saliency(*group) for group in zip(weight, hessian, strict=True)])
                energy = ((weight.to(hessian) @ hessian) * weight).sum().clamp_min(torch.finfo(hessian.dtype).tiny)
                found[name] = (scores / energy).to(torch.float64)  # of the layer's output, so that layers compare
            return found

        zeros = {} if isinstance(self.pattern, NOfM) else self._zeros(sparsity, saliency)
        keeps = {}
        for done, site in enumerate(self.sites):
            self.on_progress(Progress(self.method, done, len(self.sites), site.name))
            weight, hessian = rows[site.name]
            old, _ = _rows(self.old[site.name], hessian, self.pattern)
            keep = self._solve_layer(site.name, weight, hessian, zeros.get(site.name, 0), old)
            keeps[site.name] = _unrows(keep, site.shape, self.pattern)
        self.on_progress(Progress(self.method, len(self.sites), len(self.sites)))
        return keeps

    def _solve_layer(self, name: str, weight: Tensor, hessian: Tensor, zeros: int, old: Tensor) -> Tensor:
        """The mask (G, R, K) of one layer."""
        groups, count, columns = weight.shape
        pattern = self.pattern if isinstance(self.pattern, NOfM) else None
        if self.method == "obc":
            cost = groups * count * columns**3 / 3
            if cost > OBC_COST:
                raise PlanError(f"'obc' would take about {cost:.1e} multiply-adds for {name!r}; use the method 'sparsegpt', or skip it.")
            return obc_keep_n_of_m(weight, hessian, pattern) if pattern else obc_keep(weight, hessian, zeros)
        shares = even_zeros([count * columns] * groups, zeros)
        solved = [
            sparsegpt(rows, matrix, share, pattern=pattern, old=mask)[1]
            for rows, matrix, share, mask in zip(weight, hessian, shares, old, strict=True)
        ]
        return torch.stack(solved)

    @property
    def _batches(self) -> Batches:
        assert self.batches is not None, "the arguments were checked"
        return self.batches


def _rows(weight: Tensor, hessian: Tensor, pattern: Pattern) -> tuple[Tensor, Tensor]:
    """Weight (G, R, K) and hessian (G, K, K) with columns in the order in which groups of N:M are neighbours."""
    groups, columns, _ = hessian.shape
    matrix = weight.reshape(groups, -1, columns)
    if not isinstance(pattern, NOfM):
        return matrix, hessian
    order = _channels_last_columns(weight.shape).to(weight.device)
    return matrix[..., order], hessian[:, order][:, :, order]


def _unrows(keep: Tensor, shape: tuple[int, ...], pattern: Pattern) -> Tensor:
    """The inverse for masks."""
    if isinstance(pattern, NOfM):
        keep = keep[..., _channels_last_columns(shape).to(keep.device).argsort()]
    return keep.reshape(shape)


def _channels_last_columns(shape: Sequence[int]) -> Tensor:
    """Columns of weight.flatten(1), those of one kernel position and all its inputs together."""
    return torch.arange(torch.Size(shape[1:]).numel()).reshape(shape[1], -1).t().reshape(-1)
