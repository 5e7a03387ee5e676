"""Whole networks: half of all channels removed and proven, one training step, and the ONNX file computes the same.

A sample of benchmarks/coverage.py, which does this for two hundred networks. Those of optional packages are skipped without them.
"""

import pytest
import torch
from torch import nn

from gossamer.apply.engine import apply
from gossamer.coupling.share import prunable_macs_share
from gossamer.plan.pruning import plan_pruning
from gossamer.plan.score import score
from gossamer.program.capture import capture, relative_error
from gossamer.targets.export import export
from gossamer.targets.onnx.run import open_session
from own_networks import Decoder, GruClassifier, LstmClassifier, TextEncoder, UNet
from zoo import build, prepare, stir

NOISE = pytest.mark.filterwarnings("ignore")  # of the packages: deprecations, and what export says about recurrent weights


class NormedAlone(nn.Module):
    """wav2vec2: a group norm with one group per channel."""

    def __init__(self):
        super().__init__()
        self.stem, self.norm, self.head = nn.Conv1d(2, 8, 3), nn.GroupNorm(8, 8), nn.Conv1d(8, 2, 1)

    def forward(self, x):
        return self.head(self.norm(self.stem(x)))


def prune_half(model, inputs, output=None):
    """The network with half of every group, its program before, and the share of MACs that could shrink."""
    program = capture(model.eval(), inputs, output=output)
    scores = score(program, "l1")
    small = apply(program, plan_pruning(program, scores, 0.5, mode="layerwise"))  # proves that masked == removed
    return program, small, prunable_macs_share(program, scores.analysis)


def check_trains(small):
    """One step of gradient descent reaches every parameter and lowers the loss."""
    small.train()
    inputs = small.example_inputs(batch=4)

    def loss():
        torch.manual_seed(0)
        return small(*inputs).square().mean()

    before = loss()
    before.backward()
    parameters = list(small.parameters())
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in parameters)
    size = torch.stack([parameter.grad.norm() for parameter in parameters]).norm()
    with torch.no_grad():
        for parameter in parameters:
            parameter -= 1e-3 / size * parameter.grad
    assert loss() < before
    small.eval()


def check_export(small, path):
    """The file has the pruned sizes, and ONNX Runtime computes what the program computes."""
    inputs = small.example_inputs(batch=3)
    export(small, path)
    assert path.stat().st_size < 1.2 * small.cost().size_bytes + 200 * len(small.graph.nodes) + 500
    got = torch.from_numpy(open_session(path, threads=1).run(*(value.numpy() for value in inputs)))
    with torch.no_grad():
        assert relative_error(got, small(*inputs)) <= 1e-4


@NOISE
@pytest.mark.parametrize(
    ("network", "inputs"),
    [
        (lambda: UNet(width=4), lambda: torch.randn(2, 3, 16, 16)),
        (LstmClassifier, lambda: torch.randn(2, 6, 12)),
        (GruClassifier, lambda: torch.randn(2, 6, 12)),
        (TextEncoder, lambda: torch.randint(0, 20, (2, 7))),
        (Decoder, lambda: torch.randint(0, 20, (2, 7))),
        (NormedAlone, lambda: torch.randn(2, 2, 9)),
    ],
    ids=["UNet", "LSTM", "GRU", "TextEncoder", "Decoder", "NormedAlone"],
)
def test_own_networks(network, inputs, tmp_path):
    torch.manual_seed(0)
    model = network()
    stir(model)
    program, small, share = prune_half(model, inputs())
    assert share == 1.0
    assert small.cost().macs < 0.6 * program.cost().macs
    assert small.cost().params < 0.6 * program.cost().params
    check_trains(small)
    check_export(small, tmp_path / "model.onnx")


@NOISE
@pytest.mark.parametrize("name", ["hf:bert", "hf:gpt2", "hf:llama", "own:fpn_resnet18", "tv:shufflenet_v2_x0_5", "lcnet_050"])
def test_networks_of_other_packages(name, tmp_path):
    package = "transformers" if name.startswith("hf:") else "torchvision" if ":" in name else "timm"
    prepare()
    pytest.importorskip(package, reason=f"{package} is optional; benchmarks/coverage.py measures its networks")
    torch.manual_seed(0)
    sample = build(name)
    program, small, share = prune_half(sample.model, sample.inputs, sample.output)
    assert share >= 0.9
    assert small.cost().macs < 0.5 * program.cost().macs
    check_trains(small)
    check_export(small, tmp_path / "model.onnx")


