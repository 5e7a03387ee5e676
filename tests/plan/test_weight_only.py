import numpy as np
import onnxruntime as ort
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import gossamer as gs
from gossamer.apply.engine import apply
from gossamer.errors import ConfigError, PlanError
from gossamer.numerics.affine import Quantizer, dequantize, fake_quantize, quantize
from gossamer.numerics.formats import IntFormat, PerBlock, parse_format
from gossamer.numerics.hqq import lp_error
from gossamer.numerics.ranges import choose_block_quantizer, in_blocks, weight_range_methods
from gossamer.plan.plan import Plan
from gossamer.plan.scheme import BlockScheme
from gossamer.plan.weight_only import plan_weight_quantization
from gossamer.program.ops.own import dynamic_quantize

FORMATS = [("int4", True), ("int4", False), ("uint4", True), ("uint4", False), ("int8", True), ("uint8", True)]


def network(width=100):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(width, 64), nn.GELU(), nn.Linear(64, 200), nn.ReLU(), nn.Linear(200, 10)).eval()


def samples(count=256, width=100):
    generator = torch.Generator().manual_seed(1)
    mix = torch.randn(width, width, generator=generator) / 10  # first, so that any count has the same distribution
    return torch.randn(count, width, generator=generator) @ mix


@pytest.fixture(scope="module")
def program():
    return gs.capture(network(), samples(2))


def run_file(path, inputs):
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, {session.get_inputs()[0].name: inputs.numpy()})[0])


def difference(left, right):
    return float((left.detach() - right.detach()).norm() / right.detach().norm())


@pytest.mark.parametrize(("weights", "rounded"), FORMATS)
def test_the_file_computes_what_the_program_computes(program, weights, rounded, tmp_path):
    plan = plan_weight_quantization(program, weights=weights, round_inputs=rounded)
    quantized = apply(program, plan)
    gs.export(quantized, tmp_path / "m.onnx")
    x = samples()
    # inputs of deeper layers differ in the last bits, and where they lie between two codes, another one is taken
    assert difference(run_file(tmp_path / "m.onnx", x), quantized(x)) < (2e-3 if rounded else 1e-6)
    assert difference(run_file(tmp_path / "m.onnx", x), gs.simulate(quantized, x)) < (2e-3 if rounded else 1e-6)
    bits = int(weights[-1])
    weight_bytes = sum(layer.weight.numel() for layer in network() if isinstance(layer, nn.Linear)) * (bits / 8 + 4 / 32)
    assert (tmp_path / "m.onnx").stat().st_size < 1.35 * weight_bytes + 4000
    assert Plan.from_json(plan.to_json()) == plan


@pytest.mark.parametrize("weights", ["int4", "uint4"])
@pytest.mark.parametrize("block", [16, 128])
def test_one_layer_with_rounded_input_is_exact(weights, block, tmp_path):
    program = gs.capture(nn.Linear(100, 7).eval(), samples(2))
    quantized = apply(program, plan_weight_quantization(program, weights=weights, block=block))
    gs.export(quantized, tmp_path / "m.onnx")
    assert difference(run_file(tmp_path / "m.onnx", samples()), quantized(samples())) < 1e-6


@pytest.mark.parametrize("weights", ["int4", "uint4"])
def test_calibration_brings_outputs_nearer(program, weights):
    x = samples()
    plans = [plan_weight_quantization(program, weights=weights, round_inputs=False, calibration=data) for data in (None, x)]
    nearest, second_order = (difference(apply(program, plan)(samples(64)), program(samples(64))) for plan in plans)
    assert second_order < 0.9 * nearest


def test_verify_accepts_the_file(program, tmp_path):
    x = samples()[64:]  # none of the values within lies so near between two codes that runtime and program take different ones
    quantized = apply(program, plan_weight_quantization(program))
    artifact = gs.export(quantized, tmp_path / "m.onnx")
    report = gs.verify(artifact, reference=gs.export(program, tmp_path / "f.onnx"), data=(x, program(x).argmax(1)))
    assert report.problems == ()
    assert report.size_ratio > 4
    assert report.parity.values_compared == 64 * (64 + 200 + 10)


def test_verify_finds_another_rounding(program, tmp_path):
    x = samples()
    plan = plan_weight_quantization(program)
    artifact = gs.export(apply(program, plan), tmp_path / "m.onnx")
    float_inputs = apply(program, plan_weight_quantization(program, round_inputs=False))
    gs.export(float_inputs, tmp_path / "m.onnx")  # the file no longer rounds, the program still does
    report = gs.verify(artifact, reference=gs.export(program, tmp_path / "f.onnx"), data=(x, program(x).argmax(1)))
    assert any("differ from what they must be" in problem for problem in report.problems)


def test_argument_stays_and_training_goes_on(program):
    before = {name: tensor.clone() for name, tensor in program.state.items()}
    quantized = apply(program, plan_weight_quantization(program))
    assert all(torch.equal(tensor, before[name]) for name, tensor in program.state.items())
    quantized(samples(8)).square().sum().backward()
    assert all(parameter.grad is not None and bool(parameter.grad.abs().sum() > 0) for parameter in quantized.parameters())


def test_what_stays_float_is_listed():
    tied = nn.Embedding(50, 32)

    class Decoder(nn.Module):
        def __init__(self):
            super().__init__()
            self.tokens, self.body, self.head = tied, nn.Linear(32, 32), nn.Linear(32, 50, bias=False)
            self.head.weight = tied.weight

        def forward(self, ids):
            return self.head(self.body(self.tokens(ids)))

    program = gs.capture(Decoder().eval(), torch.zeros(2, 5, dtype=torch.int64))
    plan = plan_weight_quantization(program)
    assert [item.where for item in plan.frozen] == ["head"]
    assert "also used by tokens" in plan.frozen[0].reason
    skipped = plan_weight_quantization(gs.capture(network(), samples(2)), rules={"4": "float"})
    assert [(item.where, item.reason) for item in skipped.frozen] == [("4", "kept float as asked (4)")]


