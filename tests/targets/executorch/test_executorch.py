"""Networks as .pte files on ExecuTorch's own runtime: float, pruned and quantized, and what is refused."""

import re
import sys
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from torch import nn

import gossamer as gs
from gossamer.errors import FileError, GossamerError, MissingRuntime, UnsupportedOp
from gossamer.targets.executorch.packages import INSTALL, part
from gossamer.targets.target import targets

INSTALLED = find_spec("executorch") is not None
needs_it = pytest.mark.skipif(not INSTALLED, reason=f"executorch is not installed; run: {INSTALL}")


class Small(nn.Module):
    """Every kind of layer that runs on codes, one of them read twice, and a depthwise one."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, stride=2, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2))
        self.depthwise = nn.Sequential(nn.Conv2d(16, 16, 3, padding=1, groups=16), nn.ReLU6())
        self.pointwise = nn.Conv2d(16, 16, 1)
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 5))

    def forward(self, x):
        x = self.stem(x)
        y = self.pointwise(self.depthwise(x))
        return self.head(torch.cat([(x + y).relu(), y], 1))


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    images = torch.randn(70, 3, 24, 24)
    model = Small()
    model(images)  # gives the batch norm statistics
    return gs.capture(model.eval(), images[:2]), images


@pytest.fixture(scope="module")
def plain(network, tmp_path_factory):
    return gs.export(network[0], tmp_path_factory.mktemp("float") / "plain.pte", "executorch")


@pytest.fixture(scope="module")
def coded(network, tmp_path_factory):
    program, images = network
    quantized = gs.apply(program, gs.plan_quantization(program, images, "executorch"))
    return gs.export(quantized, tmp_path_factory.mktemp("int8") / "coded.pte", "executorch")


def test_a_missing_package_comes_with_the_command(network, tmp_path, monkeypatch):
    for name in list(sys.modules):
        if name.partition(".")[0] == "executorch":
            monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setitem(sys.modules, "executorch", None)
    path = tmp_path / "net.pte"
    with pytest.raises(MissingRuntime, match=re.escape(INSTALL)):
        gs.export(network[0], path, "executorch")
    assert not path.exists()
    path.write_bytes(b"0000ET12" + bytes(100))
    with pytest.raises(MissingRuntime, match=r"writing and running .pte files \(.*needs the package 'executorch'"):
        targets["executorch"].open(path, threads=1)


@needs_it
def test_a_float_network_at_any_batch_size(network, plain):
    program, images = network
    runner = targets["executorch"].open(plain.path, threads=1)
    for number in (1, 3, 64, 70):  # the last one is more than a file takes at once
        found = runner.run(images[:number].numpy())
        np.testing.assert_allclose(found, program(images[:number]).detach(), rtol=1e-4, atol=1e-5)


@needs_it
def test_a_quantized_network_is_bit_exact_and_runs_on_codes_alone(network, plain, coded):
    from gossamer.targets.executorch.kernels import Kernel, kernels_of

    program, images = network
    report = gs.verify(coded, reference=plain, data=(images, program(images).argmax(1)), batch=8)
    assert report.passed, report.problems
    assert report.parity.max_steps == 0
    compared = {layer.name for layer in report.parity.layers}
    assert compared == {name for name in coded.program.quantizers if name not in coded.program.state}
    assert report.versions["executorch"]
    kernels = kernels_of(coded.path)
    counts = {kind: sum(kernel == Kernel(kind, "qint8") for kernel in kernels) for kind in {kernel.kind for kernel in kernels}}
    assert counts | {"Convert": 1} == counts | {"Convert": 1, "Conv2d": 2, "DepthwiseConv2d": 1, "FullyConnected": 1, "Add": 1}
    floats = [kernel for kernel in kernels if not kernel.integer]
    assert floats == [Kernel("Convert", "fp32")] * 3  # what is joined goes through floats to other codes; so does what is handed out
    assert not any(kernel.integer for kernel in kernels_of(plain.path))


@needs_it
def test_files_are_about_as_large_as_their_weights(coded):
    weights = sum(tensor.numel() for name, tensor in coded.program.state.items() if name in coded.program.quantizers)
    assert coded.size_bytes < weights + 16_000


@needs_it
def test_threads_may_change_from_runner_to_runner(network, plain):
    program, images = network
    pool = part("extension.pybindings.portable_lib")
    one, two = (targets["executorch"].open(plain.path, threads=threads) for threads in (1, 2))
    for runner, threads in ((one, 1), (two, 2), (one, 1), (two, 2)):
        np.testing.assert_allclose(runner.run(images[:2].numpy()), program(images[:2]).detach(), rtol=1e-4, atol=1e-5)
        assert pool._threadpool_get_thread_count() == threads


@needs_it
def test_a_pruned_network_with_several_inputs_and_a_fixed_batch(tmp_path):
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(8, 32), nn.Linear(32, 4)

        def forward(self, x, y):
            return self.second((self.first(x) * y[:, None]).relu())

    torch.manual_seed(0)
    inputs = torch.randn(3, 8), torch.rand(3)
    program = gs.capture(Two().eval(), inputs, dynamic_batch=False)
    pruned = gs.apply(program, gs.plan_pruning(program, gs.score(program), budget=gs.Budget(params=0.6)))
    artifact = gs.export(pruned, tmp_path / "net.pte", "executorch")
    runner = targets["executorch"].open(artifact.path, threads=1)
    np.testing.assert_allclose(runner.run(*(part.numpy() for part in inputs)), pruned(*inputs).detach(), rtol=1e-4, atol=1e-5)
    assert artifact.program.cost().params < program.cost().params


@needs_it
def test_what_has_no_kernel_is_refused_by_name(tmp_path):
    class Strange(nn.Module):
        def forward(self, x):
            return torch.nn.functional.adaptive_max_pool2d(x.sin(), 3).relu()

    program = gs.capture(Strange().eval(), torch.randn(2, 3, 8, 8))
    with pytest.raises(
        UnsupportedOp, match=r"no executorch rule for aten.adaptive_max_pool2d.*test_executorch.py:\d+.*; rewrite that line, or export"
    ):
        gs.export(program, tmp_path / "net.pte", "executorch")
    assert not (tmp_path / "net.pte").exists()


@needs_it
def test_codes_that_only_floats_could_run_are_refused_with_the_way_out(tmp_path):
    class Whole(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Conv2d(3, 8, 3), nn.Linear(8, 4)

        def forward(self, x):  # an int between two layers, so that ExecuTorch's passes are asked, which know means that keep their axes
            return self.second((self.first(x).mean((2, 3)) * 10).int().float())

    torch.manual_seed(0)
    images = torch.randn(8, 3, 6, 6)
    program = gs.capture(Whole().eval(), images[:2])
    coded = gs.apply(program, gs.plan_quantization(program, images, "executorch"))
    with pytest.raises(UnsupportedOp, match=r"no integer executorch rule for aten.mean.dim at .*; rewrite that line, or export"):
        gs.export(coded, tmp_path / "net.pte", "executorch")


@needs_it
def test_convolutions_over_three_axes_get_no_codes():
    torch.manual_seed(0)
    model, volumes = nn.Sequential(nn.Conv3d(2, 4, 3), nn.Flatten(), nn.Linear(32, 3)).eval(), torch.randn(8, 2, 4, 4, 4)
    plan = gs.plan_quantization(gs.capture(model, volumes[:2]), volumes, "executorch")
    assert ("0 (Conv)", "executorch has no integer kernel for a convolution over three axes") in [(f.where, f.reason) for f in plan.frozen]


@needs_it
def test_a_kernel_that_computes_something_else_is_found_by_the_trial_run(tmp_path):
    class Whole(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(8, 8)

        def forward(self, x):
            # between two layers, so that ExecuTorch's passes are asked; the remainder of its kernels has the sign of the first number
            return self.layer(((self.layer(x) * 10).int() % 3).float())

    program = gs.capture(Whole().eval(), torch.randn(2, 8))
    with pytest.raises(
        UnsupportedOp, match=r"aten.*a trial run gives numbers that are wrong by .*aten.remainder.*; export to another target"
    ):
        gs.export(program, tmp_path / "net.pte", "executorch")


@needs_it
def test_damaged_files_are_refused(plain, tmp_path):
    from gossamer.targets.executorch.kernels import kernels_of

    data = plain.path.read_bytes()
    for name, damaged in (("cut", data[: len(data) // 2]), ("zeros", data[:64] + bytes(len(data) - 64)), ("other", b"PK" + data)):
        path = tmp_path / f"{name}.pte"
        path.write_bytes(damaged)
        with pytest.raises(FileError, match=f"{name}.pte"):
            targets["executorch"].open(path, threads=1)
        with pytest.raises(FileError, match=f"{name}.pte"):
            kernels_of(path)


@needs_it
def test_what_a_lowering_pass_runs_into_is_told_in_one_sentence(tmp_path, monkeypatch):
    class Whole(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(8, 8)

        def forward(self, x):
            return self.layer((self.layer(x) * 10).int().float())

    program, exir = gs.capture(Whole().eval(), torch.randn(2, 8)), part("exir")

    def fail(*_, **__):
        raise RuntimeError("pass 7 met a node\nwith a long story")

    monkeypatch.setattr(exir, "to_edge_transform_and_lower", fail)
    with pytest.raises(GossamerError, match=r"^ExecuTorch cannot lower this network \(pass 7 met a node\); export to another target"):
        gs.export(program, tmp_path / "net.pte", "executorch")
