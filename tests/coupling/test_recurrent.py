"""Recurrent layers: features that they read and the width of their state can go. Oracle: `apply` proves it."""

import numpy as np
import pytest
import torch
from torch import nn

from gossamer.apply.engine import apply
from gossamer.coupling import analyse
from gossamer.coupling.kept import keep_table
from gossamer.coupling.predict import Predictor
from gossamer.plan.pruning import plan_pruning
from gossamer.plan.score import score
from gossamer.program.capture import capture

pytestmark = pytest.mark.filterwarnings("ignore:The tensor attributes")


class Sequence(nn.Module):
    """A layer in front, the recurrent one, and a classifier of its output at the last step and of its final state."""

    def __init__(self, layer, read):
        super().__init__()
        self.stem, self.recurrent, self.read = nn.Linear(3, 8), layer, read
        self.head = nn.Linear(self.features(torch.zeros(2, 5, 3)).shape[-1], 2)

    def features(self, x):
        outputs, states = self.recurrent(self.stem(x))
        return self.read(outputs, states)

    def forward(self, x):
        return self.head(self.features(x))


def last(outputs, states):
    return outputs[:, -1]


def final(outputs, states):
    return torch.cat([states[0][-1], states[1][0]], -1) if isinstance(states, tuple) else states[-1]


@pytest.mark.parametrize("read", [last, final])
@pytest.mark.parametrize(
    "make",
    [
        lambda: nn.LSTM(8, 6, batch_first=True),
        lambda: nn.LSTM(8, 6, batch_first=True, num_layers=2, bidirectional=True),
        lambda: nn.LSTM(8, 6, batch_first=True, bias=False),
        lambda: nn.GRU(8, 6, batch_first=True, num_layers=2),
        lambda: nn.GRU(8, 6, batch_first=True, bidirectional=True),
        lambda: nn.RNN(8, 6, batch_first=True, nonlinearity="relu"),
    ],
    ids=["lstm", "deep lstm", "lstm without bias", "deep gru", "gru in both directions", "rnn"],
)
def test_half_of_the_features_and_of_the_state_go(make, read):
    torch.manual_seed(0)
    program = capture(Sequence(make(), read).eval(), torch.randn(2, 5, 3))
    scores = score(program, "l1")
    assert {group.name: group.size for group in scores.analysis.groups if group.prunable} == {"stem": 8, "recurrent": 6}
    plan = plan_pruning(program, scores, 0.5, mode="layerwise")
    small = apply(program, plan)
    weights = [tensor for name, tensor in small.state.items() if name.endswith("weight_hh_l0")]
    assert [tensor.shape[1] for tensor in weights] == [3]
    assert small.state["recurrent.weight_ih_l0"].shape[1] == 4
    cost, predictor = small.cost(), Predictor(program, scores.analysis)
    table = keep_table(scores.analysis, {edit.group: np.array(edit.keep) for edit in plan.edits})
    assert (predictor.params(table), predictor.macs(table)) == (cost.params, cost.macs)
    assert small(torch.randn(4, 5, 3)).shape == (4, 2)


def test_the_state_of_an_encoder_shrinks_with_its_decoder():
    class Translator(nn.Module):
        def __init__(self):
            super().__init__()
            self.encoder, self.decoder, self.head = nn.GRU(3, 6, batch_first=True), nn.GRU(3, 6, batch_first=True), nn.Linear(6, 2)

        def forward(self, x):
            return self.head(self.decoder(x, self.encoder(x)[1])[0][:, -1])

    program = capture(Translator().eval(), torch.randn(2, 5, 3))
    scores = score(program, "l1")
    assert scores.analysis.group("encoder").owners == ("encoder", "decoder")
    small = apply(program, plan_pruning(program, scores, 0.5))
    assert small.state["decoder.weight_hh_l0"].shape == (9, 3)


def test_a_state_from_outside_keeps_the_width():
    class Stepper(nn.Module):
        def __init__(self):
            super().__init__()
            self.cell, self.head = nn.GRU(3, 6, batch_first=True), nn.Linear(6, 2)

        def forward(self, x, state):
            return self.head(self.cell(x, state[None])[0])

    program = capture(Stepper().eval(), (torch.randn(2, 5, 3), torch.randn(2, 6)))
    (group,) = [group for group in analyse(program).groups if group.name == "cell"]
    assert group.reason == "it meets unsqueeze, which cannot shrink, in cell"


@pytest.mark.filterwarnings("ignore:LSTM with projections")
def test_a_projected_state_stays():
    program = capture(Sequence(nn.LSTM(8, 6, batch_first=True, proj_size=4), last).eval(), torch.randn(2, 5, 3))
    group = analyse(program).group("stem")
    assert not group.prunable
    assert group.reason == "recurrent projects its state"
