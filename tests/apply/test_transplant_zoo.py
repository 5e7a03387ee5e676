"""Models of timm and torchvision, eager in and eager out; and their programs on a machine that has neither package."""

import os
import subprocess
import sys
from importlib.util import find_spec

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from gossamer.apply.eager import prune
from gossamer.apply.engine import apply
from gossamer.errors import TransplantError
from gossamer.plan.pruning import plan_pruning
from gossamer.plan.score import score
from gossamer.program.bundle import save
from gossamer.program.capture import capture
from zoo import timm_model, torchvision_model

pytestmark = pytest.mark.skipif(not (find_spec("timm") and find_spec("torchvision")), reason="needs timm and torchvision")
SMALL = {"vit_tiny_patch16_224": {"img_size": 32, "depth": 2}, "convnext_atto": {"depths": (1, 1, 1, 1)}, "mobilenetv3_small_100": {}}


@pytest.mark.parametrize("name", SMALL)
def test_timm(name):
    model, _ = timm_model(name, **SMALL[name])
    assert_prunes_and_trains(model, 32)


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2"])
def test_torchvision(name):
    assert_prunes_and_trains(torchvision_model(name)[0], 32)


def test_vgg_with_a_small_head():
    model, _ = torchvision_model("vgg11_bn")
    model.classifier = nn.Sequential(nn.Linear(512 * 7 * 7, 16), nn.ReLU(), nn.Linear(16, 4)).eval()
    assert_prunes_and_trains(model, 32)


def test_densenet():
    model, _ = torchvision_model("densenet121")  # declares torchvision's ops, which its import needs
    assert_prunes_and_trains(type(model)(8, (2, 2), 16, num_classes=10).eval(), 32)


def assert_prunes_and_trains(model, size):
    """Prune proves that the module computes what the program computes; the rest is what a user does next."""
    torch.manual_seed(0)
    x = torch.randn(2, 3, size, size)
    small = prune(model, x, 0.5)
    assert type(small) is type(model)
    assert sum(p.numel() for p in small.parameters()) < 0.8 * sum(p.numel() for p in model.parameters())
    loss = small.train()(x).square().mean()
    loss.backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in small.parameters() if p.requires_grad)


def test_state_dict_through_a_file(tmp_path):
    model, _ = timm_model("vit_tiny_patch16_224", **SMALL["vit_tiny_patch16_224"])
    x = torch.randn(2, 3, 32, 32)
    small = prune(model, x, 0.5)
    save_file(small.state_dict(), tmp_path / "small.safetensors")
    again = prune(model, x, 0.5)  # the same plan: sizes are equal
    for parameter in again.parameters():
        torch.nn.init.zeros_(parameter)
    again.load_state_dict(load_file(tmp_path / "small.safetensors"))
    assert torch.equal(again(x), small(x))


def test_a_split_in_unequal_halves_is_named_or_kept_whole():
    """ShuffleNet takes halves by chunk(2), which cannot cut 7 and 9."""
    model, _ = torchvision_model("shufflenet_v2_x0_5")
    x = torch.randn(2, 3, 64, 64)
    with pytest.raises(TransplantError, match=r"in 'stage2.1' at shufflenetv2.py:94"):
        prune(model, x, 0.5)
    small = prune(model, x, 0.5, hard_coded="keep")
    assert small.stage2[1].branch2[0].in_channels == model.stage2[1].branch2[0].in_channels
    assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in model.parameters())


LOAD = """
import sys
for name in ("timm", "torchvision"):
    sys.modules[name] = None  # as if it were not installed
import torch
from safetensors.torch import load_file
import gossamer
program = gossamer.load(sys.argv[1])
saved = load_file(sys.argv[2])
with torch.no_grad():
    difference = (program(saved["x"]) - saved["y"]).norm() / saved["y"].norm()
assert difference < 1e-6, difference
program.train()(saved["x"]).sum().backward()
assert not [name for name in sys.modules if name.split(".")[0] in ("timm", "torchvision", "torch_pruning") and sys.modules[name]]
print("ran", type(program).__name__)
"""


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "convnext_atto"])
def test_a_bundle_runs_without_the_models_package(name, tmp_path):
    model, _ = timm_model(name, **SMALL[name])
    x = torch.randn(2, 3, 32, 32)
    program = capture(model, x)
    small = apply(program, plan_pruning(program, score(program), 0.5))
    path = save(small, tmp_path / "small.gossamer")
    with torch.no_grad():
        save_file({"x": x, "y": small(x)}, tmp_path / "example.safetensors")
    command = [sys.executable, "-c", LOAD, str(path), str(tmp_path / "example.safetensors")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "ran Program"
