"""Depthwise convolutions with a whole number of blocks of channels: the same codes."""

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

AS_IT_IS = replace(SPEC, written_otherwise=frozenset())


def network_of(channels, dims, kernel, step, *, bias=True, clamp=True):
    torch.manual_seed(0)
    kind = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dims - 1]
    depthwise = kind(channels, channels, kernel, step, kernel // 2, groups=channels, bias=bias)
    return nn.Sequential(kind(4, channels, 1), depthwise, nn.ReLU6() if clamp else nn.Identity(), kind(channels, 8, 1)).eval()


@settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.integers(60, 100), st.integers(1, 3), st.integers(1, 5), st.integers(1, 2), st.booleans(), st.booleans())
def test_codes_are_those_of_the_usual_form(tmp_path_factory, channels, dims, kernel, step, bias, clamp):
    shape = (4, *(9, 7, 5)[:dims])
    network = network_of(channels, dims, kernel, step, bias=bias, clamp=clamp)
    program = quantize_program(capture(network, torch.randn(2, *shape)), torch.randn(8, *shape))
    path = tmp_path_factory.mktemp("blocks") / "m.onnx"
    as_it_is, written = codes_in_forms(program, (AS_IT_IS, SPEC), path)
    onnx.checker.check_model(str(path), full_check=True)
    assert set(as_it_is) <= set(written)
    for name, codes in as_it_is.items():
        assert (codes == written[name]).all(), name


@pytest.mark.parametrize(("channels", "groups"), [(72, 80), (80, 80), (24, 24)])
def test_what_is_written_runs_in_integers(channels, groups, tmp_path):
    program = quantize_program(capture(network_of(channels, 2, 3, 1), torch.randn(2, 4, 9, 9)), torch.randn(8, 4, 9, 9))
    path = tmp_path / "m.onnx"
    path.write_bytes(to_onnx(program))
    ops = optimized_ops(path)
    assert ops["QLinearConv"] == 3 and layers_in_float(path) == ()
    assert ops.get("Pad", 0) == ops.get("Slice", 0) == (groups > channels)
    assert ops["QuantizeLinear"] == 1  # of the input
    written = [attribute.i for node in onnx.load(path).graph.node for attribute in node.attribute if attribute.name == "group"]
    assert written == [groups]


def test_a_float_result_is_not_cut():
    torch.manual_seed(0)
    program = quantize_program(capture(nn.Conv2d(72, 72, 3, groups=72).eval(), torch.randn(2, 72, 9, 9)), torch.randn(8, 72, 9, 9))
    quantizers = {name: quantizer for name, quantizer in program.quantizers.items() if name not in program.graph.outputs}
    program = program.with_graph(program.graph, quantizers=quantizers)
    assert to_onnx(program) == to_onnx(program, spec=AS_IT_IS)
