"""Input that static quantization cannot use, or should not be given: one sentence each, and nothing is lost."""

import json

import pytest
import torch
from torch import nn

from gossamer.apply.engine import apply
from gossamer.errors import ConfigError, DataError, PlanError
from gossamer.plan.dynamic import plan_dynamic_quantization
from gossamer.plan.equalization import plan_equalization
from gossamer.plan.plan import Plan
from gossamer.plan.quantization import ONE_SAMPLE, plan_quantization
from gossamer.plan.scheme import BlockScheme, Scheme
from gossamer.plan.weight_only import plan_weight_quantization
from gossamer.program.capture import capture


@pytest.fixture(scope="module")
def program():
    torch.manual_seed(0)
    return capture(nn.Sequential(nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(128, 4)).eval(), torch.randn(2, 8, 6, 6))


def batch(number=8):
    return torch.randn(number, 8, 6, 6, generator=torch.Generator().manual_seed(1))


def with_bad(value):
    data = batch()
    data[3, 2, 1, 0] = value
    return data


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (torch.full((8, 8, 6, 6), 0.5), "the calibration data never varies \\(every number of 'input' is 0.5\\); give real samples"),
        (with_bad(torch.nan), "NaN"),
        (with_bad(torch.inf), "infin"),
        (torch.zeros(0, 8, 6, 6), "empty"),
        (None, "the calibration data is missing"),
    ],
)
def test_data_that_cannot_be_used(program, data, message):
    with pytest.raises(DataError, match=message) as error:
        plan_quantization(program, data)
    assert str(error.value).count(". ") == 0


def test_one_sample_is_used_and_noted(program):
    plan = plan_quantization(program, batch(1))
    assert plan.notes == (ONE_SAMPLE,)
    assert Plan.from_json(json.loads(json.dumps(plan.to_json()))) == plan
    assert "single sample" in str(plan)
    assert apply(program, plan).quantizers
    assert plan_quantization(program, batch(2)).notes == ()
    assert "notes" not in plan_quantization(program, batch(2)).to_json()


def test_plans_without_notes_are_read(program):
    data = plan_quantization(program, batch(2)).to_json()
    assert Plan.from_json(data).notes == ()


@pytest.mark.parametrize(
    ("arguments", "near"),
    [
        ({"weights": "int9"}, "int8"),
        ({"weights": "uint4"}, "int4"),
        ({"activations": "int16"}, "uint8"),
        ({"activations": "int4"}, "uint4"),
    ],
)
def test_formats_that_the_target_does_not_run_name_the_nearest(program, arguments, near):
    ((what, name),) = arguments.items()
    with pytest.raises(
        ConfigError, match=rf"{what} must be a format that onnxruntime computes with \(the nearest is '{near}'\); got '{name}'"
    ):
        plan_quantization(program, batch(), **arguments)


def test_quantizing_twice_is_refused(program):
    quantized = apply(program, plan_quantization(program, batch()))
    for plan in (
        lambda: plan_quantization(quantized, batch()),
        lambda: plan_weight_quantization(quantized),
        lambda: plan_weight_quantization(quantized, weights="fp16"),
        lambda: plan_dynamic_quantization(quantized),
    ):
        with pytest.raises(PlanError, match="the network is quantized already .* plan from the float network"):
            plan()
    assert apply(program, plan_quantization(program, batch())).quantizers == quantized.quantizers


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"weights": 8}, "format must be intN or uintN, such as 'int8' or 'uint8'; got 8"),
        ({"weights": None}, "format must be intN or uintN"),
        ({"activations": 8}, "format must be intN or uintN"),
        ({"rules": ["0"]}, "rules must be formats by name of a layer, such as .*; got \\['0'\\]"),
        ({"rules": {"0": 4}}, "rules must be formats by name of a layer"),
        ({"scheme": "mse"}, "scheme must be a Scheme, such as Scheme\\(equalization='auto'\\); got 'str'"),
        ({"scheme": BlockScheme()}, "scheme must be a Scheme, .*; got 'BlockScheme'"),
        ({"scheme": Scheme(equalization=3)}, "equalization must be a registered equalization"),
    ],
)
def test_arguments_of_another_type(program, arguments, message):
    with pytest.raises(ConfigError, match=message):
        plan_quantization(program, batch(), **arguments)


def test_schemes_of_another_type(program):
    with pytest.raises(ConfigError, match="range method must be a registered range method .*; got None"):
        Scheme(ranges=None)
    with pytest.raises(ConfigError, match="scheme must be a BlockScheme, .*; got 'Scheme'"):
        plan_weight_quantization(program, scheme=Scheme())


def test_a_model_that_was_not_captured():
    model = nn.Linear(4, 4)
    for plan in (
        lambda: plan_quantization(model, torch.randn(4, 4)),
        lambda: plan_weight_quantization(model),
        lambda: plan_dynamic_quantization(model),
        lambda: plan_equalization(model),
    ):
        with pytest.raises(ConfigError, match="program must be a Program, which gossamer.capture.* makes; got 'Linear'"):
            plan()


def test_targets_without_a_kind_of_formats_name_those_that_have_it(program):
    with pytest.raises(ConfigError, match=r"quantize their input while they run \(litert, onnxruntime\); got 'openvino'"):
        plan_dynamic_quantization(program, "openvino")
    with pytest.raises(ConfigError, match=r"one scale per block \(onnxruntime\); got 'openvino'"):
        plan_weight_quantization(program, "openvino")
    with pytest.raises(
        ConfigError, match="target must be one that has formats like 'fp16' for weights, which this one has not; got 'openvino'"
    ):
        plan_weight_quantization(program, "openvino", weights="fp16")
