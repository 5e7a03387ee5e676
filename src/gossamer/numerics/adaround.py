"""Rounding as something that can be learned: each weight's code is a lower one plus a share in [0, 1] that ends at 0 or 1.

Source: Nagel et al. 2020 (AdaRound), arXiv:2004.10568; differs: the two codes of a weight may be those around another
method's choice, from which learning then starts.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gossamer.numerics.formats import IntFormat

STRETCH = 0.1  # how far the sigmoid reaches beyond 0 and 1, so that both are reached (Louizos et al. 2018, arXiv:1712.01312)


def share(logits: Tensor) -> Tensor:
    """h(V) = clip(1.2 sigmoid(V) - 0.1, 0, 1): the share of a code step that each weight lies above its lower code. Any shape."""
    return torch.clamp(torch.sigmoid(logits) * (1 + 2 * STRETCH) - STRETCH, 0.0, 1.0)


def logits_of(wanted: Tensor) -> Tensor:
    """V with h(V) = wanted, for shares in [0, 1]. Any shape."""
    return torch.logit((wanted + STRETCH) / (1 + 2 * STRETCH))


def code_window(position: Tensor, start: Tensor, fmt: IntFormat) -> Tensor:
    """The lower of the two codes that a weight may get: `start` is one, the other is its neighbour towards the weight.

    Shapes: position (the weight in code steps from code 0) and start (a code for each) any, alike; the result, too.
    """
    lower = torch.where(position < start, start - 1, start)
    return lower.clamp_(fmt.lo, fmt.hi - 1)


def indecision(logits: Tensor, beta: float) -> Tensor:
    """Sum of 1 - |2 h - 1|^beta: 0 where every weight has decided for a code; a large beta only asks those that nearly have."""
    return (1 - (2 * share(logits) - 1).abs().pow(beta)).sum()


def indecision_slope(logits: Tensor, beta: float) -> Tensor:
    """The derivative of `indecision` by the logits, at the cost of one power. Shape of logits."""
    sigmoid = torch.sigmoid(logits)
    distance = 2 * (sigmoid * (1 + 2 * STRETCH) - STRETCH) - 1
    inside = distance.abs() < 1
    slope = sigmoid.mul_(1 - sigmoid).mul_(2 * (1 + 2 * STRETCH)).mul_(inside)
    return slope.mul_(distance.sign()).mul_(distance.abs_().clamp_max_(1.0).pow_(beta - 1)).mul_(-beta)


def beta_at(progress: float, *, first: float = 20.0, last: float = 2.0) -> float:
    """beta after a share `progress` of the iterations with it: falls along a straight line."""
    return last + (first - last) * max(0.0, 1.0 - progress)
