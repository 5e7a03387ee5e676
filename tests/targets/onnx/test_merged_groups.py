"""Groups of convolutions that were merged: the same codes, with the weights alone in the file."""

from dataclasses import replace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from gossamer.program.capture import capture
from gossamer.targets.onnx.emit import to_onnx
from gossamer.targets.onnx.optimized import layers_in_float, optimized_ops
from gossamer.targets.onnx.spec import SPEC
from targets.onnx.coded import codes_in_forms, quantize_program

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

AS_IT_IS = replace(SPEC, group_channels=0)


@st.composite
def grouped(draw):
    groups, each, outputs = draw(st.integers(2, 12)), draw(st.integers(1, 20)), draw(st.integers(1, 5))
    kernel = tuple(draw(st.integers(1, 3)) for _ in range(draw(st.sampled_from([1, 2, 2, 3]))))
    return groups, each, outputs, kernel, draw(st.sampled_from([SPEC.weight_formats[0], *SPEC.weight_formats[4:]]))


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(grouped())
def test_codes_are_those_of_the_usual_form(tmp_path_factory, made):
    groups, each, outputs, kernel, weights = made
    torch.manual_seed(0)
    kind = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[len(kernel) - 1]
    network = nn.Sequential(kind(groups * each, groups * outputs, kernel, groups=groups, stride=2, padding=1), nn.ReLU()).eval()
    shape = (groups * each, *(size + 2 for size in kernel))
    program = quantize_program(capture(network, torch.randn(2, *shape)), torch.randn(8, *shape), weights=weights)
    path = tmp_path_factory.mktemp("groups") / "m.onnx"
    as_it_is, written = codes_in_forms(program, (AS_IT_IS, SPEC), path)
    onnx.checker.check_model(str(path), full_check=True)
    assert set(as_it_is) == set(written)
    for name, codes in as_it_is.items():
        assert (codes == written[name]).all(), name


def test_they_run_in_integers_and_take_no_more_of_the_file(tmp_path):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(4, 96, 1), nn.ReLU(), nn.Conv2d(96, 96, 3, groups=24), nn.ReLU(), nn.Conv2d(96, 8, 1)).eval()
    program = quantize_program(capture(network, torch.randn(2, 4, 9, 9)), torch.randn(8, 4, 9, 9))
    path = tmp_path / "m.onnx"
    usual = len(to_onnx(program, spec=AS_IT_IS))
    path.write_bytes(to_onnx(program))
    assert path.stat().st_size < usual + 1000
    ops = optimized_ops(path)
    assert ops["QLinearConv"] == 3 and layers_in_float(path) == ()
    assert not {"Slice", "Pad"} & set(ops)  # computed on loading


def test_depthwise_convolutions_stay_as_they_are():
    network = nn.Sequential(nn.Conv2d(8, 8, 3, groups=8), nn.ReLU()).eval()
    program = quantize_program(capture(network, torch.randn(2, 8, 9, 9)), torch.randn(8, 8, 9, 9))
    assert to_onnx(program) == to_onnx(program, spec=AS_IT_IS)
