"""Share of MACs that pruning reaches. Oracle: counted by hand from the layers' sizes."""

import pytest
import torch
from torch import nn

from gossamer.coupling import analyse
from gossamer.coupling.share import prunable_macs_share
from gossamer.program.capture import capture


class TwoBranches(nn.Module):
    """One branch of which everything stays, since the place of a maximum is taken over its width; one that can be pruned."""

    def __init__(self):
        super().__init__()
        self.stays, self.wide, self.narrow = nn.Linear(5, 8), nn.Linear(5, 4), nn.Linear(4, 2)

    def forward(self, x):
        return self.narrow(self.wide(x).relu()) + self.stays(x).argmax(1, keepdim=True)


@pytest.mark.parametrize(
    ("network", "share"),
    [
        (nn.Linear(5, 3), 0.0),  # its only axis is the output
        (nn.Flatten(), 0.0),  # multiplies nothing
        (nn.Sequential(nn.Linear(5, 7), nn.Linear(7, 2)), 1.0),  # the second is reached through its input
        (TwoBranches(), (5 * 4 + 4 * 2) / (5 * 4 + 4 * 2 + 5 * 8)),
    ],
)
def test_share_is_that_of_the_layers_that_can_shrink(network, share):
    program = capture(network.eval(), torch.randn(2, 5))
    assert prunable_macs_share(program, analyse(program)) == pytest.approx(share)


def test_products_of_two_values_count_by_what_they_carry():
    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.qkv, self.head = nn.Linear(5, 12), nn.Linear(4, 2)

        def forward(self, x):
            q, k, v = self.qkv(x).chunk(3, -1)
            return self.head(nn.functional.scaled_dot_product_attention(q, k, v))

    program = capture(Attention().eval(), torch.randn(2, 6, 5))
    assert prunable_macs_share(program, analyse(program)) == 1.0
