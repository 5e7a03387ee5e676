import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn

from gossamer.errors import MissingRuntime
from gossamer.program.capture import capture
from gossamer.targets.onnx.emit import emit
from gossamer.targets.onnx.optimized import FloatLayer, layers_in_float, optimized_ops
from gossamer.targets.onnx.run import open_session
from targets.onnx.coded import quantize_program

pytest.importorskip("onnxruntime")


@pytest.fixture
def program():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(36, 5)).eval()
    return capture(network, torch.randn(2, 3, 8, 8))


@pytest.fixture
def path(program, tmp_path):
    emit(program, tmp_path / "m.onnx")
    return tmp_path / "m.onnx"


def test_run_gives_the_output_at_any_batch(program, path):
    runner = open_session(path, threads=2)
    for batch in (1, 4):
        (x,) = program.example_inputs(batch)
        np.testing.assert_allclose(runner.run(x.numpy()), program(x).detach().numpy(), atol=1e-5)


def test_values_are_codes_by_name_and_fusion_stays(program, tmp_path):
    coded = quantize_program(program, torch.randn(8, 3, 8, 8))
    emit(coded, tmp_path / "q.onnx")
    (x,) = coded.example_inputs(3)
    plain, opened = (open_session(tmp_path / "q.onnx", threads=1, values=values) for values in (False, True))
    values = opened.run_values(x.numpy())
    activations = set(coded.quantizers) - set(coded.state)
    assert set(values) == activations | {"output"}
    assert all(values[name].dtype == np.uint8 for name in activations)
    assert values["relu"].shape == (3, 4, 6, 6)
    np.testing.assert_array_equal(values["output"], plain.run(x.numpy()))
    np.testing.assert_array_equal(values["output"], opened.run(x.numpy()))


def test_float_files_have_outputs_only(program, path):
    (x,) = program.example_inputs()
    assert set(open_session(path, threads=1, values=True).run_values(x.numpy())) == {"output"}


def test_layers_in_float_are_named(path):
    assert [layer.op for layer in layers_in_float(path)] in (["FusedConv", "Gemm"], ["Conv", "Gemm"])
    assert layers_in_float(path)[-1] == FloatLayer("Gemm", "output")
    assert optimized_ops(path)["MaxPool"] == 1


def test_a_missing_runtime_is_named(path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(MissingRuntime, match="pip install onnxruntime"):
        open_session(path, threads=1)


def test_a_missing_onnx_is_named(program, path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(MissingRuntime, match="writing ONNX files needs .*pip install onnx"):
        emit(program, path)
    with pytest.raises(MissingRuntime, match="reading ONNX files needs"):
        open_session(path, threads=1, values=True)


def test_importing_the_target_imports_no_runtime():
    code = "import sys, gossamer.targets.onnx; assert not {'onnx', 'onnxruntime'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