@settings(max_examples=30)
@given(
    st.integers(1, 5),
    st.integers(1, 40),
    st.sampled_from([3, 8, 16]),
    st.booleans(),
    st.integers(2, 8),
    st.sampled_from(["min-max", "mse", "hqq"]),
)
def test_each_block_is_coded_as_if_alone(rows, columns, size, signed, bits, method):
    weight = torch.randn(rows, columns, generator=torch.Generator().manual_seed(columns))
    fmt = IntFormat(bits=bits, signed=signed)
    whole = choose_block_quantizer(weight, fmt, method, size=size)
    assert Quantizer.from_json(whole.to_json()) == whole
    coded = fake_quantize(weight, whole)
    assert torch.equal(dequantize(quantize(weight, whole), whole), coded)
    for start in range(0, columns - columns % size, size):
        part = weight[:, start : start + size].contiguous()
        alone = choose_block_quantizer(part, fmt, method, size=size)
        assert alone.granularity == PerBlock(1, size)
        assert torch.equal(fake_quantize(part, alone), coded[:, start : start + size])


@given(st.integers(1, 70), st.sampled_from([4, 16, 32]))
def test_rounded_inputs_are_off_by_half_a_step_at_most(length, block):
    x = torch.randn(3, length, generator=torch.Generator().manual_seed(length))
    rounded = dynamic_quantize(x, 8, block)
    for start in range(0, length, block):
        part = x[:, start : start + block]
        step = part.abs().amax(1, keepdim=True) / 127
        assert bool(((rounded[:, start : start + block] - part).abs() <= 0.5 * step * (1 + 1e-5) + 1e-7).all())
    assert np.array_equal(dynamic_quantize(torch.zeros(2, 5), 8, 4).numpy(), np.zeros((2, 5), np.float32))


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"weights": "int3"}, ConfigError, r"weights must be a format that onnxruntime computes with \(the nearest is 'int4'\)"),
        ({"block": 48}, ConfigError, "block must be one of 16, 32, 64, 128, 256, what onnxruntime has kernels for; got 48"),
        ({"weights": "int8", "round_inputs": False}, ConfigError, "round_inputs must be True with int8"),
        ({"rules": {"5": "float"}}, PlanError, "rules name '5', which is no layer of this network"),
    ],
)
def test_bad_arguments(program, given, error, message):
    with pytest.raises(error, match=message):
        plan_weight_quantization(program, **given)


def test_unknown_range_method():
    with pytest.raises(ConfigError, match=r"weight range method must be a registered weight range method .did you mean 'hqq'?"):
        BlockScheme(ranges="hq")


@pytest.mark.parametrize("weights", ["int4", "uint4"])
def test_every_range_method_reaches_the_file(program, weights, tmp_path):
    x, quantized = samples(), {}
    for method in weight_range_methods.names():
        plan = plan_weight_quantization(program, weights=weights, scheme=BlockScheme(ranges=method), round_inputs=False)
        assert Plan.from_json(plan.to_json()) == plan
        quantized[method] = apply(program, plan)
        gs.export(quantized[method], tmp_path / "m.onnx")
        assert difference(run_file(tmp_path / "m.onnx", x), quantized[method](x)) < 1e-6
    fmt = parse_format(weights)
    for name in quantized["hqq"].quantizers:
        best, nearest = (lp_of(quantized[method], name, fmt) for method in ("hqq", "min-max"))
        assert bool((best <= nearest * (1 + 1e-5)).all())
        assert float(best.sum()) < 0.98 * float(nearest.sum())


def lp_of(program, name, fmt):
    quantizer = program.quantizers[name]
    rows = in_blocks(program.state[name].detach(), quantizer.granularity.size)
    scale, zero = (torch.tensor(part, dtype=torch.float32).unsqueeze(1) for part in (quantizer.scale, quantizer.zero_point))
    return lp_error(rows, scale, zero, fmt)


def test_nothing_to_quantize():
    program = gs.capture(nn.Sequential(nn.Conv2d(3, 4, 3)).eval(), torch.zeros(2, 3, 8, 8))
    with pytest.raises(PlanError, match="no linear layer whose weight can have codes of its own: 0, only matrix products"):
        plan_weight_quantization(program)


@pytest.mark.parametrize("weights", ["int4", "fp16"])
def test_rules_mix_formats_in_one_file(program, weights, tmp_path):
    rules = {"0": "int8", "2": "bf16"} if weights == "int4" else {"0": "int8", "2": "float"}
    plan = Plan.from_json(plan_weight_quantization(program, weights=weights, rules=rules).to_json())
    quantized = apply(program, plan)
    found = {name: quantizer.format.name for name, quantizer in quantized.quantizers.items()}
    assert found == {"0.weight": "int8", "4.weight": weights} | ({"2.weight": "bf16"} if weights == "int4" else {})
    artifact = gs.export(quantized, tmp_path / "m.onnx")
    x = samples()
    assert difference(run_file(artifact.path, x), quantized(x)) < 2e-3
    report = gs.verify(artifact, reference=program, data=(x, program(x).argmax(1)))
    assert report.problems == ()


def test_rules_for_formats_that_the_target_lacks(program):
    with pytest.raises(ConfigError, match=r"the format of '0' must be a format that onnxruntime computes with .*nearest is 'int4'"):
        plan_weight_quantization(program, rules={"0": "int3"})
    with pytest.raises(PlanError, match=r"no linear layer .*: 0, kept float as asked \(\*\)"):
        plan_weight_quantization(program, rules={"*": "float"})
