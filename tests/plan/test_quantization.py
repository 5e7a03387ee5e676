import json

import pytest
import torch
from torch import nn

from gossamer.apply.engine import apply
from gossamer.errors import ConfigError, PlanError
from gossamer.numerics.distance import sqnr_db
from gossamer.plan import calibrate as calibrate_module
from gossamer.plan.edits import QuantizeValue, RoundWeight, ShiftBias, SplitGate
from gossamer.plan.plan import Plan
from gossamer.plan.quantization import plan_quantization
from gossamer.plan.scheme import Scheme
from gossamer.plan.spec import specs
from gossamer.program.capture import capture
from gossamer.progress import Progress
from gossamer.targets.simulate import simulate


class Net(nn.Module):
    """Convolution, depthwise convolution, residual sum and classifier; activations with a mean, as in real networks."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(8, 24, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(24)
        self.depth = nn.Conv2d(24, 24, 3, padding=1, groups=24)
        self.second = nn.Conv2d(24, 24, 1)
        self.head = nn.Linear(24, 10)

    def forward(self, x):
        y = nn.functional.relu6(self.norm(self.first(x)))
        y = y + self.second(nn.functional.relu6(self.depth(y)))
        return self.head(y.mean((2, 3)))


@pytest.fixture(scope="module")
def samples():
    return torch.randn(32, 8, 10, 10, generator=torch.Generator().manual_seed(1)) + 0.5


@pytest.fixture(scope="module")
def program(samples):
    torch.manual_seed(0)
    return capture(Net().eval(), samples[:2])


@pytest.fixture(scope="module")
def plan(program, samples):
    return plan_quantization(program, samples)


def test_plan_is_data(plan):
    assert Plan.from_json(json.loads(json.dumps(plan.to_json()))) == plan
    assert plan.target == "onnxruntime"
    assert plan.weights_digest


def test_same_data_same_plan(program, samples, plan):
    assert plan_quantization(program, samples) == plan


def test_argument_stays_as_it_is(program, samples):
    before = {name: tensor.clone() for name, tensor in program.state.items()}
    graph = program.graph
    program.train()
    plan_quantization(program, samples)
    assert program.training
    assert program.graph is graph
    assert program.quantizers == {}
    assert all(torch.equal(before[name], tensor) for name, tensor in program.state.items())
    program.eval()


def test_what_is_planned(program, plan):
    edits = {kind: [edit for edit in plan.edits if isinstance(edit, kind)] for kind in (QuantizeValue, RoundWeight, ShiftBias)}
    quantizers = {edit.value: edit.quantizer for edit in edits[QuantizeValue]}
    weights = {"first.weight", "depth.weight", "second.weight", "head.weight"}
    assert weights <= quantizers.keys()
    assert all(quantizers[name].zero_point == (0,) * len(quantizers[name].scale) for name in weights)
    assert len(quantizers["depth.weight"].scale) == 24
    assert {edit.value for edit in edits[RoundWeight]} <= weights
    assert len(edits[ShiftBias]) == 4
    relu6 = next(name for name in quantizers if name.startswith(("relu6", "hardtanh")))
    assert quantizers[relu6].zero_point == (0,)
    assert quantizers[relu6].scale[0] * 255 <= 6 * (1 + 1e-6)


@pytest.fixture(scope="module")
def correlated():
    """One layer whose inputs have a mean and depend on each other, as behind real layers."""
    random = torch.Generator().manual_seed(3)
    mix = torch.randn(32, 6, generator=random) @ torch.randn(6, 32, generator=random) / 6
    samples = torch.einsum("nchw,dc->ndhw", torch.randn(64, 32, 4, 4, generator=random), mix).abs()
    torch.manual_seed(0)
    return capture(nn.Sequential(nn.Conv2d(32, 16, 1)).eval(), samples[:2]), samples


def weight_error(program, samples, **choices):
    """Squared error of the layer's output that rounded weights and biases make, on samples held out, and its mean."""
    quantized = apply(program, plan_quantization(program, samples[:32], scheme=Scheme(**choices)))
    weights = {name: quantizer for name, quantizer in quantized.quantizers.items() if name in quantized.state}
    with torch.no_grad():
        error = quantized.with_graph(quantized.graph, quantizers=weights)(samples[32:]) - program(samples[32:])
    return float(error.square().mean()), float(error.mean((0, 2, 3)).abs().mean())


def test_second_order_rounding_and_bias_correction_each_make_the_error_smaller(correlated):
    nearest, nearest_mean = weight_error(*correlated, rounding="nearest", bias_correction=False)
    corrected, corrected_mean = weight_error(*correlated, rounding="nearest")
    rounded, _ = weight_error(*correlated, bias_correction=False)
    both, both_mean = weight_error(*correlated)
    assert corrected_mean < 0.3 * nearest_mean
    assert both_mean < 0.3 * nearest_mean
    assert corrected < nearest
    assert rounded < 0.5 * nearest
    assert both < 0.7 * corrected


