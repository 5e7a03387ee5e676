"""The runner for TensorRT: on a GPU with TensorRT itself; elsewhere over a stand-in of its API, which shows that the calls fit together."""

import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

import fake_tensorrt
from gossamer.apply.engine import apply
from gossamer.errors import DataError, FileError
from gossamer.plan.quantization import plan_quantization
from gossamer.program.capture import capture
from gossamer.targets.export import export
from gossamer.targets.onnx.expose import expose
from gossamer.targets.parity import check_parity, parity_problems
from gossamer.targets.target import targets
from gossamer.targets.tensorrt.run import TensorRtRunner
from gossamer.targets.verify import verify

NAME = "tensorrt"


@pytest.fixture(scope="module")
def samples():
    return torch.randn(16, 3, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def artifact(samples, tmp_path_factory):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)).eval()
    program = capture(network, samples[:2])
    return export(apply(program, plan_quantization(program, samples, NAME)), tmp_path_factory.mktemp("trt") / "m.onnx", NAME)


@pytest.fixture
def fake(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorrt", fake_tensorrt)
    stream = SimpleNamespace(cuda_stream=0, synchronize=lambda: None)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: stream)
    monkeypatch.setattr(fake_tensorrt.Builder, "built", 0)


def opened(artifact, *, values=False):
    data, exposed = artifact.path.read_bytes(), {}
    if values:
        data, exposed = expose(artifact.path, data)
    return TensorRtRunner(artifact.path, data, exposed, torch.device("cpu"))


def test_any_batch_runs_and_engines_grow(artifact, samples, fake):
    runner, reference = opened(artifact), targets[NAME].open(artifact.path, threads=1)
    for batch in (1, 4, 2, 4):
        np.testing.assert_array_equal(runner.run(samples[:batch].numpy()), reference.run(samples[:batch].numpy()))
    assert fake_tensorrt.Builder.built == 2  # for batches of 1, then for up to 4


def test_codes_are_handed_out(artifact, samples, fake):
    found = opened(artifact, values=True).run_values(samples[:3].numpy())
    assert set(found) == {"output", *(name for name in artifact.program.quantizers if name not in artifact.program.state)}
    assert found["input"].dtype == np.int8


def test_what_the_parser_refuses_is_told_in_its_words(artifact, fake, monkeypatch):
    monkeypatch.setattr(fake_tensorrt.OnnxParser, "refuses", "no importer for Odd")
    with pytest.raises(
        FileError, match=r"refused by TensorRT's parser \(no importer for Odd\); check it with gossamer inspect --target tensorrt"
    ):
        opened(artifact)


def test_what_the_builder_refuses_is_told(artifact, fake, monkeypatch):
    monkeypatch.setattr(fake_tensorrt.Builder, "build_serialized_network", lambda self, network, config: None)
    with pytest.raises(FileError, match="refused by TensorRT's builder"):
        opened(artifact)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ((), r"takes 1 inputs \(input\); got 0"),
        ((np.zeros((1, 3, 8, 8)),), "'input' is float32, not float64"),
        ((np.zeros((1, 3, 9, 8), np.float32),), r"'input' cannot have the shape \(1, 3, 9, 8\)"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(artifact, fake, inputs, message):
    with pytest.raises(DataError, match=message):
        opened(artifact).run(*inputs)


def test_a_run_that_fails_is_told(artifact, samples, fake, monkeypatch):
    monkeypatch.setattr(fake_tensorrt.Context, "execute_async_v3", lambda self, stream: False)
    with pytest.raises(DataError, match="failed to run"):
        opened(artifact).run(samples[:1].numpy())


@pytest.mark.skipif(bool(targets[NAME].stand_in), reason=targets[NAME].stand_in)
def test_on_a_gpu_it_is_built_run_and_measured(artifact, samples):
    parity = check_parity(artifact, targets[NAME].open(artifact.path, threads=1), (samples[:4],))
    assert parity_problems(parity, artifact, "it") == []
    plain = artifact.program.with_graph(artifact.program.graph, quantizers={})
    assert verify(artifact, reference=plain, data=(samples, torch.zeros(16, dtype=torch.long))).timed
