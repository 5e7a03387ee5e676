"""A small vision transformer: layers, attention and GELU on codes, layer norms in float between them, bit for bit the simulation."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from gossamer.targets.export import export
from gossamer.targets.parity import check_parity
from gossamer.targets.target import targets
from targets.tflite.test_transposed import TARGETS, coded, needs


class Block(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.first, self.second, self.heads = nn.LayerNorm(width), nn.LayerNorm(width), heads
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.wide, self.narrow = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x):
        count, tokens, width = x.shape
        q, k, v = self.qkv(self.first(x)).reshape(count, tokens, 3, self.heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        x = x + self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(count, tokens, width))
        return x + self.narrow(F.gelu(self.wide(self.second(x))))


class SmallViT(nn.Module):
    """Two blocks of width 32 over 16 tokens (Dosovitskiy et al. 2020, arXiv:2010.11929); images (N, 3, 16, 16)."""

    def __init__(self):
        super().__init__()
        self.patch, self.place = nn.Conv2d(3, 32, 4, 4), nn.Parameter(torch.randn(1, 16, 32) * 0.1)
        self.blocks, self.norm, self.head = nn.Sequential(Block(32, 2), Block(32, 2)), nn.LayerNorm(32), nn.Linear(32, 5)

    def forward(self, x):
        return self.head(self.norm(self.blocks(self.patch(x).flatten(2).transpose(1, 2) + self.place)).mean(1))


@pytest.mark.parametrize("target", TARGETS)
def test_a_transformer_runs(target, tmp_path):
    needs(target)
    torch.manual_seed(0)
    samples = torch.randn(16, 3, 16, 16)
    program, plan, artifact = coded(SmallViT(), samples, target, tmp_path)
    parity = check_parity(artifact, targets[target].open(artifact.path, threads=1), (samples[:4],))
    assert parity.max_steps == 0
    assert parity.output_error < 1e-5
    float_ops = {item.where.split("(")[-1].rstrip(")") for item in plan.frozen}
    inside = {"Attention", "Gelu"} if target == "litert" else set()  # float there, and faster so
    assert float_ops == {"LayerNormalization", "ReduceMean"} | inside
    path = export(program, tmp_path / f"float{artifact.path.suffix}", target).path
    got = targets[target].open(path, threads=1).run(samples[:4].numpy())
    torch.testing.assert_close(torch.from_numpy(got), program(samples[:4]), atol=1e-5, rtol=1e-4)
