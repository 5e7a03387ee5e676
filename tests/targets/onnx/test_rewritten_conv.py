"""Convolutions on few channels, in the form in which the integer kernel is fast: the same result to the last bit."""

from dataclasses import replace

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from torch import nn

from gossamer.program.capture import capture
from gossamer.targets.onnx.emit import to_onnx
from gossamer.targets.onnx.optimized import layers_in_float, optimized_ops
from gossamer.targets.onnx.rewritten_conv import weight_on_blocks
from gossamer.targets.onnx.spec import SPEC
from targets.onnx.coded import codes_in_forms, quantize_program

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

many = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
AS_IT_IS = replace(SPEC, written_otherwise=frozenset())


@st.composite
def convolutions(draw):
    dims = draw(st.sampled_from([1, 2, 2, 2, 3]))
    kernel, step = (tuple(draw(st.integers(1, most)) for _ in range(dims)) for most in (7, 5))
    step = draw(st.sampled_from([step, step[:1] * dims]))
    padding = tuple(draw(st.integers(0, 4)) for _ in range(dims))
    channels, outputs = draw(st.integers(1, 5)), draw(st.integers(1, 20))
    size = tuple(k + draw(st.integers(0, 12)) for k in kernel)
    border = draw(st.sampled_from([(), (), (1, 0) * dims, (0, 2)]))
    return (channels, outputs, kernel, step, padding), size, border


def network_of(conv, border, dilation=1):
    torch.manual_seed(0)
    kind = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[len(conv[2]) - 1]
    pad = [
        {1: nn.ConstantPad1d, 2: nn.ConstantPad2d, 3: nn.ConstantPad3d}[len(conv[2])](border + (0,) * (2 * len(conv[2]) - len(border)), 0.0)
    ]
    return nn.Sequential(*(pad if border else []), kind(*conv, dilation=dilation), nn.ReLU()).eval()


@many
@given(convolutions())
@example(((3, 8, (7, 7), (2, 2), (3, 3)), (14, 16), ()))
@example(((3, 8, (3, 3), (2, 2), (0, 0)), (16, 16), (0, 1, 0, 1)))
@example(((3, 8, (4, 4), (4, 4), (0, 0)), (16, 8), ()))
@example(((1, 8, (2, 2), (2, 2), (4, 0)), (6, 6), ()))
def test_codes_are_those_of_the_usual_form(tmp_path_factory, made):
    conv, size, border = made
    shape = (conv[0], *size)
    program = quantize_program(capture(network_of(conv, border), torch.randn(2, *shape)), torch.randn(8, *shape))
    path = tmp_path_factory.mktemp("few") / "m.onnx"
    usual, written = codes_in_forms(program, (AS_IT_IS, SPEC), path)
    onnx.checker.check_model(str(path), full_check=True)
    assert set(usual) == set(written)
    for name, codes in usual.items():
        assert (codes == written[name]).all(), name


@pytest.mark.parametrize(
    ("conv", "size", "ops", "weight"),
    [
        pytest.param((3, 8, 7, 2, 3), 32, {"SpaceToDepth": 1}, [8, 12, 4, 4], id="space to depth"),
        pytest.param((3, 8, 4, 4), 32, {"SpaceToDepth": 1}, [8, 48, 1, 1], id="patches"),
        pytest.param((1, 8, 2, 2), 32, {"SpaceToDepth": 1}, [8, 4, 1, 1], id="one channel"),
        pytest.param((3, 8, 3, 1, 1), 32, {"Pad": 1}, [8, 4, 3, 3], id="step of one pixel"),
        pytest.param((3, 8, 3, 2, 1), 33, {"Pad": 1}, [8, 4, 3, 3], id="step that does not divide the image"),
        pytest.param((1, 8, 5, 1, 2), 32, {}, [8, 1, 5, 5], id="large window of one channel"),
        pytest.param((3, 8, 16, 16), 32, {}, [8, 3, 16, 16], id="long step"),
        pytest.param((4, 8, 3, 2, 1), 32, {}, [8, 4, 3, 3], id="enough channels"),
        pytest.param((3, 9, 3, 1, 1, 1, 3), 32, {}, [9, 1, 3, 3], id="groups"),
        pytest.param((3, 8, 3, 1, 2, 2), 32, {}, [8, 3, 3, 3], id="dilation"),
    ],
)
def test_what_is_written_and_runs_in_integers(conv, size, ops, weight, tmp_path):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(*conv), nn.ReLU(), nn.Conv2d(conv[1], 8, 1)).eval()
    program = quantize_program(capture(network, torch.randn(2, conv[0], size, size)), torch.randn(8, conv[0], size, size))
    path = tmp_path / "m.onnx"
    path.write_bytes(to_onnx(program))
    made = optimized_ops(path)
    assert {op: made.get(op, 0) for op in ("SpaceToDepth", "Pad")} == {"SpaceToDepth": 0, "Pad": 0} | ops
    assert made["QLinearConv"] == 2 and layers_in_float(path) == ()
    assert weight in [list(tensor.dims) for tensor in onnx.load(path).graph.initializer if tensor.name.endswith("weight/q")]


@given(st.integers(1, 4), st.integers(1, 8), st.integers(0, 3), st.integers(0, 9))
@settings(max_examples=40, deadline=None)
def test_a_weight_on_blocks_makes_the_same_sums(step, kernel, offset, seed):
    """Against torch's own convolution on pixels that torch's own pixel_unshuffle gathered."""
    torch.manual_seed(seed)
    offset %= step
    rows = -(-(kernel + offset) // step)
    weight, image = (torch.randint(-9, 10, shape).double() for shape in ((5, 3, kernel, kernel), (2, 3, 8 * step, 8 * step)))
    blocks = nn.functional.pixel_unshuffle(image, step).unflatten(1, (3, step * step)).transpose(1, 2).flatten(1, 2)
    got = nn.functional.conv2d(blocks, weight_on_blocks(weight, (offset, offset), (rows, rows), step))
    expected = nn.functional.conv2d(image[..., offset:, offset:], weight, stride=step)[..., : got.shape[2], : got.shape[3]]
    assert torch.equal(got, expected)
