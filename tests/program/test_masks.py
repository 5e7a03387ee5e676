"""Masks: zero in memory, zero gradient, kept by copies, files and devices."""

import json
import struct

import pytest
import torch
from torch import nn

from gossamer.errors import ConfigError, FileError, PlanError
from gossamer.program.bundle import load, save
from gossamer.program.capture import capture
from gossamer.program.fold import fold_batch_norms
from gossamer.program.masks import check_zeros, hold_zeros, masks_digest
from gossamer.program.program import Program


@pytest.fixture
def program():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3))
    return masked(capture(model.eval(), torch.zeros(2, 2, 6, 6)), ("0.weight", "4.weight"))


def masked(program, names, share=0.6):
    """A copy with random masks."""
    generator = torch.Generator().manual_seed(1)
    masks = {name: torch.rand(program.state[name].shape, generator=generator) > share for name in names}
    fresh = program.with_graph(program.graph, program.copy().state, masks=masks)
    hold_zeros(fresh)
    return fresh


def zeros(program):
    return {name: int((program.state[name] == 0).sum()) for name in program.masks}


def test_masked_weights_have_no_gradient(program):
    program.train()
    program(torch.randn(4, 2, 6, 6)).square().sum().backward()
    for name, mask in program.masks.items():
        gradient = program.state[name].grad
        assert not gradient[~mask].any()
        assert gradient[mask].any()


@pytest.mark.parametrize("make", [
    lambda weights: torch.optim.SGD(weights, lr=0.1, momentum=0.9, weight_decay=0.1, nesterov=True),
    lambda weights: torch.optim.AdamW(weights, lr=0.1, weight_decay=0.1),
    lambda weights: torch.optim.RMSprop(weights, lr=0.01, momentum=0.9),
])  # fmt: skip
def test_an_ordinary_training_loop_keeps_zeros(program, make):
    program.train()
    optimizer = make(program.parameters())
    before = {name: program.state[name].clone() for name in program.masks}
    for _ in range(3):
        optimizer.zero_grad()
        program(torch.randn(4, 2, 6, 6)).square().mean().backward()
        optimizer.step()
    check_zeros(program)
    assert all(not torch.equal(before[name], program.state[name]) for name in program.masks)


def test_masks_go_along(program):
    twin = program.copy()
    assert twin.masks.keys() == program.masks.keys()
    assert all(torch.equal(twin.masks[name], mask) and twin.masks[name] is not mask for name, mask in program.masks.items())
    assert masks_digest(twin) == masks_digest(program) != ""
    assert "2 masks" in repr(program)
    assert program.to(torch.float64).masks["0.weight"].dtype == torch.bool
    assert "masks" not in "".join(program.state_dict())


def test_cost_counts_masked_weights(program):
    cost = program.cost()
    assert cost.masked == sum(int((~mask).sum()) for mask in program.masks.values())
    assert cost.sparsity == cost.masked / cost.params
    assert program.with_graph(program.graph, masks={}).cost() == type(cost)(cost.params, cost.macs, cost.size_bytes, cost.peak_memory_bytes)


def test_folded_batch_norms_keep_zeros(program):
    folded = fold_batch_norms(program)
    assert folded.masks.keys() == program.masks.keys()
    check_zeros(folded)
    inputs = program.example_inputs(3)
    torch.testing.assert_close(folded(*inputs), program(*inputs))


def test_a_bundle_keeps_masks(program, tmp_path):
    again = load(save(program, tmp_path / "m.gossamer"))
    assert masks_digest(again) == masks_digest(program)
    assert (again.digest, again.weights_digest()) == (program.digest, program.weights_digest())
    check_zeros(again)
    hidden = save(program.with_graph(program.graph, masks={}), tmp_path / "dense.gossamer")
    assert load(hidden).masks == {}


def edited(path, change):
    """Rewrite the header of a bundle."""
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    outer = json.loads(data[8 : 8 + length])
    header = json.loads(outer["__metadata__"]["gossamer"].partition("\n")[0])
    change(header)
    outer["__metadata__"]["gossamer"] = json.dumps(header)
    text = json.dumps(outer).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + length :])
    return path


@pytest.mark.parametrize("value", ["", "AAAA", "not base64!", 7, None, ["x"], "eJwDAAAAAAE="])
def test_hostile_masks_are_refused(program, tmp_path, value):
    path = edited(save(program, tmp_path / "m.gossamer"), lambda header: header["masks"].update({"0.weight": value}))
    with pytest.raises(FileError, match="damaged or hostile"):
        load(path)


@pytest.mark.parametrize("masks", [7, {"nothing": "AAAA"}, ["0.weight"]])
def test_hostile_tables_of_masks_are_refused(program, tmp_path, masks):
    path = edited(save(program, tmp_path / "m.gossamer"), lambda header: header.update(masks=masks))
    with pytest.raises(FileError, match="damaged or hostile"):
        load(path)


def test_masks_that_do_not_hold_are_refused(program, tmp_path):
    path = save(program, tmp_path / "m.gossamer")
    texts = {}
    edited(path, lambda header: texts.update(header["masks"]))
    other = save(masked(program.with_graph(program.graph, masks={}), ("0.weight",), 0.9), tmp_path / "other.gossamer")
    dense = program.with_graph(program.graph, {"0.weight": nn.Parameter(torch.ones(4, 2, 3, 3))}, masks={})
    target = edited(save(dense, other), lambda header: header.update(masks={"0.weight": texts["0.weight"]}))
    with pytest.raises(FileError, match="numbers that its mask says are zero"):
        load(target)


def test_writing_past_a_mask_is_found(program, tmp_path):
    with torch.no_grad():
        program.state["0.weight"].fill_(1.0)
    with pytest.raises(PlanError, match=r"'0.weight' has \d+ numbers that its mask says are zero; call"):
        save(program, tmp_path / "m.gossamer")
    hold_zeros(program)
    check_zeros(program)
    assert zeros(program)["0.weight"] == int((~program.masks["0.weight"]).sum())


@pytest.mark.parametrize("mask", [torch.ones(4, 2, 3, 3), torch.ones(3, dtype=torch.bool)])
def test_a_mask_must_fit_its_weight(program, mask):
    with pytest.raises(ConfigError, match="bool and of the shape of a weight"):
        Program(program.graph, program.inputs, program.state, masks={"0.weight": mask})
    with pytest.raises(ConfigError, match="nothing"):
        Program(program.graph, program.inputs, program.state, masks={"nothing": mask})
