import numpy as np
import pytest
import torch

from gossamer.errors import ConfigError, UnsupportedOp
from gossamer.targets.onnx import proto
from gossamer.targets.onnx.draft import Draft
from gossamer.targets.onnx.proto import Port, numpy_dtype, onnx_dtype, to_bytes

onnx = pytest.importorskip("onnx")


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float64, torch.float16, torch.int64, torch.int32, torch.int8, torch.uint8, torch.bool]
)
def test_dtypes_are_the_formats(dtype):
    assert onnx_dtype(dtype) == onnx.helper.np_dtype_to_tensor_dtype(np.dtype(numpy_dtype(dtype)))


def test_other_dtypes_are_refused():
    with pytest.raises(UnsupportedOp, match=r"no ONNX rule for torch.complex64 .*convert the model"):
        onnx_dtype(torch.complex64)


def test_a_draft_becomes_a_model_with_scalars_and_free_sizes():
    draft = Draft()
    (name,) = draft.emit("Mul", ("x", draft.constant(np.float32(2))), name="y")
    ports = [[Port(side, torch.float32, ("batch", 3))] for side in ("x", name)]
    model = onnx.load_from_string(to_bytes(draft, *ports))
    onnx.checker.check_model(model, full_check=True)
    assert list(model.graph.initializer[0].dims) == []
    assert (model.ir_version, model.opset_import[0].version) == (proto.IR_VERSION, proto.OPSET)


def test_too_large_weights_are_refused(monkeypatch):
    monkeypatch.setattr(proto, "LIMIT_BYTES", 1000)
    draft = Draft()
    draft.constant(np.zeros(251, np.float32))
    with pytest.raises(ConfigError, match="size of the weights must be at most 0.00 GB, what one ONNX file holds"):
        to_bytes(draft, [], [])
