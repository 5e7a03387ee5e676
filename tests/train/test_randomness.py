import random

import numpy as np
import torch
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, TensorDataset

from gossamer.train.randomness import epoch_seed, seeded

CPU = torch.device("cpu")


def draw():
    return torch.rand(3).tolist(), np.random.rand(3).tolist(), [random.random() for _ in range(3)]


def test_streams_depend_on_seed_and_epoch_alone():
    seen = {}
    for seed, epoch in [(0, 0), (0, 1), (1, 0), (1, 1), (2**40, 3)]:
        with seeded(seed, epoch, device=CPU):
            seen[seed, epoch] = draw()
        draw()
        with seeded(seed, epoch, device=CPU):
            assert draw() == seen[seed, epoch]
    assert len({str(value) for value in seen.values()}) == len(seen)


def test_the_callers_state_is_put_back_even_after_an_error():
    before = torch.get_rng_state(), str(np.random.get_state()), random.getstate()
    try:
        with seeded(3, 0, device=CPU):
            draw()
            raise KeyboardInterrupt
    except KeyboardInterrupt:
        pass
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (str(np.random.get_state()), random.getstate()) == before[1:]


def test_a_loaders_own_generators_are_seeded_and_put_back():
    data = TensorDataset(torch.arange(20))
    sampler_generator = torch.Generator().manual_seed(1)
    loaders = [
        DataLoader(data, batch_size=4, shuffle=True, generator=torch.Generator().manual_seed(5)),
        DataLoader(data, batch_sampler=BatchSampler(RandomSampler(data, generator=sampler_generator), 4, False)),
    ]
    for loader in loaders:
        generator = loader.generator or sampler_generator
        state = generator.get_state()
        orders = []
        for epoch in (0, 1, 0):
            with seeded(7, epoch, device=CPU, data=loader):
                orders.append(torch.cat([batch[0] for batch in loader]).tolist())
        assert orders[0] == orders[2] != orders[1]
        assert torch.equal(generator.get_state(), state)


def test_epoch_seeds_do_not_collide():
    assert len({epoch_seed(seed, epoch) for seed in range(50) for epoch in range(50)}) == 2500
    assert all(0 <= epoch_seed(seed, 1) < 2**63 for seed in range(100))
