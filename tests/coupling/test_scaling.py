"""Scaling channels: exact on random networks, and refused where it would not be."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as fn

from gossamer.coupling.rescale import ChannelChange, rescaled
from gossamer.coupling.scale_rules import find_scaling
from gossamer.errors import PlanError
from gossamer.program.capture import capture
from networks import networks


def random_changes(scaling, seed, spread=1.0):
    """A change for every channel that can change, each class once."""
    generator = torch.Generator().manual_seed(seed)
    factor = torch.exp(spread * torch.randn(scaling.classes, generator=generator, dtype=torch.float64))
    shift = torch.randn(scaling.classes, generator=generator, dtype=torch.float64) * torch.from_numpy(scaling.movable)
    done, changes = {0}, []
    for value, classes in scaling.made.items():
        fresh = torch.tensor([number not in done for number in classes.tolist()])
        done.update(classes.tolist())
        if fresh.any():
            changes.append(ChannelChange(value, torch.where(fresh, factor[classes], 1.0), torch.where(fresh, shift[classes], 0.0)))
    return tuple(changes)


def check_exact(model, inputs, seed=0, tolerance=2e-5):
    """Everything that can change changes, and the outputs stay. Returns how many values changed."""
    program = capture(model.eval(), inputs)
    scaling = find_scaling(program)
    changes = random_changes(scaling, seed)
    before = {name: tensor.clone() for name, tensor in program.state.items()}
    changed = rescaled(program, changes, scaling)
    with torch.no_grad():
        want, got = program(*_tuple(inputs)), changed(*_tuple(inputs))
    assert (got - want).norm() <= tolerance * want.norm()
    assert all(torch.equal(tensor, before[name]) for name, tensor in program.state.items())
    moved = [name for name, tensor in changed.state.items() if name not in before or not torch.equal(tensor, before[name])]
    assert bool(moved) == bool(changes)
    return program, scaling, len(changes)


def _tuple(inputs):
    return inputs if isinstance(inputs, tuple) else (inputs,)


@settings(max_examples=20, deadline=None)
@given(networks(), st.integers(0, 2**16))
def test_random_networks_compute_the_same(network, seed):
    check_exact(network, torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(seed)), seed)


class Paths(nn.Module):
    """Pools, concatenation, leaky ReLU, depthwise and transposed convolution, padding, reshapes and a classifier."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 6, 3, padding=1, groups=6)
        self.c, self.up = nn.Conv2d(12, 8, 1), nn.ConvTranspose2d(8, 8, 2, stride=2, groups=2)
        self.slope, self.norm = nn.PReLU(8), nn.BatchNorm2d(8)
        self.last, self.head = nn.Conv2d(8, 5, 3), nn.Linear(5 * 4, 7)
        self.norm.running_mean.normal_()
        self.norm.running_var.uniform_(0.5, 2)

    def forward(self, x):
        x = fn.leaky_relu(self.a(x), 0.1)
        x = torch.cat([fn.max_pool2d(x, 2), fn.avg_pool2d(torch.relu(self.b(x)), 2)], 1)
        x = self.slope(self.up(torch.relu(self.c(x))) * 0.5)
        x = torch.relu(self.last(fn.pad(self.norm(x), (1, 1, 1, 1))))
        return self.head(fn.adaptive_avg_pool2d(x, 2).permute(0, 2, 3, 1).flatten(1))


def test_every_layer_of_a_homogeneous_network_can_be_scaled():
    _, scaling, count = check_exact(Paths(), torch.randn(2, 3, 8, 8))
    free = {name for name, classes in scaling.made.items() if (classes != 0).all()}
    assert len(scaling.made) == 7
    assert len(free) == 6  # all but the head, which is the output
    assert count == 6


class Transformer(nn.Module):
    def __init__(self, act=fn.gelu):
        super().__init__()
        self.act = act
        self.tokens = nn.Embedding(11, 8)
        self.place = nn.Parameter(torch.randn(1, 5, 8))
        self.norm1, self.norm2 = nn.LayerNorm(8), nn.LayerNorm(8)
        self.qkv, self.out = nn.Linear(8, 24), nn.Linear(8, 8)
        self.up, self.down = nn.Linear(8, 16), nn.Linear(16, 8)
        self.last, self.head = nn.LayerNorm(8), nn.Linear(8, 3)
        for norm in (self.norm1, self.norm2, self.last):
            norm.weight.data.uniform_(0.5, 2)
            norm.bias.data.normal_()

    def forward(self, ids):
        x = self.tokens(ids) + self.place
        q, k, v = self.qkv(self.norm1(x)).reshape(-1, 5, 3, 2, 4).permute(2, 0, 3, 1, 4).unbind(0)
        x = x + self.out(fn.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(-1, 5, 8))
        x = x + self.down(self.act(self.up(self.norm2(x))))
        return self.head(self.last(x)[:, 0])


