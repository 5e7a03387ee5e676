"""Randomness of an epoch as a function of (seed, epoch) alone, without touching the caller's random state."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader


def epoch_seed(seed: int, epoch: int) -> int:
    """A 63-bit seed for one epoch; neighbouring seeds and epochs give unrelated ones (numpy.random.SeedSequence)."""
    return int(np.random.SeedSequence([seed, epoch]).generate_state(1, np.uint64)[0]) >> 1


@contextmanager
def seeded(seed: int, epoch: int, *, device: torch.device, data: Any = None) -> Iterator[None]:
    """Inside, torch, numpy and Python draw from streams of (seed, epoch); afterwards everybody's state is as before.

    `data` may be a DataLoader; generators of its own are seeded and put back as well.
    """
    value = epoch_seed(seed, epoch)
    generators = _own_generators(data)
    states = [generator.get_state() for generator in generators]
    python_state, numpy_state = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.default_generator.manual_seed(value)
            if device.type == "cuda":
                torch.cuda.manual_seed(value)
            random.seed(value)
            np.random.seed(value % 2**32)
            for generator in generators:
                generator.manual_seed(value)
            yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)
        for generator, state in zip(generators, states, strict=True):
            generator.set_state(state)


def _own_generators(data: Any) -> list[torch.Generator]:
    """The generators that a DataLoader and its samplers hold, each once."""
    if not isinstance(data, DataLoader):
        return []
    holders = (data, data.sampler, data.batch_sampler, getattr(data.batch_sampler, "sampler", None))
    found = [getattr(holder, "generator", None) for holder in holders]
    return list({id(generator): generator for generator in found if isinstance(generator, torch.Generator)}.values())
