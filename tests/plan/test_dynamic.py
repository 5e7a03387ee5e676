import onnxruntime as ort
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import gossamer as gs
from gossamer.apply.engine import apply
from gossamer.errors import ConfigError, PlanError
from gossamer.plan.dynamic import plan_dynamic_quantization
from gossamer.plan.plan import Plan
from gossamer.program.ops.own import dynamic_range
from gossamer.targets.onnx.run import open_session


def network():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.ConvTranspose2d(8, 6, 2), nn.Flatten(), nn.Linear(6 * 81, 32), nn.ReLU(),
            nn.Linear(32, 5),
        ).eval()  # fmt: skip


def samples(count=64):
    return torch.randn(count, 3, 10, 10, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def program():
    return gs.capture(network(), samples(2))


def difference(left, right):
    return float((left - right).detach().norm() / right.detach().norm())


def run_file(path, inputs):
    return torch.from_numpy(open_session(path, threads=1).run(inputs.numpy()))


@pytest.mark.parametrize("calibrated", [False, True])
def test_the_file_computes_what_the_program_computes(program, calibrated, tmp_path):
    plan = plan_dynamic_quantization(program, calibration=samples() if calibrated else None)
    quantized = apply(program, plan)
    artifact = gs.export(quantized, tmp_path / "m.onnx")
    x = samples(8)
    assert difference(run_file(artifact.path, x), quantized(x)) < 2e-3  # a last bit may decide between two codes
    assert difference(quantized(x), program(x)) < 0.03
    report = gs.verify(artifact, reference=gs.export(program, tmp_path / "f.onnx"), data=(samples(), program(samples()).argmax(1)))
    assert report.problems == ()
    assert report.size_ratio > 3
    assert Plan.from_json(plan.to_json()) == plan


def test_products_are_integer_in_the_optimized_graph(program, tmp_path):
    import onnx

    gs.export(apply(program, plan_dynamic_quantization(program)), tmp_path / "m.onnx")
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "o.onnx")
    ort.InferenceSession(str(tmp_path / "m.onnx"), options, providers=["CPUExecutionProvider"])
    ops = [node.op_type for node in onnx.load(tmp_path / "o.onnx").graph.node]
    assert sum(op in ("DynamicQuantizeMatMul", "MatMulIntegerToFloat") for op in ops) == 2
    assert not {"MatMul", "Gemm"} & set(ops)


@given(st.integers(1, 40), st.floats(-3, 3), st.integers(2, 8))
def test_values_are_off_by_one_step_at_most_and_zero_stays(count, shift, bits):
    x = torch.randn(2, count, generator=torch.Generator().manual_seed(count)) + shift
    x[0, 0] = 0
    rounded = dynamic_range(x, bits)
    step = (max(float(x.max()), 0) - min(float(x.min()), 0)) / (2**bits - 1)
    assert float((rounded - x).abs().max()) <= step * (1 + 1e-4) + 1e-7
    assert rounded[0, 0] == 0


def test_what_stays_float_is_listed(program):
    plan = plan_dynamic_quantization(program, rules={"5": "float"})
    reasons = {item.where: item.reason for item in plan.frozen}
    assert reasons["5"] == "kept float as asked (5)"
    assert "products are computed in float" in reasons["0"]


def test_bad_arguments(program):
    with pytest.raises(PlanError, match="rules name '9', which is no layer of this network"):
        plan_dynamic_quantization(program, rules={"9": "float"})
    with pytest.raises(ConfigError, match="weights must be a format that onnxruntime computes with"):
        plan_dynamic_quantization(program, weights="uint8")
    with pytest.raises(PlanError, match="quantized already"):
        plan_dynamic_quantization(apply(program, plan_dynamic_quantization(program)))


def test_rules_mix_formats_in_one_file(program, tmp_path):
    rules = {"0": "int4", "5": "float", "7": "fp16"}
    plan = Plan.from_json(plan_dynamic_quantization(program, rules=rules).to_json())
    quantized = apply(program, plan)
    found = {name: quantizer.format.name for name, quantizer in quantized.quantizers.items()}
    assert found == {"0.weight": "int4", "3.weight": "int8", "7.weight": "fp16"}
    artifact = gs.export(quantized, tmp_path / "m.onnx")
    report = gs.verify(artifact, reference=program, data=(samples(), program(samples()).argmax(1)))
    assert report.problems == ()
    with pytest.raises(ConfigError, match=r"the format of '5' must be .*nearest is"):
        plan_dynamic_quantization(program, rules={"5": "uint4"})
