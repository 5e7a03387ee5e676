"""Which input channels some layers can do without, from second moments of what they read: pure functions, no labels.

Each takes the `readings` of the layers that read the same units, and gives every unit the relative squared error that all of
them together have when this unit and all that matter less are gone. So values of different groups can be compared.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

DAMPING = 1e-2  # of the mean diagonal of the second moments, as repair uses
AT_ONCE = 32  # one in so many of the remaining units goes per step of `refit_errors`
LAMBDAS, LEAST_LAMBDA, SWEEPS, TOLERANCE = 40, 1e-3, 30, 1e-4  # of `lasso_errors`
RANK = 1e-9  # keeps the order where the error stays the same


@dataclass(frozen=True, slots=True, eq=False)
class Reading:
    """What a layer does with the units of a group.

    weight  (O, U, T): from the T inputs that each of U units has to O outputs, divided by the root mean square of the layer's
            whole output (its length, without the mean), so that errors are relative
    second  (U, T, U, T): E[(x - E[x]) (x - E[x])ᵀ] of those inputs; means go into the bias, which repair refits
    """

    weight: Tensor
    second: Tensor


def contributions(readings: Sequence[Reading]) -> np.ndarray:
    """Gram matrix of what each unit adds to the outputs, (U, U): the squared error without a set of units is its sum over the set."""
    size = readings[0].weight.shape[1]
    total = np.zeros((size, size))
    for reading in readings:
        _, units, taps = reading.weight.shape
        matrix = reading.weight.to(torch.float64).flatten(1)
        product = (matrix.t() @ matrix) * reading.second.to(torch.float64).reshape(units * taps, -1)
        total += product.reshape(units, taps, units, taps).sum((1, 3)).cpu().numpy()
    return total


def greedy_errors(readings: Sequence[Reading]) -> Tensor:
    """Remove the unit that adds least to the error, again and again; nothing is refitted.

    Source: Luo et al. 2017 (ThiNet), arXiv:1707.06342, section 3.2; differs: on the Gram matrix of contributions, all layers
    that read the units together, and until none is left, so that one run ranks all. Shape: (U,), float64.
    """
    gram = contributions(readings)
    count = len(gram)
    added, left = gram.diagonal().copy(), np.ones(count, dtype=bool)
    order, steps = np.empty(count, dtype=np.int64), np.empty(count)
    for step in range(count):
        unit = int(np.where(left, added, np.inf).argmin())
        order[step], steps[step] = unit, added[unit]
        left[unit] = False
        added += 2 * gram[unit]
    return _ranked(order, np.maximum.accumulate(steps.cumsum()))


def lasso_errors(readings: Sequence[Reading]) -> Tensor:
    """Order in which the factors b of the units reach zero in ½|Y - sum b_u Z_u|² + λ|b|₁ while λ rises, Z_u what unit u adds to Y.

    Coordinate descent on the Gram matrix of the Z_u, from b = 1 and the least λ up, each solution the start of the next.
    Source: He et al. 2017 (channel pruning), arXiv:1707.06168, section 3.1; differs: all layers that read the units together.
    Shape: (U,), float64.
    """
    gram = contributions(readings)
    wanted = gram.sum(1)  # Zᵀ Y, since Y is the sum of all Z
    whole = float(wanted.sum())
    factors, reached = np.ones(len(gram)), np.full(len(gram), -1)
    last, errors = np.ones(len(gram)), []
    most = float(np.abs(wanted).max(initial=0.0))
    for step, share in enumerate(np.geomspace(LEAST_LAMBDA, 1.0, LAMBDAS)):
        before = factors.copy()
        _descend(gram, wanted, factors, share * most)
        gone = (factors == 0) & (reached < 0)
        reached[gone], last[gone] = step, np.abs(before[gone])
        reached[factors != 0] = -1
        errors.append(float(whole - 2 * factors @ wanted + factors @ gram @ factors))
    reached[reached < 0] = LAMBDAS
    curve = np.maximum.accumulate([0.0, *np.maximum(errors, 0.0), whole])
    strength = last * np.sqrt(np.maximum(gram.diagonal(), 0))  # where several reach zero between two values of λ
    order = np.lexsort((strength, reached))
    return _ranked(order, curve[reached[order] + 1])


def _descend(gram: np.ndarray, wanted: np.ndarray, factors: np.ndarray, penalty: float) -> None:
    """Solve for one λ, in place. Factors that are zero are looked at again when the others have settled."""
    diagonal = gram.diagonal()
    slope = wanted - gram @ factors
    scale = TOLERANCE * float(np.sqrt(np.maximum(diagonal, 0)).max(initial=0.0))
    factors[diagonal <= 0] = 0.0
    for _ in range(SWEEPS):
        largest = 0.0
        waking = (factors == 0) & (np.abs(slope) > penalty) & (diagonal > 0)
        for unit in np.flatnonzero((factors != 0) | waking).tolist():
            target = slope[unit] + diagonal[unit] * factors[unit]
            new = np.sign(target) * max(abs(target) - penalty, 0.0) / diagonal[unit]
            change = new - factors[unit]
            if change:
                factors[unit] = new
                slope -= gram[unit] * change
                largest = max(largest, abs(change) * float(diagonal[unit]) ** 0.5)
        if largest <= scale:
            return


def refit_errors(readings: Sequence[Reading]) -> Tensor:
    """Remove the unit p with the least w_pᵀ ([H⁻¹]_pp)⁻¹ w_p and refit the rest, again and again, H the damped second moments.

    Of more than AT_ONCE units, that share of the remaining goes at once, with their joint error.
    Source: Hassibi and Stork 1993 (optimal brain surgeon); Frantar and Alistarh 2022 (OBC), arXiv:2208.11580, with all inputs of
    a unit as a block, as in Kurtic et al. 2022, arXiv:2203.07259. Shape: (U,), float64.
    """
    states = [_State(reading) for reading in readings]
    units = readings[0].weight.shape[1]
    left, order, errors = np.arange(units), [], []
    total = 0.0
    while len(left):
        costs = sum(state.costs() for state in states)
        assert isinstance(costs, Tensor)
        chosen = costs.argsort(stable=True)[: max(1, len(left) // AT_ONCE)]
        own = costs[chosen].clamp_min(0).cpu().numpy()
        joint = sum(state.remove(chosen) for state in states)
        part = own.cumsum() / own.sum() if own.sum() > 0 else np.ones(len(own))
        errors += (total + max(joint, 0.0) * part).tolist()
        total = errors[-1]
        order += left[chosen.cpu().numpy()].tolist()
        left = np.delete(left, chosen.cpu().numpy())
    return _ranked(np.array(order, dtype=np.int64), np.array(errors))


class _State:
    """One reading while units go: the refitted weights and the inverse of the damped second moments of what is left."""

    def __init__(self, reading: Reading) -> None:
        _, units, taps = reading.weight.shape
        self._taps = taps
        self._weight = reading.weight.to(torch.float64).flatten(1)
        second = reading.second.to(torch.float64).reshape(units * taps, -1).clone()
        ridge = (DAMPING * second.diagonal().mean()).clamp_min(torch.finfo(torch.float64).tiny ** 0.5)
        second.diagonal().add_(ridge)
        self._inverse = torch.cholesky_inverse(torch.linalg.cholesky(second))

    def costs(self) -> Tensor:
        """What the squared error grows by without each single unit, (U,)."""
        taps, units = self._taps, self._inverse.shape[0] // self._taps
        blocks = self._inverse.reshape(units, taps, units, taps).diagonal(dim1=0, dim2=2).movedim(2, 0)
        rows = self._weight.reshape(-1, units, taps).movedim(1, 0)
        inverses: Tensor = torch.linalg.inv(blocks)
        return (inverses * (rows.transpose(1, 2) @ rows)).sum((1, 2))

    def remove(self, units: Tensor) -> float:
        """Take units away and refit; returns what the squared error grows by."""
        columns = (units.unsqueeze(1) * self._taps + torch.arange(self._taps, device=units.device)).flatten()
        mask = torch.ones(self._inverse.shape[0], dtype=torch.bool, device=units.device)
        mask[columns] = False
        stay = mask.nonzero().squeeze(1)
        rows = self._inverse[columns]
        gone = self._weight[:, columns]
        solved = torch.linalg.solve(rows[:, columns], gone.t())  # (columns, O)
        kept = rows[:, stay]
        self._weight = self._weight[:, stay] - solved.t() @ kept
        self._inverse = self._inverse[stay][:, stay] - kept.t() @ torch.linalg.solve(rows[:, columns], kept)
        return float((gone.t() * solved).sum())


def _ranked(order: np.ndarray, errors: np.ndarray) -> Tensor:
    """The error of each unit's turn, rising strictly in that order."""
    values = np.empty(len(order))
    values[order] = np.maximum(errors, 0.0) + RANK * np.arange(len(order))
    return torch.from_numpy(values)


def main_directions(inputs: Tensor, weight: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """The same layer on the `most` main directions of each unit's inputs (principal components), where they have more.

    Shapes: inputs (U, T, S) without their means, weight (O, U, T) -> (U, T', S) and (O, U, T').
    """
    if inputs.shape[1] <= most:
        return inputs, weight
    _, vectors = torch.linalg.eigh((inputs @ inputs.transpose(1, 2)).to(torch.float64))
    chosen = vectors[:, :, -most:].to(inputs.dtype)  # (U, T, T')
    return chosen.transpose(1, 2) @ inputs, torch.einsum("out,utk->ouk", weight.to(inputs.dtype), chosen)