def test_stirring_leaves_no_constant_weight():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.PReLU(4))
    nn.init.zeros_(model[0].weight)
    stir(model)
    for name, tensor in model.state_dict().items():
        assert "num_batches" in name or tensor.unique().numel() == tensor.numel()
    assert (model[1].running_var > 0).all()


class DecomposedBias(nn.Module):
    """mvitv2: products of queries with tables of positions along each axis, picked by scaled coordinates that skip rows."""

    def __init__(self):
        super().__init__()
        self.query, self.head = nn.Linear(3, 8), nn.Linear(4, 2)
        self.rows, self.columns = nn.Parameter(torch.randn(9, 8)), nn.Parameter(torch.randn(9, 8))

    def forward(self, x):
        places = torch.arange(4)[:, None] * 1.0 - torch.arange(2)[None, :] * 2.0 + 3.0
        query = self.query(x).reshape(-1, 1, 4, 4, 8)
        vertical = torch.einsum("byhwc,hkc->byhwk", query, self.rows[places.long()])
        horizontal = torch.einsum("byhwc,wkc->byhwk", query, self.columns[places.long()])
        return self.head((vertical.unsqueeze(-1) + horizontal.unsqueeze(-2)).flatten(4)).mean((1, 2, 3))


def test_products_with_picked_rows_of_tables(tmp_path):
    torch.manual_seed(0)
    _, small, share = prune_half(DecomposedBias(), torch.randn(2, 16, 3))
    assert share > 0.8  # all but the head
    assert small.state["rows"].shape == small.state["columns"].shape == (9, 4)
    check_trains(small)
    check_export(small, tmp_path / "model.onnx")


@pytest.mark.parametrize("indexing", ["ij", "xy"])
def test_grids_of_coordinates_are_exported(indexing, tmp_path):
    class Grids(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.head = nn.Conv2d(1, 6, 1), nn.Conv2d(6, 2, 1)

        def forward(self, x):
            first, second = torch.meshgrid(torch.arange(3.0), torch.arange(4.0), indexing=indexing)
            return self.head(self.stem(x).relu() * (first + 2 * second).reshape(3, 4))

    _, small, share = prune_half(Grids(), torch.randn(2, 1, 3, 4))
    assert share == 1.0
    check_export(small, tmp_path / "model.onnx")


class EmptyPart(nn.Module):
    """qwen3_vit: the part in front of the patches may be empty; gemma4_vit: rows of a table picked as a product."""

    def __init__(self):
        super().__init__()
        self.stem, self.head, self.table = nn.Linear(3, 8), nn.Linear(8, 2), nn.Parameter(torch.randn(5, 8))

    def forward(self, x):
        y = self.stem(x)
        y = torch.cat([y[:, :0], y[:, 0:].relu()], dim=1)
        return self.head(y + nn.functional.one_hot(torch.arange(4) % 3, 5).float() @ self.table)


def test_empty_parts_and_picked_rows(tmp_path):
    torch.manual_seed(0)
    _, small, share = prune_half(EmptyPart(), torch.randn(2, 4, 3))
    assert share == 1.0
    assert small.cost().params == 3 * 4 + 4 + 4 * 2 + 2 + 5 * 4
    check_export(small, tmp_path / "model.onnx")


class ComputedScale(nn.Module):
    """deepseek_vit, gemma: the scale of a norm is computed from a parameter."""

    def __init__(self):
        super().__init__()
        self.stem, self.head, self.scale = nn.Linear(3, 8), nn.Linear(8, 2), nn.Parameter(torch.randn(8))

    def forward(self, x):
        return self.head(nn.functional.rms_norm(self.stem(x), (8,), 1.0 + self.scale.to(torch.float32)))


def test_computed_scales_of_norms_shrink(tmp_path):
    torch.manual_seed(0)
    _, small, _ = prune_half(ComputedScale(), torch.randn(2, 3))
    assert small.state["scale"].shape == (4,)
    check_trains(small)
    check_export(small, tmp_path / "model.onnx")
