import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gossamer.errors import PlanError, UnsupportedOp
from gossamer.numerics.affine import Quantizer, from_range, quantize
from gossamer.numerics.formats import IntFormat, PerAxis, PerTensor
from gossamer.targets.onnx.coding import bias_codes, bias_scales, clips_like, code_bias, code_dtype, code_weight, emit_codes, emit_real
from gossamer.targets.onnx.draft import Draft

BYTE = IntFormat(bits=8, signed=False)
WEIGHT = IntFormat(bits=8, narrow=True)


def test_codes_of_a_weight_are_stored_with_the_axis():
    weight = torch.randn(3, 4)
    quantizer = from_range(weight.amin(1), weight.amax(1), WEIGHT, PerAxis(0), symmetric=True)
    draft = Draft()
    name = code_weight(draft, weight, "w", quantizer)
    (node,) = draft.nodes
    assert (node.op, node.outputs, dict(node.attributes)) == ("DequantizeLinear", (name,), {"axis": 0})
    codes, scale, zero = (draft.initializers[name] for name in node.inputs)
    assert (codes.dtype, zero.dtype) == (np.int8, np.int8)
    np.testing.assert_array_equal(codes, quantize(weight, quantizer).numpy())
    np.testing.assert_array_equal(scale, np.asarray(quantizer.scale, np.float32))


@pytest.mark.parametrize(("symmetric", "stored"), [(True, 2), (False, 3)])
def test_zero_points_of_convolutions_are_stored_where_they_are_not_0(symmetric, stored):
    weight = torch.rand(3, 4, 2, 2) + 1
    rows = weight.flatten(1)
    draft = Draft()
    code_weight(draft, weight, "w", from_range(rows.amin(1), rows.amax(1), IntFormat(bits=8), PerAxis(0), symmetric=symmetric))
    (node,) = draft.nodes
    assert len(node.inputs) == stored


def test_equal_parameters_are_stored_once():
    draft, quantizer = Draft(), Quantizer(BYTE, PerTensor(), (0.5,), (3,))
    for name in ("a", "b"):
        emit_real(draft, emit_codes(draft, name, name, quantizer), name, quantizer)
    assert len(draft.initializers) == 2


def test_bias_is_coded_at_the_scale_of_the_accumulator():
    source = Quantizer(BYTE, PerTensor(), (0.1,), (7,))
    weight = Quantizer(WEIGHT, PerAxis(0), (0.01, 0.02), (0, 0))
    scales = bias_scales(source, weight)
    assert scales.dtype == np.float32
    np.testing.assert_array_equal(scales, np.float32(0.1) * np.asarray([0.01, 0.02], np.float32))
    np.testing.assert_array_equal(bias_codes(torch.tensor([0.0105, -1.0]), scales), [10, -500])


def test_scales_of_a_bias_are_made_of_those_that_the_file_holds_anyway():
    source = Quantizer(BYTE, PerTensor(), (0.1,), (7,))
    weight = Quantizer(WEIGHT, PerAxis(0), (0.01, 0.02), (0, 0))
    draft, bias = Draft(), torch.tensor([0.0105, -1.0])
    emit_real(draft, emit_codes(draft, "x", "x", source), "x", source)
    code_weight(draft, torch.ones(2, 1, 1, 1), "w", weight)
    stored = set(draft.initializers)
    code_bias(draft, bias, "b", source, weight)
    product, decoder = draft.nodes[-2:]
    assert set(draft.initializers) - stored == {decoder.inputs[0]}
    np.testing.assert_array_equal(np.multiply(*(draft.initializers[name] for name in product.inputs)), bias_scales(source, weight))
    assert (product.op, product.outputs) == ("Mul", decoder.inputs[1:])


def test_a_bias_that_does_not_fit_is_refused():
    with pytest.raises(PlanError, match="bias of channel 1 does not fit int32 .*larger scale"):
        bias_codes(torch.tensor([0.1, 1.0]), np.float32(1e-10))


@given(
    low=st.floats(-10, 0),
    high=st.floats(0.1, 10),
    limits=st.tuples(st.floats(-5, 0), st.one_of(st.none(), st.floats(0.1, 7))),
    data=st.data(),
)
def test_a_clamp_is_left_out_only_where_codes_clip_like_it(low, high, limits, data):
    quantizer = from_range(torch.tensor(low), torch.tensor(high), BYTE, PerTensor(), symmetric=False)
    x = torch.tensor(data.draw(st.lists(st.floats(-20, 20, width=32), min_size=1)))
    if clips_like(quantizer, *limits):
        assert torch.equal(quantize(x, quantizer), quantize(x.clamp(*limits), quantizer))


@pytest.mark.parametrize(("limits", "expected"), [((0.0, None), True), ((0.0, 6.0), True), ((0.0, 5.0), False), ((1.0, 6.0), False)])
def test_relu_and_relu6_are_left_out(limits, expected):
    quantizer = from_range(torch.tensor(0.0), torch.tensor(6.0), BYTE, PerTensor(), symmetric=False)
    assert clips_like(quantizer, *limits) is expected


def test_formats_without_kernels_are_refused():
    with pytest.raises(UnsupportedOp, match="no ONNX Runtime rule for int16 .*choose int8 or uint8"):
        code_dtype(IntFormat(bits=16))