def test_transformer():
    ids = torch.arange(10).reshape(2, 5)
    _, scaling, _ = check_exact(Transformer(), ids)
    free = {name: (classes != 0).tolist() for name, classes in scaling.made.items() if (classes != 0).any()}
    by_sum = {name: sum(flags) for name, flags in free.items()}
    assert sorted(by_sum.values()) == [8, 8, 8, 8]  # three norms, and of the queries, keys and values the values
    (values,) = [flags for flags in free.values() if len(flags) == 24]
    assert values == [False] * 16 + [True] * 8
    norms = [name for name in free if len(free[name]) == 8]
    assert all(scaling.movable[scaling.made[name]].all() for name in norms)  # and can be shifted
    _, homogeneous, _ = check_exact(Transformer(torch.relu), ids)
    assert sum((classes != 0).any() for classes in homogeneous.made.values()) == 5  # the hidden layer, too


def test_a_norm_that_is_written_out_makes_channels():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight, self.read = nn.Parameter(torch.rand(8) + 0.5), nn.Linear(8, 3)

        def forward(self, x):
            return self.read(self.weight * (x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6)))

    _, scaling, count = check_exact(Net(), torch.randn(2, 5, 8))
    assert count == 1
    assert sum((classes != 0).all() for classes in scaling.made.values()) == 1


@pytest.mark.parametrize("act", [fn.relu6, fn.gelu, fn.silu, torch.sigmoid, fn.hardswish, lambda x: x + 1.0, lambda x: x.clamp(-1, 1)])
def test_nothing_passes_what_is_not_homogeneous(act):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(4, 6), nn.Linear(6, 2)

        def forward(self, x):
            return self.b(act(self.a(x)))

    program = capture(Net().eval(), torch.randn(2, 4))
    scaling = find_scaling(program)
    assert not any(classes.any() for classes in scaling.made.values())
    name = next(iter(scaling.made))
    assert "not homogeneous" in scaling.made_fixed[name]
    with pytest.raises(PlanError, match="not homogeneous"):
        rescaled(program, (ChannelChange(name, torch.full((6,), 2.0, dtype=torch.float64)),))


def test_a_residual_sum_scales_together():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 2, 1)

        def forward(self, x):
            x = self.a(x)
            return self.c(torch.relu(x + self.b(torch.relu(x))))

    _, scaling, count = check_exact(Net(), torch.randn(2, 3, 4, 4))
    first, second, last = scaling.made.values()
    assert np.array_equal(first, second)
    assert len(set(first.tolist())) == 4
    assert not last.any()
    assert count == 1
    assert not scaling.movable[first].any()


def test_shared_weights_scale_together_or_not_at_all():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.shared, self.head = nn.Linear(3, 4), nn.Linear(4, 4), nn.Linear(4, 2)

        def forward(self, x):
            return self.head(torch.relu(self.shared(torch.relu(self.shared(torch.relu(self.stem(x)))))))

    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.table = nn.Embedding(7, 4)

        def forward(self, ids):
            return fn.linear(torch.relu(self.table(ids)), self.table.weight)

    _, _, count = check_exact(Twice(), torch.randn(2, 3))
    assert count == 1  # all three have the same factors
    _, _, count = check_exact(Tied(), torch.arange(6).reshape(2, 3))
    assert count == 0


def test_a_shift_needs_a_straight_way_to_the_readers():
    class Net(nn.Module):
        def __init__(self, padding):
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 2, 3, padding=padding, bias=False)

        def forward(self, x):
            return self.b(self.a(x)).flatten(1)

    for padding in (0, 1):
        _, scaling, _ = check_exact(Net(padding), torch.randn(2, 3, 6, 6))
        classes = next(iter(scaling.made.values()))
        assert bool(scaling.movable[classes].all()) == (padding == 0)


def test_errors():
    program = capture(nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).eval(), torch.randn(2, 3))
    name = next(iter(find_scaling(program).made))

    def change(*numbers, value=name, shift=None):
        return (ChannelChange(value, torch.tensor(numbers, dtype=torch.float64), shift),)

    with pytest.raises(PlanError, match="'nowhere', which is no layer, norm or embedding"):
        rescaled(program, change(1.0, value="nowhere"))
    with pytest.raises(PlanError, match=r"scales 3 channels of .* which has 4"):
        rescaled(program, change(1.0, 2.0, 3.0))
    for bad in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(PlanError, match="not positive and finite"):
            rescaled(program, change(1.0, 1.0, 1.0, bad))
    with pytest.raises(PlanError, match="cannot be changed like this"):
        rescaled(program, change(1.0, 1.0, 1.0, 1.0, shift=torch.ones(4, dtype=torch.float64)))
