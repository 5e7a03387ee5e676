import pytest
import torch
from torch import nn

from gossamer.program.capture import capture
from gossamer.program.forms import BatchSize, Form, Unknown, divided, find_forms, product

BATCH = BatchSize(1, 0)


class Shaped(nn.Module):
    def forward(self, x):
        windows = x.reshape(x.shape[0] * 4, 2)
        return torch.cat([windows, windows[:1]]) + torch.arange(x.shape[0] * 4 + 1)[:, None]


def test_sizes_grow_with_the_batch():
    program = capture(Shaped(), torch.randn(2, 8))
    forms = find_forms(program)
    assert forms["x"] == Form((BATCH, 8), torch.float32)
    assert forms["reshape"].sizes == (BatchSize(4, 0), 2)
    assert forms[program.graph.outputs[0]].sizes == (BatchSize(4, 1), 2)
    assert forms["x"].shape == (None, 8)


def test_a_size_that_grows_otherwise_is_unknown():
    class Half(nn.Module):
        def forward(self, x):
            return x[: (x.shape[0] + 1) // 2]

    program = capture(Half(), torch.randn(4, 3))
    assert find_forms(program)[program.graph.outputs[0]].sizes == (Unknown(), 3)


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [((2, 3), 6), ((BATCH, 4, 2), BatchSize(8, 0)), ((BATCH, 0), 0), ((BATCH, BATCH), Unknown()), ((2, Unknown()), Unknown())],
)
def test_products(sizes, expected):
    assert product(sizes) == expected


def test_quotients():
    assert (divided(6, 2), divided(BatchSize(4, 2), 2), divided(BATCH, 2)) == (3, BatchSize(2, 1), Unknown())