def test_wide_layers_of_few_bits_are_rounded_in_blocks(correlated, monkeypatch):
    program, samples = correlated
    monkeypatch.setattr(calibrate_module, "WIDEST", 16)  # the layer has 32 inputs

    def error(**choices):
        weights = choices.pop("weights")
        quantized = apply(program, plan_quantization(program, samples[:32], weights=weights, scheme=Scheme(**choices)))
        with torch.no_grad():
            return float((quantized(samples[32:]) - program(samples[32:])).square().mean())

    assert error(weights="int4") < 0.8 * error(weights="int4", rounding="nearest")
    assert error(weights="int8") == error(weights="int8", rounding="nearest")


def test_quantized_stays_close_to_float(program, samples, plan):
    other = torch.randn(32, 8, 10, 10, generator=torch.Generator().manual_seed(2)) + 0.5
    with torch.no_grad():
        assert sqnr_db(program(other), simulate(apply(program, plan), other)) > 35


def test_gates_are_split_where_that_helps_and_have_the_prescribed_codes(samples):
    class Swish(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1)

        def forward(self, x):
            return self.two(nn.functional.hardswish(self.one(nn.functional.silu(torch.sin(x)))))

    plan = plan_quantization(capture(Swish().eval(), samples[:2]), samples)
    split = [edit.node for edit in plan.edits if isinstance(edit, SplitGate)]
    gates = {edit.value: edit.quantizer for edit in plan.edits if isinstance(edit, QuantizeValue) and edit.value.endswith("_gate")}
    assert "hardswish" in split
    assert all((gate.scale, gate.zero_point) == ((2.0**-8,), (0,)) for gate in gates.values())
    assert gates.keys() == {f"{name}_gate" for name in split}


def test_a_weight_of_two_layers_is_coded_once(samples):
    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(8, 8, 3, padding=1)

        def forward(self, x):
            return self.conv(torch.relu(self.conv(x)))

    program = capture(Shared().eval(), samples[:2])
    plan = plan_quantization(program, samples)
    assert [edit.value for edit in plan.edits if isinstance(edit, QuantizeValue)].count("conv.weight") == 1
    quantized = apply(program, plan)
    with torch.no_grad():
        assert sqnr_db(program(samples), simulate(quantized, samples)) > 30


def test_a_channel_whose_bias_dwarfs_its_weight_gets_a_scale_that_holds_it(samples):
    torch.manual_seed(0)
    conv = nn.Conv2d(8, 4, 1)
    with torch.no_grad():
        conv.weight[1] *= 1e-12
        conv.bias[1] = 100.0
    program = capture(nn.Sequential(conv).eval(), samples[:2])
    quantized = apply(program, plan_quantization(program, samples))
    with torch.no_grad():
        assert sqnr_db(program(samples)[:, 1], simulate(quantized, samples)[:, 1]) > 40


def test_progress_is_told(program, samples):
    told: list[Progress] = []
    plan_quantization(program, list(samples.split(8)), on_progress=told.append)
    stages = list(dict.fromkeys(record.stage for record in told))
    assert stages == ["calibrate", "round weights"]
    assert all(record.done <= record.total for record in told)
    assert {(record.stage, record.total) for record in told if record.done == record.total} == {("calibrate", 4), ("round weights", 4)}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"weights": "uint4"}, "weights must be a format that onnxruntime computes with \\(the nearest is 'int4'\\); got 'uint4'"),
        ({"activations": "int8"}, "activations must be a format that onnxruntime computes with \\(the nearest is 'uint8'\\)"),
        ({"activations": "float8"}, "intN or uintN"),
        ({"target": "onnxrunntime"}, "did you mean 'onnxruntime'"),
        ({"scheme": Scheme(rounding="neerest")}, "did you mean 'nearest'"),
    ],
)
def test_arguments_outside_their_rules(program, samples, arguments, message):
    with pytest.raises(ConfigError, match=message):
        plan_quantization(program, samples, **arguments)


@pytest.mark.parametrize(
    ("choice", "message"), [({"ranges": "maxmin"}, "a registered range method"), ({"weight_ranges": "mes"}, "did you mean 'mse'")]
)
def test_schemes_outside_their_rules(choice, message):
    with pytest.raises(ConfigError, match=message):
        Scheme(**choice)


def test_a_quantized_program_is_refused(program, samples, plan):
    with pytest.raises(PlanError, match="is quantized already \\(for 'onnxruntime'\\); plan from the float network"):
        plan_quantization(apply(program, plan), samples)


def test_a_network_with_nothing_to_quantize_is_refused(samples):
    class Sine(nn.Module):
        def forward(self, x):
            return torch.sin(x)

    with pytest.raises(PlanError, match="no layer that onnxruntime computes in integers: .*no integer kernel for Sin; export it as it is"):
        plan_quantization(capture(Sine(), samples[:2]), samples)


def test_formats_come_from_the_spec():
    assert specs["onnxruntime"].weight_formats[0].name == "int8"
