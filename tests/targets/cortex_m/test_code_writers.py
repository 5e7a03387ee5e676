"""Functions, pools, softmax, products, resizing and moving in C: bit for bit the simulation, which is the interpreter's."""

import importlib.util
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from gossamer.apply.engine import apply
from gossamer.errors import UnsupportedOp
from gossamer.plan.quantization import plan_quantization
from gossamer.program.capture import capture
from gossamer.targets.cortex_m.emit import read_note
from gossamer.targets.cortex_m.run import COMPILER, EMULATOR, INSTALL, measure_memory, open_on
from gossamer.targets.export import export
from gossamer.targets.parity import check_parity
from gossamer.targets.simulate import simulate
from gossamer.targets.target import targets
from gossamer.targets.verify import verify

toolchain = pytest.mark.skipif(not (shutil.which(COMPILER) and shutil.which(EMULATOR)), reason=f"needs {INSTALL}")


def load(name):
    spec = importlib.util.spec_from_file_location(name, Path(__file__).parents[1] / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


NETWORKS = load("small_networks").NETWORKS


class Everything(nn.Module):
    """Each function and each way of moving once, between convolutions that need codes; one more input channel for each."""

    def __init__(self, functions):
        super().__init__()
        self.functions = functions
        self.layers = nn.ModuleList(nn.Conv2d(3, 4, 3, padding=1) for _ in functions)
        self.last = nn.Conv2d(4 * len(functions), 3, 1)

    def forward(self, x):
        return self.last(torch.cat([function(layer(x)) for function, layer in zip(self.functions, self.layers, strict=True)], 1))


def pooled(x):
    return F.avg_pool2d(x, 3, 1, 1, count_include_pad=False) - F.avg_pool2d(F.pad(x, (1, 1, 1, 1)), 3, 1)


def resized(x):
    half = F.interpolate(x, size=(5, 9), mode="bilinear")
    return F.interpolate(half, size=(10, 12), mode="bilinear", align_corners=True) + F.interpolate(half, size=(10, 12))


def moved(x):
    left, right = x.split(6, 3)
    y = torch.cat([right, left], 3).transpose(2, 3).reshape(-1, 4, 10, 12)
    return torch.cat([y[:, :, 1::2], y[:, :, ::2]], 2)


def multiplied(x):
    rows = x.flatten(2)
    return ((rows @ rows.transpose(1, 2)).softmax(-1) @ rows).reshape(-1, 4, 10, 12)


FUNCTIONS = [
    torch.tanh,
    F.silu,
    F.elu,
    F.gelu,
    lambda x: F.gelu(x, approximate="tanh"),
    lambda x: F.leaky_relu(x, 0.3),
    lambda x: x.softmax(1),
    lambda x: F.max_pool2d(x, 3, 1, 1).clamp(-0.3, 0.4),
    lambda x: x + x.mean((2, 3), keepdim=True),
    pooled,
    resized,
    moved,
    multiplied,
]


@pytest.fixture(scope="module")
def samples():
    return torch.randn(8, 3, 10, 12, generator=torch.Generator().manual_seed(0)) * 2


@pytest.fixture(scope="module")
def program(samples):
    torch.manual_seed(0)
    return capture(Everything(FUNCTIONS).eval(), samples[:2])


@toolchain
def test_everything_runs_on_codes_and_is_bit_exact(program, samples, tmp_path):
    plan = plan_quantization(program, samples, "cortex_m")
    assert not plan.frozen
    artifact = export(apply(program, plan), tmp_path / "net.c", "cortex_m")
    parity = check_parity(artifact, targets["cortex_m"].open(artifact.path, threads=1), (samples[:2],))
    assert parity.max_steps == 0
    assert parity.output_error == 0
    assert len(parity.layers) > 40
    assert "_f32" not in artifact.path.read_text()


@toolchain
def test_everything_runs_in_float(program, samples, tmp_path):
    path = export(program, tmp_path / "net.c", "cortex_m").path
    got = targets["cortex_m"].open(path, threads=1).run(samples[:2].numpy())
    np.testing.assert_allclose(got, program(samples[:2]).detach().numpy(), atol=1e-4)


def trained(name):
    make, shape = NETWORKS[name]
    torch.manual_seed(0)
    network, samples = make(), torch.randn(16, *shape, generator=torch.Generator().manual_seed(1))
    for _ in range(3):
        network(samples)  # gives the batch norm statistics
    return capture(network.eval(), samples[:2]), samples


@toolchain
@pytest.mark.parametrize("name", NETWORKS)
def test_whole_networks_of_integers(name, tmp_path):
    program, samples = trained(name)
    plan = plan_quantization(program, samples, "cortex_m")
    assert not plan.frozen
    quantized = apply(program, plan)
    artifact = export(quantized, tmp_path / "net.c", "cortex_m")
    if name == "mobilenet v3":
        report = verify(artifact, reference=program, data=(samples[:4], program(samples[:4]).argmax(1)), batch=2)
        assert report.passed, report.problems
    expected = simulate(quantized, samples[:2]).numpy()
    for core in ("cortex-m4", "cortex-m55"):
        np.testing.assert_array_equal(open_on(artifact.path, core).run(samples[:2].numpy()), expected)
    micro = pytest.importorskip("tflite_micro") and export(
        apply(program, plan_quantization(program, samples, "tflm")), tmp_path / "net.tflite", "tflm"
    )
    interpreter = targets["tflm"].open(micro.path, threads=1)
    np.testing.assert_array_equal(interpreter.run(samples[:2].numpy()), expected)
    assert measure_memory(artifact.path).ram_bytes < interpreter.arena_bytes()


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.act, self.second = nn.Conv2d(3, 3, 3, padding=1), nn.ReLU(), nn.Conv2d(3, 3, 1)

    def forward(self, x):
        y = self.second(self.act(self.first(x)))
        return (y + x) + y


def test_steps_have_the_names_of_the_users_layers(samples, tmp_path):
    torch.manual_seed(0)
    network = nn.Sequential()
    network.add_module("stage", nn.Sequential(Block(), nn.MaxPool2d(2)))
    network.add_module("head", nn.Sequential(nn.Flatten(), nn.Linear(90, 4)))
    program = capture(network.eval(), samples[:2])
    artifact = export(apply(program, plan_quantization(program, samples, "cortex_m")), tmp_path / "net.c", "cortex_m")
    steps = [(step["name"], step["op"]) for step in read_note(artifact.path)["steps"]]
    assert steps == [
        ("stage.0.first", "CONV_2D"), ("stage.0.second", "CONV_2D"), ("stage.0 (add)", "ADD"), ("stage.0 (add_1)", "ADD"),
        ("stage.1", "MAX_POOL_2D"), ("head.0", "RESHAPE"), ("head.1", "FULLY_CONNECTED"),
    ]  # fmt: skip
    if targets["cortex_m"].runtime_version is not None:
        report = verify(artifact, reference=program, data=(samples, program(samples).argmax(1)), batch=1)
        assert [layer.name for layer in report.chip.layers] == [name for name, _ in steps]
        assert "stage.0.second" in {row[0] for row in report.chip.layer_rows()}


def test_what_has_no_kernel_is_refused_by_name(tmp_path):
    class Seven(nn.Module):
        def forward(self, x):
            return x.reshape(-1, 2, 2, 2, 2, 2, 2, 2).permute(0, 7, 6, 5, 4, 3, 2, 1).contiguous().reshape(-1, 128) + 1

    with pytest.raises(UnsupportedOp, match="moving more than five axes"):
        export(capture(Seven().eval(), torch.zeros(2, 128)), tmp_path / "net.c", "cortex_m")
