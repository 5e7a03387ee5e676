"""Which single weights, blocks of weights, or N of M stay, and how zeros are shared out among layers. Pure functions.

Masks are boolean tensors of a weight's shape: True where the weight stays. Scores are importances of single weights, 0 or
larger; where several are equal, the earlier one goes first, so that results do not depend on a sorting algorithm.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gossamer.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Unstructured:
    """Any weight can be zero."""


@dataclass(frozen=True, slots=True)
class NOfM:
    """At most `n` of `m` neighbours along the input axis (axis 1) stay, at each kernel position by itself.

    Source: Zhou et al. 2021, arXiv:2102.04010; 2:4 is what sparse tensor cores compute (Mishra et al. 2021, arXiv:2104.08378).
    """

    n: int
    m: int


@dataclass(frozen=True, slots=True)
class Block:
    """Blocks of `rows` neighbouring outputs times `columns` neighbouring inputs (of weight.flatten(1)) are zero together.

    At the end of an axis that the block does not divide, blocks are smaller.
    Source: Gray et al. 2017 (block-sparse kernels); Elsen et al. 2020, arXiv:1911.09723 (16x1 and 4x1 on CPUs).
    """

    rows: int
    columns: int


Pattern = Unstructured | NOfM | Block


def parse_pattern(text: str) -> Pattern:
    """ "unstructured", "2:4" (N of each M stay) or "4x1" (blocks of outputs x inputs). Raises ConfigError for anything else."""
    numbers = re.fullmatch(r"(\d{1,4})([:x])(\d{1,4})", text) if isinstance(text, str) else None
    if numbers is not None:
        first, second = int(numbers[1]), int(numbers[3])
        if numbers[2] == ":" and 1 <= first < second:
            return NOfM(first, second)
        if numbers[2] == "x" and min(first, second) >= 1:
            return Block(first, second) if first * second > 1 else Unstructured()
    elif text == "unstructured":
        return Unstructured()
    raise ConfigError("pattern", text, "'unstructured', 'N:M' with 1 <= N < M such as '2:4', or 'OxI' such as '4x1'")


def keep_above(weight: Tensor, threshold: float) -> Tensor:
    """Weights that are at least as large as the threshold. Source: Han et al. 2015, arXiv:1506.02626."""
    return weight.detach().abs() >= threshold


def deviation(weight: Tensor) -> float:
    """Standard deviation of all weights of a layer, the unit of dynamic thresholds: quality * deviation.

    Source: Han et al. 2015, arXiv:1506.02626, section 4 ("the pruning threshold is a quality parameter multiplied by the
    standard deviation of a layer's weights").
    """
    return float(weight.detach().to(torch.float64).std(correction=0))


def keep_largest(scores: Sequence[Tensor], zeros: int) -> list[Tensor]:
    """Masks without the `zeros` smallest scores of all tensors together; of equal ones the earlier goes first."""
    flat = torch.cat([score.detach().reshape(-1) for score in scores])
    keep = torch.ones(len(flat), dtype=torch.bool, device=flat.device)
    if zeros >= len(flat):
        keep[:] = False
    elif zeros > 0:
        limit = flat.kthvalue(zeros).values
        keep = flat >= limit
        ties = (flat == limit).nonzero().reshape(-1)
        keep[ties[: zeros - int((~keep).sum())]] = False
    parts = torch.split(keep, [score.numel() for score in scores])
    return [part.reshape(score.shape) for part, score in zip(parts, scores, strict=True)]


def keep_largest_blocks(scores: Sequence[Tensor], zeros: int, block: Block) -> list[Tensor]:
    """Masks whose zeros are whole blocks, those of smallest mean score over all tensors together.

    The number of zeros is the one nearest to `zeros` that whole blocks give. With squared weights as scores, blocks are
    ranked by their norm, per weight so that smaller blocks at the ends compare fairly.
    """
    means, sizes = zip(*(_block_means(score, block) for score in scores), strict=True)
    flat, size = (torch.cat([part.reshape(-1) for part in parts]) for parts in (means, sizes))
    order = flat.argsort(stable=True)
    total = size[order].cumsum(0)
    count = int((total - size[order] / 2 <= zeros).sum()) if zeros > 0 else 0
    keep = torch.ones(len(flat), dtype=torch.bool, device=flat.device)
    keep[order[:count]] = False
    masks = []
    for score, mean, part in zip(scores, means, torch.split(keep, [mean.numel() for mean in means]), strict=True):
        whole = part.reshape(mean.shape).repeat_interleave(block.rows, 0).repeat_interleave(block.columns, 1)
        matrix = score.flatten(1)
        masks.append(whole[: matrix.shape[0], : matrix.shape[1]].reshape(score.shape))
    return masks


def _block_means(score: Tensor, block: Block) -> tuple[Tensor, Tensor]:
    """Mean score and number of weights of each block, both (ceil(O / rows), ceil(K / columns)) in float64."""
    matrix = score.detach().flatten(1).to(torch.float64)
    rows, columns = matrix.shape
    padding = (0, -columns % block.columns, 0, -rows % block.rows)
    shape = (math.ceil(rows / block.rows), block.rows, math.ceil(columns / block.columns), block.columns)
    total = torch.nn.functional.pad(matrix, padding).reshape(shape).sum((1, 3))
    size = torch.nn.functional.pad(torch.ones_like(matrix), padding).reshape(shape).sum((1, 3))
    return total / size, size


def keep_n_of_m(scores: Tensor, n: int, m: int) -> Tensor:
    """A mask with exactly n of each m neighbours along axis 1, those of largest score.

    Raises: ConfigError when m does not divide that axis: a kernel for such a pattern could not run the rest.
    """
    if scores.dim() < 2 or scores.shape[1] % m:
        size = scores.shape[1] if scores.dim() > 1 else 0
        raise ConfigError("pattern", f"{n}:{m}", f"one whose M divides the input axis of the weight, which has {size} positions")
    last = scores.detach().movedim(1, -1)
    groups = last.reshape(-1, m)
    order = groups.argsort(dim=1, descending=True, stable=True)
    keep = torch.zeros_like(groups, dtype=torch.bool).scatter_(1, order[:, :n], True)
    return keep.reshape(last.shape).movedim(-1, 1).contiguous()


def even_zeros(sizes: Sequence[int], zeros: int) -> list[int]:
    """The same share of each layer; the counts sum to `zeros`."""
    total = sum(sizes)
    return _whole([size * zeros / total for size in sizes], sizes, zeros) if total else []


def erk_zeros(shapes: Sequence[Sequence[int]], zeros: int) -> list[int]:
    """Erdos-Renyi-kernel: a layer keeps a share in proportion to (sum of its axes' lengths) / (their product), at most all.

    Small layers stay dense, large ones get most of the zeros; the counts sum to `zeros`.
    Source: Evci et al. 2020 (RigL), arXiv:1911.11134, section 3; Mocanu et al. 2018 without the kernel's axes.
    """
    sizes = [math.prod(shape) for shape in shapes]
    raw = [sum(shape) for shape in shapes]  # what is kept is proportional to this: density * size
    kept = sum(sizes) - zeros
    dense: set[int] = set()
    while True:
        open_layers = [index for index in range(len(sizes)) if index not in dense]
        left = kept - sum(sizes[index] for index in dense)
        factor = left / max(sum(raw[index] for index in open_layers), 1)
        full = {index for index in open_layers if factor * raw[index] > sizes[index]}
        if not full:
            break
        dense |= full
    wanted = [0.0 if index in dense else sizes[index] - factor * raw[index] for index in range(len(sizes))]
    return _whole(wanted, sizes, zeros)


def equal_damage_zeros(sizes: Sequence[int], ratios: Sequence[float], damages: Sequence[Sequence[float]], zeros: int) -> list[int]:
    """Shares at which all layers do the same measured damage; the counts sum to `zeros`.

    ratios   shares of zeros that were tried, rising, in (0, 1)
    damages  per layer the damage at each ratio; between the ratios it is taken to be linear, from 0 at 0
    A layer never gets more than the largest ratio unless all have reached it.
    Source: the sensitivity scan of Han et al. 2015, arXiv:1506.02626, figure 6.
    """
    grid = [0.0, *ratios]
    curves = []
    for damage in damages:  # never falling, so that the inverse is a function
        rising = [0.0]
        for value in damage:
            rising.append(max(rising[-1], float(value)))
        curves.append(rising)

    def shares(level: float) -> list[float]:
        return [_inverse(grid, curve, level) for curve in curves]

    low, high = -1.0, max((curve[-1] for curve in curves), default=0.0)
    for _ in range(200):
        middle = (low + high) / 2
        reached = sum(share * size for share, size in zip(shares(middle), sizes, strict=True))
        low, high = (middle, high) if reached < zeros else (low, middle)
    below, above = ([share * size for share, size in zip(shares(level), sizes, strict=True)] for level in (low, high))
    step = min(1.0, (zeros - sum(below)) / max(sum(above) - sum(below), 1e-12))  # where shares jump at one level
    return _whole([one + step * (other - one) for one, other in zip(below, above, strict=True)], sizes, zeros)


def _inverse(grid: Sequence[float], curve: Sequence[float], level: float) -> float:
    """The largest position whose damage is at most `level`."""
    for place in range(len(grid) - 1, -1, -1):
        if curve[place] <= level:
            if place + 1 == len(grid):
                return grid[place]
            rise = curve[place + 1] - curve[place]
            return grid[place] + (grid[place + 1] - grid[place]) * (level - curve[place]) / rise
    return 0.0


def _whole(wanted: Sequence[float], sizes: Sequence[int], total: int) -> list[int]:
    """Whole numbers near `wanted`, none above its size, that sum to `total`: largest remainders first."""
    counts = [min(int(value), size) for value, size in zip(wanted, sizes, strict=True)]
    rest = sorted(range(len(counts)), key=lambda index: (counts[index] - wanted[index], index))
    missing = total - sum(counts)
    while missing > 0:
        room = [index for index in rest if counts[index] < sizes[index]]
        step = max(1, missing // max(len(room), 1))
        for index in room:
            added = min(step, sizes[index] - counts[index], missing)
            counts[index] += added
            missing -= added
    return counts


def sparsity_at(step: int, total: int, *, final: float, initial: float = 0.0, power: float = 3.0) -> float:
    """Sparsity after step number `step` (1 is the first) of `total`, rising fast at first: gradual magnitude pruning.

    s = final + (initial - final) * (1 - step / total) ** power; power 3 is the paper's, power 1 a straight line.
    Raises: ConfigError for a step outside [0, total] and for sparsities outside [0, 1) or falling.
    Source: Zhu and Gupta 2017, arXiv:1710.01878, equation 1.
    """
    if not 0 <= initial <= final < 1:
        raise ConfigError("final", final, f"a share in [0, 1) and at least the initial one, {initial}")
    if total < 1 or not 0 <= step <= total:
        raise ConfigError("step", step, f"a whole number from 0 to the total, {total}")
    if power <= 0:
        raise ConfigError("power", power, "a positive number")
    return float(final + (initial - final) * (1 - step / total) ** power)
