"""Costs: formulas written out here, and counts of the nn.Module, are the oracle."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from gossamer.errors import UnsupportedOp
from gossamer.numerics.affine import Quantizer
from gossamer.numerics.formats import IntFormat, PerAxis, PerTensor
from gossamer.program.capture import capture
from gossamer.program.cost import count_params
from networks import RandomNetwork


def cost(module, *shape):
    return capture(module, torch.zeros(2, *shape)).cost()


@pytest.mark.parametrize("groups", [1, 2, 6])
@pytest.mark.parametrize(("kernel", "stride", "padding", "dilation"), [(3, 1, 0, 1), (3, 2, 1, 1), (5, 2, 2, 2), (1, 1, 0, 1)])
def test_convolutions(groups, kernel, stride, padding, dilation):
    layer = nn.Conv2d(6, 12, kernel, stride, padding, dilation, groups)
    rows, columns = ((size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1 for size in (17, 13))
    found = cost(layer, 6, 17, 13)
    assert found.macs == 12 * rows * columns * (6 // groups) * kernel * kernel
    assert found.params == 12 * (6 // groups) * kernel * kernel + 12
    assert found.size_bytes == 4 * found.params


def test_transposed_convolution():
    found = cost(nn.ConvTranspose2d(4, 6, 3, stride=2, groups=2, bias=False), 4, 5, 7)
    assert found.macs == 4 * 5 * 7 * (6 // 2) * 3 * 3  # each input position touches each of its group's outputs
    assert found.params == 4 * 3 * 9


def test_linear_on_any_number_of_axes():
    assert cost(nn.Linear(5, 7), 5).macs == 5 * 7
    assert cost(nn.Linear(5, 7), 3, 4, 5).macs == 3 * 4 * 5 * 7


def test_functional_layers_count():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.randn(4, 3, 3, 3))
            self.table = nn.Parameter(torch.randn(16, 5))

        def forward(self, x):
            y = F.conv2d(x, self.weight, padding=1).flatten(2)
            return torch.matmul(y, self.table)

    found = cost(Net(), 3, 4, 4)
    assert found.macs == 4 * 16 * 27 + 4 * 16 * 5
    assert found.params == 4 * 27 + 16 * 5


def test_attention():
    class Net(nn.Module):
        def forward(self, q):
            return F.scaled_dot_product_attention(q, q[..., :3, :], q[..., :3, :4])

    assert cost(Net(), 2, 5, 8).macs == 2 * 5 * 3 * 8 + 2 * 5 * 3 * 4


def test_work_that_is_no_multiply_accumulate_counts_zero():
    net = nn.Sequential(nn.ReLU(), nn.BatchNorm2d(3), nn.MaxPool2d(2), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Softmax(1))
    found = cost(net, 3, 8, 8)
    assert found.macs == 0
    assert found.params == 6
    assert found.size_bytes == 4 * (6 + 6)  # running statistics are stored, too; the batch counter is not used


@settings(max_examples=10, deadline=None)
@given(
    st.lists(st.sampled_from(["conv", "depthwise", "grouped", "residual", "concat", "gate", "shuffle", "pool"]), max_size=4).map(tuple),
    st.booleans(),
)
def test_equals_torchs_own_counter(blocks, flatten):
    network = RandomNetwork(blocks, 8, flatten, 0).eval()
    program = capture(network, torch.zeros(2, 3, 8, 8))
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(torch.zeros(1, 3, 8, 8))
    assert program.cost().macs * 2 == counter.get_total_flops()
    assert program.cost().params == sum(p.numel() for p in network.parameters())
    counted = [*network.parameters(), *(b for name, b in network.named_buffers() if "num_batches" not in name)]
    assert program.cost().size_bytes == sum(tensor.numel() * tensor.element_size() for tensor in counted)


def test_tied_weights_count_once():
    shared = nn.Linear(4, 4)
    found = cost(nn.Sequential(shared, nn.ReLU(), shared), 4)
    assert (found.params, found.macs) == (20, 32)


def test_an_op_without_a_row_raises():
    class Net(nn.Module):
        def forward(self, x):
            return torch.cummax(x, 1).values

    with pytest.raises(UnsupportedOp, match=r"no cost rule for aten.cummax.default at test_cost.py:\d+; add a row with"):
        cost(Net(), 4)


def test_quantized_sizes_are_those_of_the_codes():
    program = capture(nn.Linear(10, 6), torch.zeros(2, 10))
    four = Quantizer(IntFormat(bits=4), PerAxis(0), (0.1,) * 6, (0,) * 6)
    eight = Quantizer(IntFormat(bits=8), PerTensor(), (0.1,), (0,))
    out = program.graph.outputs[0]
    quantized = program.with_graph(program.graph, quantizers={"weight": four, "input": eight, out: eight})
    assert quantized.cost().size_bytes == 60 // 2 + 4 * 6 + 4 * 6  # codes, scales, float bias
    assert quantized.cost().peak_memory_bytes == 10 + 6
    assert program.cost().peak_memory_bytes == 4 * (10 + 6)


class Chain(nn.Module):
    """x (4 B/element): 100 -> 300 -> 50 -> 200 -> 10, each value read once."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(i, o) for i, o in [(100, 300), (300, 50), (50, 200), (200, 10)])

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return x


def test_peak_memory_of_a_chain_is_its_largest_neighbouring_pair():
    assert cost(Chain(), 100).peak_memory_bytes == 4 * (100 + 300)


def test_peak_memory_holds_what_is_read_later():
    class Residual(nn.Module):
        def __init__(self):
            super().__init__()
            self.up, self.down = nn.Linear(10, 90), nn.Linear(90, 10)

        def forward(self, x):
            return x + self.down(self.up(x))

    assert cost(Residual(), 10).peak_memory_bytes == 4 * (10 + 90 + 10)


def test_peak_memory_counts_shared_memory_once():
    class Views(nn.Module):
        def forward(self, x):
            y = x.flatten(1)
            return y.view(y.shape[0], 4, 25).relu()

    assert cost(Views(), 10, 10).peak_memory_bytes == 4 * (100 + 100)


def test_peak_memory_frees_what_nobody_reads():
    class Parts(nn.Module):
        def forward(self, x):
            a, b = torch.relu(x).chunk(2, dim=1)
            return torch.cat([a.exp(), b], 1)

    # relu 100, its half's exp 50, the result 100; the input is gone by then
    assert cost(Parts(), 100).peak_memory_bytes == 4 * 250


def test_integer_inputs():
    program = capture(nn.Embedding(7, 5), torch.zeros(2, 3, dtype=torch.int64))
    found = program.cost()
    assert (found.macs, found.params, found.peak_memory_bytes) == (0, 35, 3 * 8 + 3 * 5 * 4)
    assert count_params(program) == 35


@pytest.mark.parametrize("kind", ["spectral_norm", "orthogonal", "weight_norm"])
def test_ops_that_compute_weights_need_no_rule(kind):
    layer = getattr(nn.utils.parametrizations, kind)(nn.Linear(8, 8))
    program = capture(nn.Sequential(layer, nn.ReLU(), nn.Linear(8, 3)).eval(), torch.zeros(2, 8))
    layers, products = 8 * 8 + 8 * 3, 8 * 8 * 8  # a product of two weights is counted
    assert program.cost().macs == layers + (products if kind == "orthogonal" else 0)
