import json
import struct

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from gossamer.errors import FileError
from gossamer.program.bundle import load, save
from gossamer.program.capture import capture
from gossamer.train.checkpoint import Checkpoint, optimizer_tensors, weights_digest

RUN = {"network": "abc", "seed": 0, "recipe.alpha": 0.1 + 0.2}


def trained(kind):
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    optimizer = kind(module.parameters())
    for _ in range(3):
        module(torch.randn(5, 3)).square().sum().backward()
        optimizer.step()
    names = [name for name, _ in module.named_parameters()]
    return module, optimizer, names


def weights(module):
    return dict(module.named_parameters()) | dict(module.named_buffers())


def sgd(parameters):
    return torch.optim.SGD(parameters, lr=0.1, momentum=0.9)


def adamw(parameters):
    return torch.optim.AdamW(parameters, lr=0.1)


@pytest.mark.parametrize("kind", [sgd, adamw])
def test_round_trip_restores_every_bit(kind, tmp_path):
    module, optimizer, names = trained(kind)
    path = tmp_path / "c.safetensors"
    Checkpoint(RUN, 2, weights(module), optimizer_tensors(optimizer, names), {"scale": 65536.0}).save(path)
    found = Checkpoint.load(path, RUN)
    assert (found.epoch, found.scaler) == (2, {"scale": 65536.0})
    fresh = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    second = kind(fresh.parameters())
    found.restore(path, weights(fresh), second, names)
    inputs = torch.randn(5, 3)
    for one, steps in ((module, optimizer), (fresh, second)):
        steps.zero_grad()
        one(inputs).square().sum().backward()
        steps.step()
    for name, tensor in weights(module).items():
        assert torch.equal(tensor, weights(fresh)[name]), name


def test_a_run_with_another_setting_is_refused(tmp_path):
    module, optimizer, names = trained(sgd)
    Checkpoint(RUN, 1, weights(module), optimizer_tensors(optimizer, names)).save(tmp_path / "c")
    with pytest.raises(FileError, match=r"belongs to another training run \(seed is 0 there, 1 here\); delete it, or name another file"):
        Checkpoint.load(tmp_path / "c", RUN | {"seed": 1})
    with pytest.raises(FileError, match=r"recipe.new is None there, 3 here"):
        Checkpoint.load(tmp_path / "c", RUN | {"recipe.new": 3})


def test_damaged_and_foreign_files_are_refused(tmp_path):
    module, optimizer, names = trained(sgd)
    path = tmp_path / "c.safetensors"
    checkpoint = Checkpoint(RUN, 1, weights(module), optimizer_tensors(optimizer, names))
    checkpoint.save(path)
    whole = path.read_bytes()
    for length in (0, 4, 100, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(FileError, match="is truncated or no training checkpoint"):
            Checkpoint.load(path, RUN)
    save_file({"a": torch.zeros(1)}, path)
    with pytest.raises(FileError, match="is a safetensors file, but no training checkpoint"):
        Checkpoint.load(path, RUN)
    program = save(capture(nn.Linear(3, 2), torch.zeros(2, 3)), tmp_path / "program.gossamer")
    with pytest.raises(FileError, match="is no training checkpoint; name another file; this one was left as it is"):
        Checkpoint.load(program, RUN)
    checkpoint.save(path)
    with pytest.raises(FileError, match="holds no program"):
        load(path)
    with pytest.raises(FileError, match="does not exist"):
        Checkpoint.load(tmp_path / "none", RUN)


@pytest.mark.parametrize("damage", [lambda h: h.pop("run"), lambda h: h.update(run=3), lambda h: h.update(epoch="two")])
def test_a_damaged_header_is_refused(damage, tmp_path):
    header = {"kind": "training checkpoint", "format": 1, "run": RUN, "epoch": 1, "scaler": None}
    damage(header)
    save_file({"weights/a": torch.zeros(1)}, tmp_path / "c", metadata={"gossamer": json.dumps(header)})
    with pytest.raises(FileError, match="is a damaged training checkpoint"):
        Checkpoint.load(tmp_path / "c", RUN)


def test_missing_weights_are_named(tmp_path):
    module, optimizer, names = trained(sgd)
    kept = weights(module)
    del kept["1.running_mean"]
    checkpoint = Checkpoint(RUN, 1, kept, optimizer_tensors(optimizer, names))
    with pytest.raises(FileError, match="lacks the weight '1.running_mean'"):
        checkpoint.restore(tmp_path / "c", weights(module), optimizer, names)


def test_no_place_to_write(tmp_path):
    checkpoint = Checkpoint(RUN, 1, {"a": torch.zeros(1)}, {})
    (tmp_path / "file").write_text("")
    with pytest.raises(FileError, match="cannot be written"):
        checkpoint.save(tmp_path / "file" / "c")
    with pytest.raises(FileError, match="cannot be written"):
        checkpoint.save(tmp_path)


def test_the_file_is_plain_safetensors(tmp_path):
    Checkpoint(RUN, 1, {"a": torch.zeros(2)}, {"a": {"momentum_buffer": torch.ones(2)}}).save(tmp_path / "c")
    content = (tmp_path / "c").read_bytes()
    header = json.loads(content[8 : 8 + struct.unpack("<Q", content[:8])[0]])
    assert set(header) == {"__metadata__", "weights/a", "optimizer/a/momentum_buffer"}


def test_weights_digest_sees_values_names_and_shapes():
    module = nn.Linear(2, 3)
    digest = weights_digest(module)
    with torch.no_grad():
        module.bias[1] += 1e-6
    assert weights_digest(module) != digest
    module.bias = nn.Parameter(module.bias.reshape(3, 1))
    assert weights_digest(module) != weights_digest(nn.Linear(2, 3))
