import pytest
import torch
from torch import nn

from gossamer.plan.columns import has_columns, layer_columns
from gossamer.program.capture import capture


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(4, 6, 3, padding=1, stride=2),
        nn.Conv2d(4, 6, (3, 2), padding="same", dilation=2, groups=2),
        nn.Conv2d(4, 4, 3, padding="valid", groups=4),
        nn.Conv1d(4, 2, 3, padding=2),
        nn.Linear(9, 5),
    ],
    ids=str,
)
def test_weight_times_columns_is_the_layers_output(layer):
    layer.bias.data.zero_()
    x = torch.randn(3, 4, 9) if isinstance(layer, (nn.Linear, nn.Conv1d)) else torch.randn(3, 4, 9, 8)
    program = capture(layer.eval(), x)
    node = next(node for node in program.graph.nodes if has_columns(node))
    columns = layer_columns(node, layer.weight.detach(), x, limit=10**6, seed=0)
    rows = (layer.weight.reshape(len(columns), -1, columns.shape[1]) @ columns).flatten(0, 1)
    expected = layer(x).movedim(-1 if isinstance(layer, nn.Linear) else 1, 0).flatten(1)
    assert torch.allclose(rows, expected, atol=1e-5)


def test_same_seed_picks_the_same_positions_at_any_width():
    wide, narrow = (capture(nn.Conv2d(c, 2, 3), torch.zeros(2, c, 16, 16)).graph.nodes[0] for c in (4, 2))
    x = torch.randn(5, 4, 16, 16)
    one = layer_columns(wide, torch.zeros(2, 4, 3, 3), x, limit=50, seed=3)
    two = layer_columns(narrow, torch.zeros(2, 2, 3, 3), x[:, :2], limit=50, seed=3)
    assert one.shape == (1, 36, 50)
    assert torch.equal(one[:, :18], two)


def test_transposed_convolutions_have_none():
    program = capture(nn.ConvTranspose2d(2, 2, 3), torch.zeros(2, 2, 4, 4))
    assert not any(has_columns(node) for node in program.graph.nodes)
