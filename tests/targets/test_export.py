import pytest
import torch
from torch import nn

import gossamer.targets.onnx as target_onnx
from gossamer.errors import ConfigError, PlanError, UnsupportedOp
from gossamer.numerics.affine import Quantizer
from gossamer.numerics.formats import IntFormat, PerTensor
from gossamer.program.capture import capture
from gossamer.targets.export import export
from gossamer.targets.target import targets


@pytest.fixture
def program():
    return capture(nn.Linear(3, 2), torch.randn(2, 3))


def test_export_writes_the_file_and_says_what_it_is(program, tmp_path):
    artifact = export(program, tmp_path / "sub" / "m.onnx")
    assert (artifact.target, artifact.program, artifact.path) == ("onnxruntime", program, tmp_path / "sub" / "m.onnx")
    assert artifact.size_bytes == artifact.path.stat().st_size > 0
    assert targets["onnxruntime"] is target_onnx.TARGET


def test_an_unknown_target_names_the_nearest(program, tmp_path):
    with pytest.raises(ConfigError, match="did you mean 'onnxruntime'"):
        export(program, tmp_path / "m.onnx", target="onnxruntim")


def test_the_suffix_must_be_the_targets(program, tmp_path):
    with pytest.raises(ConfigError, match=r"a file name that ends in '.onnx'"):
        export(program, tmp_path / "m.tflite")


def test_quantizers_of_another_target_are_refused(program, tmp_path):
    quantizer = Quantizer(IntFormat(bits=8, signed=False), PerTensor(), (1.0,), (0,))
    coded = program.with_graph(program.graph, quantizers={"input": quantizer}, target="tflm")
    with pytest.raises(PlanError, match="quantized for 'tflm', not for 'onnxruntime'"):
        export(coded, tmp_path / "m.onnx")


def test_a_failed_export_leaves_the_old_file(tmp_path):
    class Odd(nn.Module):
        def forward(self, x):
            return torch.linalg.det(x)

    path = tmp_path / "m.onnx"
    path.write_bytes(b"old")
    with pytest.raises(UnsupportedOp):
        export(capture(Odd(), torch.randn(2, 3, 3)), path)
    assert path.read_bytes() == b"old"
    assert [item.name for item in tmp_path.iterdir()] == ["m.onnx"]


@pytest.mark.parametrize("target", ["onnxruntime", "litert", "cortex_m"])
def test_bfloat16_is_refused_with_the_way_out(target, tmp_path):
    program = capture(nn.Linear(4, 3).bfloat16().eval(), torch.randn(2, 4, dtype=torch.bfloat16))
    with pytest.raises(ConfigError, match=r"type of 'weight' must be float32 for .*; capture the model as model.float\(\); got 'bfloat16'"):
        export(program, tmp_path / f"m{targets[target].suffix}", target=target)
    assert export(program, tmp_path / "m.gossamer", target="torch").path.exists()
