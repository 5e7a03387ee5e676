import numpy as np
import pytest
import torch

from gossamer.apply.engine import apply
from gossamer.errors import UnsupportedOp
from gossamer.plan.dynamic import plan_dynamic_quantization
from gossamer.program.capture import capture
from gossamer.program.ops import op_of, rows
from gossamer.targets.onnx.emit import to_onnx
from gossamer.targets.onnx.lowering import lowerings
from targets.onnx.cases import CASES, inputs_of

onnx = pytest.importorskip("onnx")
ort = pytest.importorskip("onnxruntime")


ELSEWHERE = {"DynamicRows"}  # what XNNPACK rounds while it runs; ONNX Runtime rounds all rows together


def test_each_onnx_name_of_the_op_table_has_a_lowering():
    assert {row.onnx for row in rows() if row.onnx} - ELSEWHERE == set(lowerings.names())


def test_dynamic_range_of_another_runtime_is_refused_by_name():
    program = capture(torch.nn.Sequential(torch.nn.Linear(16, 8)).eval(), torch.randn(2, 16))
    planned = apply(program, plan_dynamic_quantization(program, "litert"))
    with pytest.raises(UnsupportedOp, match="no ONNX rule for gossamer.dynamic_rows"):
        to_onnx(planned)


@pytest.mark.parametrize("name", CASES)
def test_op_equals_torch(name):
    network, shapes = CASES[name]
    network.eval()
    program = capture(network, inputs_of(shapes, 2))
    data = to_onnx(program)
    onnx.checker.check_model(onnx.load_from_string(data), full_check=True)
    session = ort.InferenceSession(data, providers=["CPUExecutionProvider"])
    ports = [port.name for port in session.get_inputs()]
    for batch in (1, 3):
        inputs = inputs_of(shapes, batch, seed=batch)
        with torch.no_grad():
            expected = network(*inputs)
        (got,) = session.run(None, dict(zip(ports, (x.numpy() for x in inputs), strict=True)))
        assert got.shape == tuple(expected.shape)
        assert torch.from_numpy(got).dtype == expected.dtype
        scale = max(float(expected.abs().max()), 1e-3) if expected.is_floating_point() else 1
        np.testing.assert_allclose(got, expected.numpy(), atol=1e-4 * scale, rtol=1e-4)


def test_each_lowering_is_in_a_case():
    programs = (capture(network.eval(), inputs_of(shapes, 2)) for network, shapes in CASES.values())
    seen = {op_of(node).onnx for program in programs for node in program.graph.nodes}
    of_torch = {row.onnx for row in rows() if row.name.startswith("aten.")}  # ours are part of plans: tests/plan/test_weight_only.py
    assert of_torch <= seen | {""}
