"""The learning rate over a run: a short linear warm-up, then half a cosine down to 0.

Source: cosine of Loshchilov and Hutter 2017, arXiv:1608.03983, without restarts; warm-up of Goyal et al. 2017, arXiv:1706.02677.
"""

from __future__ import annotations

import math


def learning_rate_at(step: int, total: int, *, peak: float, warmup: float) -> float:
    """Rate of update number `step` (0 is the first) out of `total`.

    Units: warmup is the share of all updates that the rate takes to rise to `peak`; after the last update the rate would be 0.
    """
    rising = min(round(warmup * total), total - 1)
    if step < rising:
        return peak * (step + 1) / (rising + 1)
    done = min((step - rising) / (total - rising), 1.0)
    return peak * 0.5 * (1.0 + math.cos(math.pi * done))
