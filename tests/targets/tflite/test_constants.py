"""What no input decides is not computed by the file; what the batch size decides is made from an input where one row will not do."""

import numpy as np
import pytest
import torch
from torch import nn

from gossamer.program.capture import capture
from gossamer.targets.export import export
from gossamer.targets.target import targets

pytest.importorskip("ai_edge_litert")


class Types(nn.Module):
    """Token types, as BERT has them: a constant row for every sample; and a mask picked by two vectors of places."""

    def __init__(self, repeated):
        super().__init__()
        self.repeated = repeated
        self.words, self.types = nn.Embedding(20, 6), nn.Embedding(2, 6)
        self.register_buffer("kinds", torch.tensor([[0, 0, 1, 1]]))

    def forward(self, ids, mask):
        batch = ids.shape[0]
        kinds = self.types(self.kinds.expand(batch, -1))
        values = torch.cat([self.words(ids), kinds], 1) if self.repeated else self.words(ids) + kinds
        seen = mask.bool()[torch.arange(batch)[:, None, None, None], torch.arange(4)[None, None, None, :]]
        return values.mean((1, 2)) * seen.to(torch.float32).sum((1, 2, 3))


@pytest.mark.parametrize("repeated", [False, True])
def test_constant_rows_and_whole_indices(repeated, tmp_path):
    torch.manual_seed(0)
    network = Types(repeated).eval()
    ids, mask = torch.randint(0, 20, (3, 4)), torch.randint(0, 2, (3, 4))
    path = export(capture(network, (ids, mask)), tmp_path / "m.tflite", "litert").path
    runner = targets["litert"].open(path, threads=1)
    for batch in (1, 3):
        expected = network(ids[:batch], mask[:batch]).detach().numpy()
        np.testing.assert_allclose(runner.run(ids[:batch].numpy(), mask[:batch].numpy()), expected, rtol=1e-5, atol=1e-6)


class Places(nn.Module):
    """Reads the number of each sample."""

    def forward(self, x):
        return x + torch.arange(x.shape[0], device=x.device)[:, None]


def test_values_that_differ_along_the_batch_are_made_from_it(tmp_path):
    rows = torch.randn(3, 4)
    path = export(capture(Places().eval(), rows), tmp_path / "m.tflite", "litert").path
    runner = targets["litert"].open(path, threads=1)
    for batch in (1, 3):
        np.testing.assert_allclose(runner.run(rows[:batch].numpy()), Places()(rows[:batch]).numpy(), rtol=1e-6)


class Earlier(nn.Module):
    """Looks at earlier rows alone: which those are is a comparison of constants, so a constant of truths."""

    def forward(self, x):
        return (x @ x.transpose(1, 2)).masked_fill(torch.ones(4, 4).tril() == 0, -torch.inf).softmax(-1)


def test_constant_conditions_stay_truths(tmp_path):
    torch.manual_seed(0)
    x = torch.randn(3, 4, 6)
    path = export(capture(Earlier().eval(), (x,)), tmp_path / "m.tflite", "litert").path
    runner = targets["litert"].open(path, threads=1)
    for batch in (1, 3):
        np.testing.assert_allclose(runner.run(x[:batch].numpy()), Earlier()(x[:batch]).numpy(), rtol=1e-5, atol=1e-6)
