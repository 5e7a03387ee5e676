"""Zeros that a plan makes stay zero through repair, training, removal of channels, folding, quantization and export."""

import zlib
from pathlib import Path

import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import numpy_helper
from torch import nn

from gossamer.apply.engine import apply
from gossamer.apply.repair import apply_repair, repair
from gossamer.apply.sparsify import sparsify
from gossamer.errors import PlanError
from gossamer.numerics.packing import pack_mask, pack_steps
from gossamer.plan.edits import QuantizeValue, RoundWeight, SparsifyWeight
from gossamer.plan.plan import Plan
from gossamer.plan.pruning import plan_pruning
from gossamer.plan.quantization import plan_quantization
from gossamer.plan.repair import Repair
from gossamer.plan.scheme import Scheme
from gossamer.plan.score import score
from gossamer.plan.sparsity import plan_sparsity
from gossamer.plan.weight_only import plan_weight_quantization
from gossamer.program.bundle import load, save
from gossamer.program.capture import capture
from gossamer.program.masks import check_zeros
from gossamer.targets.export import export
from gossamer.targets.verify import verify
from gossamer.train.fit import fit
from gossamer.train.recipe import Recipe
from networks import networks


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(2, 16, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(16)
        self.second = nn.Conv2d(16, 16, 3, padding=1, groups=2)
        self.third = nn.Conv2d(16, 12, 1)
        self.head = nn.Linear(12 * 9, 4)

    def forward(self, x):
        y = torch.relu(self.norm(self.first(x)))
        y = nn.functional.max_pool2d(torch.relu(self.second(y)), 2)
        return self.head(torch.relu(self.third(y)).flatten(1))


@pytest.fixture(scope="module")
def data():
    generator = torch.Generator().manual_seed(1)
    target = torch.arange(128) % 4
    return torch.randn(128, 2, 6, 6, generator=generator) + target.reshape(-1, 1, 1, 1) / 2, target


@pytest.fixture(scope="module")
def program(data):
    torch.manual_seed(0)
    program = capture(Net().eval(), data[0][:2])
    return fit(program, data, epochs=2, recipe=Recipe(learning_rate=0.02))


@pytest.fixture(scope="module")
def plan(program, data):
    return plan_sparsity(program, 0.7, method="sparsegpt", batches=data[0])


@pytest.fixture(scope="module")
def sparse(program, plan):
    return apply(program, plan)


def count(program):
    return sum(int((~mask).sum()) for mask in program.masks.values())


def assert_same_zeros(program, sparse):
    """The masks are those of `sparse`, and all their zeros are there."""
    assert program.masks.keys() == sparse.masks.keys() and sparse.masks
    assert all(torch.equal(program.masks[name], mask) for name, mask in sparse.masks.items())
    check_zeros(program)


def test_apply_leaves_its_argument(program, plan):
    before = {name: tensor.clone() for name, tensor in program.state.items()}
    digest = program.weights_digest()
    sparse = apply(program, plan)
    assert program.weights_digest() == digest
    assert program.masks == {}
    for name, tensor in sparse.state.items():
        mask = sparse.masks.get(name)
        assert torch.equal(tensor, before[name] if mask is None else before[name] * mask)
        assert tensor is not program.state[name]


@pytest.mark.parametrize("method", ["magnitude", "obc", "sparsegpt"])
def test_repair_brings_outputs_back_and_keeps_zeros(program, data, method):
    plan = plan_sparsity(program, 0.6, method=method, batches=data[0])
    sparse = apply(program, plan)
    repaired = repair(sparse, program, plan, data[0])
    assert_same_zeros(repaired, sparse)
    with torch.no_grad():
        wanted = program(data[0])
        before, after = ((network(data[0]) - wanted).square().mean() for network in (sparse, repaired))
    assert after < 0.4 * before
    means = repair(sparse, program, plan, data[0], method="mean")
    assert_same_zeros(means, sparse)
    assert torch.equal(means.state["third.weight"], sparse.state["third.weight"])


def test_the_dense_network_is_the_original_of_every_round(program, data):
    first = apply(program, plan_sparsity(program, 0.4))
    plan = plan_sparsity(first, 0.7)
    second = apply(first, plan)
    with torch.no_grad():
        wanted = program(data[0])
        errors = [(repair(second, original, plan, data[0])(data[0]) - wanted).square().mean() for original in (program, first)]
        assert errors[0] < errors[1] < (second(data[0]) - wanted).square().mean()


def test_a_repair_that_moves_zeros_is_refused(sparse):
    found = Repair("least_squares", {"third.weight": torch.ones(12, 16, 1, 1)}, {}, (), 1)
    with pytest.raises(PlanError, match="'third.weight' has .* numbers that its mask says are zero"):
        apply_repair(sparse, found)


@pytest.mark.parametrize(
    "recipe", [Recipe(learning_rate=0.05, weight_decay=0.1), Recipe(optimizer="adamw", learning_rate=0.01, weight_decay=0.1)]
)
def test_training_keeps_zeros(sparse, data, recipe, tmp_path):
    trained = fit(sparse, data, epochs=2, recipe=recipe, checkpoint=tmp_path / "run.safetensors")
    assert_same_zeros(trained, sparse)
    assert all(not torch.equal(trained.state[name], sparse.state[name]) for name in sparse.masks)
    again = fit(sparse, data, epochs=2, recipe=recipe, checkpoint=tmp_path / "run.safetensors")
    assert again.weights_digest() == trained.weights_digest()


def test_a_checkpoint_of_another_mask_is_another_run(sparse, program, data, tmp_path):
    path = tmp_path / "run.safetensors"
    dense = sparse.with_graph(sparse.graph, sparse.copy().state, masks={})
    fit(sparse, data, epochs=1, checkpoint=path)
    with pytest.raises(Exception, match="another training run \\(masks is"):
        fit(dense, data, epochs=1, checkpoint=path)


def test_removing_channels_slices_masks(sparse, data):
    small = apply(sparse, plan_pruning(sparse, score(sparse, "l2"), 0.4))
    check_zeros(small)
    assert small.masks.keys() == sparse.masks.keys()
    assert small.state["third.weight"].shape != sparse.state["third.weight"].shape
    assert all(mask.shape == small.state[name].shape for name, mask in small.masks.items())
    assert 0 < count(small) < count(sparse)
    trained = fit(small, data, epochs=1)
    assert_same_zeros(trained, small)


def onnx_zeros(path: Path):
    """Zeros of every initializer, read with onnx alone."""
    tensors = {tensor.name: numpy_helper.to_array(tensor) for tensor in onnx.load(path).graph.initializer}
    return {name.removesuffix("/q"): int((array == 0).sum()) for name, array in tensors.items() if array.ndim >= 2}


@pytest.mark.parametrize("rounding", ["second-order", "nearest"])
def test_quantization_and_export_keep_zeros(sparse, data, rounding, tmp_path):
    trained = fit(sparse, data, epochs=1)
    plan = plan_quantization(trained, data[0], scheme=Scheme(rounding=rounding))
    quantized = apply(trained, plan)
    assert_same_zeros(quantized, sparse)
    artifact = export(quantized, tmp_path / "model.onnx")
    found = onnx_zeros(artifact.path)
    for name, mask in sparse.masks.items():
        assert found[name] >= int((~mask).sum()) > 0
    report = verify(artifact, reference=trained, data=data)
    assert report.parity.max_steps <= 1
    assert not [problem for problem in report.problems if "step" in problem]
    assert report.compressed.sparsity == pytest.approx(sum(found.values()) / sum(quantized.state[name].numel() for name in found))
    assert set(report.layer_sparsity) == set(found)


@pytest.mark.parametrize("weights", ["int8", "uint4"])
def test_weights_in_blocks_keep_zeros(sparse, data, weights, tmp_path):
    quantized = apply(sparse, plan_weight_quantization(sparse, weights=weights, calibration=data[0]))
    assert_same_zeros(quantized, sparse)
    artifact = export(quantized, tmp_path / "model.onnx")
    assert artifact.sparsity()["head.weight"] >= float((~sparse.masks["head.weight"]).double().mean())


def test_float_export_shows_zeros_and_what_they_are_good_for(sparse, program, data, tmp_path):
    artifact = export(sparse, tmp_path / "model.onnx")
    found = onnx_zeros(artifact.path)
    assert all(found[name] == int((~mask).sum()) for name, mask in sparse.masks.items())
    report = verify(artifact, reference=program, data=data)
    assert report.sparse
    assert report.compressed.sparsity == pytest.approx(0.7, abs=0.01)
    assert 0 < report.compressed.download_bytes < report.original.download_bytes
    assert report.compressed.download_bytes == len(zlib.compress(artifact.path.read_bytes(), 6))
    assert "70 % of the weights are zero. Dense kernels multiply zeros like any number" in str(report)
    assert {"sparsity", "download_bytes"} <= {row.name for row in report.rows()}
    assert type(report).from_dict(report.to_dict()) == report


def test_bundles_of_sparse_and_quantized_networks(sparse, data, tmp_path):
    for network in (sparse, apply(sparse, plan_quantization(sparse, data[0]))):
        again = load(save(network, tmp_path / "m.gossamer"))
        assert_same_zeros(again, sparse)
        with torch.no_grad():
            assert torch.equal(again(data[0]), network(data[0]))


def test_a_plan_that_moves_codes_off_zero_is_refused(sparse, data):
    plan = plan_quantization(sparse, data[0])
    known = next(edit for edit in plan.edits if isinstance(edit, QuantizeValue) and edit.value == "third.weight")
    steps = RoundWeight("third.weight", pack_steps(torch.ones(12, 16, 1, 1)))
    with pytest.raises(PlanError, match="moves zeros of the mask of 'third.weight' off zero"):
        apply(sparse, Plan((known, steps), sparse.digest, target=plan.target))


def test_bad_edits(program, sparse, data):
    with pytest.raises(PlanError, match="'nothing' zero, which is no weight"):
        sparsify(program, [SparsifyWeight("nothing", "")])
    with pytest.raises(PlanError, match="damaged masks|a mask of"):
        sparsify(program, [SparsifyWeight("third.weight", "????")])
    with pytest.raises(PlanError, match="a mask of 1 bytes for a weight of shape"):
        sparsify(program, [SparsifyWeight("third.weight", pack_mask(torch.ones(3)))])
    quantized = apply(sparse, plan_quantization(sparse, data[0]))
    with pytest.raises(PlanError, match="quantized already"):
        sparsify(quantized, [])
    with pytest.raises(PlanError, match="make the float network sparse"):
        plan_sparsity(quantized, 0.9)


@settings(max_examples=4)
@given(networks(), st.sampled_from(["layerwise", "erk"]), st.sampled_from(["unstructured", "4x1"]))
def test_random_networks_from_zeros_to_codes(tmp_path_factory, network, allocation, pattern):
    """Zeros, repair, removal of channels, codes, file: simulated == executed, and no zero is lost on the way."""
    program = capture(network, torch.zeros(2, 3, 8, 8))
    inputs = torch.randn(48, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    plan = plan_sparsity(program, 0.5, allocation=allocation, pattern=pattern)
    sparse = repair(apply(program, plan), program, plan, inputs)
    small = apply(sparse, plan_pruning(sparse, score(sparse, "l2"), 0.3))
    check_zeros(small)
    coded = apply(small, plan_quantization(small, inputs))
    artifact = export(coded, tmp_path_factory.mktemp("random") / "model.onnx")
    found = onnx_zeros(artifact.path)
    for name, mask in coded.masks.items():
        assert found.get(name, mask.numel()) >= int((~mask).sum())
    report = verify(artifact, reference=small, data=(inputs, torch.arange(48) % 5))
    assert not [problem for problem in report.problems if "step" in problem or "differ" in problem]
