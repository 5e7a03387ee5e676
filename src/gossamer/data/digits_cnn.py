"""The small CNN of the demo, and its training on digits."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from gossamer.data.source import Data
from gossamer.program.capture import capture
from gossamer.progress import OnProgress, silent
from gossamer.train.fit import fit
from gossamer.train.recipe import Recipe


class DigitsCNN(nn.Module):
    """Two convolutions and a linear layer, 34,826 parameters. Shapes: (N, 1, 28, 28) -> (N, 10)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 32, 3)
        self.conv2 = nn.Conv2d(32, 64, 3)
        self.fc = nn.Linear(64 * 5 * 5, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.max_pool2d(torch.relu(self.conv1(x)), 2)
        x = nn.functional.max_pool2d(torch.relu(self.conv2(x)), 2)
        scores: Tensor = self.fc(x.flatten(1))
        return scores


def train_digits(data: Data, *, epochs: int = 8, seed: int = 0, on_progress: OnProgress = silent) -> DigitsCNN:
    """Make a DigitsCNN and train it on `data.train` (AdamW, cosine). The caller's random state stays as it is."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = DigitsCNN()
    program = capture(model, torch.zeros(2, 1, 28, 28))
    recipe = Recipe(optimizer="adamw", learning_rate=2e-3)
    trained = fit(program, data.train, epochs=epochs, recipe=recipe, seed=seed, on_progress=on_progress)
    model.load_state_dict({name: tensor.detach() for name, tensor in trained.state.items()})
    return model.eval()
