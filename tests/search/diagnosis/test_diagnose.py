import json
import math

import pytest
import torch
from torch import nn

from gossamer.apply.engine import apply
from gossamer.errors import ConfigError, DataError, PlanError
from gossamer.numerics.affine import fake_quantize
from gossamer.numerics.distance import sqnr_db
from gossamer.plan.dynamic import plan_dynamic_quantization
from gossamer.plan.plan import Plan
from gossamer.plan.quantization import plan_quantization
from gossamer.plan.weight_only import plan_weight_quantization
from gossamer.program.capture import capture
from gossamer.program.fold import fold_batch_norms
from gossamer.search.diagnosis.diagnose import diagnose
from gossamer.search.diagnosis.findings import Diagnosis
from gossamer.targets.export import export
from gossamer.targets.verify import verify
from search.diagnosis import sick_networks as sick


@pytest.fixture(scope="module")
def x():
    return sick.samples()


def case(net, x, change=lambda plan, program: plan, **scheme):
    program = sick.captured(net, x)
    plan = change(sick.plan_of(program, x, **scheme), program)
    return program, plan, apply(program, plan)


def found(diagnosis, name):
    return next(finding for finding in diagnosis.findings if finding.name == name)


def cure(finding, name):
    return next(cure for cure in finding.cures if cure.name == name)


@pytest.fixture(scope="module")
def healthy(x):
    return case(sick.healthy(), x)


@pytest.fixture(scope="module")
def outlier(x):
    program, plan, quantized = case(sick.outlier_channel(), x)
    return program, plan, quantized, diagnose(quantized, program, x, worst=1)


def test_isolated_damage_is_that_of_a_run_with_just_that_tensor_coded(x, outlier):
    program, _, quantized, diagnosis = outlier
    true = program(x).detach()
    for finding in diagnosis.findings:
        if finding.kind == "value":
            code = {finding.name: lambda name, value: fake_quantize(value, quantized.quantizers[name])}
            got = program.run(x, observe=code)
        else:
            layer = finding.name.removesuffix(".weight")
            state = {f"{layer}.bias": quantized.state[f"{layer}.bias"], finding.name: quantized.state[finding.name]}
            got = program.with_graph(program.graph, state)(x)
        assert finding.isolated.output_db == pytest.approx(sqnr_db(true, got.detach()), abs=0.1)
        p, q = (out.double().softmax(1) for out in (true, got.detach()))
        assert finding.isolated.kl == pytest.approx(float((p * (p / q).log()).sum(1).mean()), rel=0.05, abs=1e-9)


def test_cumulative_error_is_that_of_the_quantized_network(x, outlier):
    program, _, quantized, diagnosis = outlier
    values, coded = {}, {}
    program.run(x, observe=lambda name, value: values.setdefault(name, value.detach()))
    quantized.run(x, observe=lambda name, value: coded.setdefault(name, value.detach()))
    for finding in diagnosis.findings:
        if finding.kind == "value" and finding.name != "x":
            assert finding.cumulative_db == pytest.approx(sqnr_db(values[finding.name], coded[finding.name]), abs=0.05)
    assert found(diagnosis, "pointwise.weight").cumulative_db == pytest.approx(sqnr_db(values["conv2d_2"], coded["conv2d_2"]), abs=0.05)
    assert diagnosis.quantized.output_db == pytest.approx(sqnr_db(program(x).detach(), quantized(x).detach()), abs=0.05)


def test_own_error_is_split_into_clipping_and_rounding(x, outlier):
    program, _, quantized, diagnosis = outlier
    values = {}
    program.run(x, observe=lambda name, value: values.setdefault(name, value.detach()))
    finding = found(diagnosis, "relu")
    quantizer = quantized.quantizers["relu"]
    error = (fake_quantize(values["relu"], quantizer) - values["relu"]).double().square()
    beyond = values["relu"] > quantizer.scale[0] * (quantizer.format.hi - quantizer.zero_point[0] + 0.5)
    assert finding.own_db == pytest.approx(10 * math.log10(float(values["relu"].double().square().sum() / error.sum())), abs=1e-3)
    assert finding.clipping_share == pytest.approx(float(error[beyond].sum() / error.sum()), abs=1e-6)
    assert finding.clipping_share + finding.rounding_share == 1


def test_an_outlier_channel_is_found_and_cured(outlier):
    diagnosis = outlier[3]
    worst = diagnosis.worst[0]
    assert (worst.name, worst.layer, worst.cause.label) == ("relu", "conv", "outlier channel")
    assert worst.cause.evidence["channel"] == 5
    assert worst.cause.evidence["ratio"] > 100
    assert cure(worst, "keep float").gain_db > 20
    assert not cure(worst, "keep float").chosen  # it costs speed


def test_the_spread_of_a_depthwise_layer_is_found(x):
    program, _, quantized = case(sick.depthwise_spread(), x)
    worst = diagnose(quantized, program, x, worst=1).worst[0]
    assert (worst.name, worst.layer, worst.cause.label) == ("relu_1", "depthwise", "depthwise spread")
    assert cure(worst, "keep float").gain_db > 15


def test_a_depthwise_weight_with_one_scale_gets_one_per_channel(x):
    net = sick.rescaled(sick.healthy(), "conv", torch.logspace(0, 3, sick.CHANNELS))
    program, _, quantized = case(net, x, lambda plan, program: sick.one_scale(plan, program, "depthwise.weight"))
    finding = found(diagnose(quantized, program, x, worst=2), "depthwise.weight")
    assert (finding.cause.label, finding.format) == ("depthwise spread", "int8")
    assert cure(finding, "scale per channel").gain_db > 1
    assert cure(finding, "scale per channel").float_share == 0


def test_a_range_that_is_too_wide_is_found_and_cured(x):
    program, _, quantized = case(sick.healthy(), x, lambda plan, _: sick.with_range(plan, "relu", 16.0))
    diagnosis = diagnose(quantized, program, x, worst=1)
    worst = diagnosis.worst[0]
    assert (worst.name, worst.cause.label) == ("relu", "range")
    assert worst.clipping_share == 0
    assert worst.cause.evidence["ratio"] > 8
    assert cure(worst, "range: mse").gain_db > 3
    assert diagnosis.cured.output_db > diagnosis.quantized.output_db + 3


def test_saturation_is_found_and_cured(x):
    program, _, quantized = case(sick.healthy(), x, lambda plan, _: sick.with_range(plan, "relu", 0.3))
    diagnosis = diagnose(quantized, program, x, worst=1)
    worst = diagnosis.worst[0]
    assert (worst.name, worst.cause.label) == ("relu", "saturation")
    assert worst.clipping_share > 0.99
    assert worst.clipped_share > 0.05
    assert cure(worst, "range: min-max").gain_db > 20


def test_a_bias_that_does_not_fit_is_found(x):
    program, _, quantized = case(sick.big_bias(), x)
    finding = found(diagnose(quantized, program, x, worst=0), "pointwise.weight")
    assert finding.cause.label == "bias overflow"
    assert finding.cause.evidence["growth"] > 2
    assert finding.cause.evidence["share"] > 0.9
    assert finding.own_db < 40  # of weights that need no more than their scale it is 48


def test_weights_rounded_one_by_one_get_better_rounding(x):
    program, _, quantized = case(sick.healthy(), x, rounding="nearest", bias_correction=False)
    diagnosis = diagnose(quantized, program, x, worst=3)
    finding = found(diagnosis, "fc.weight")
    assert finding.cause.label == "rounding"
    assert cure(finding, "second-order rounding").gain_db > 0.2
    gains = {cure.name: cure.gain_db for cure in diagnosis.network}
    assert gains["all weights: second-order rounding"] > 0.5
    assert gains["all weights: bias correction"] > 0.5


def test_the_chosen_cures_are_a_plan_that_does_what_is_said_and_runs(x, tmp_path):
    program, plan, quantized = case(sick.healthy(), x, lambda plan, _: sick.with_range(plan, "relu", 0.3))
    diagnosis = diagnose(quantized, program, x, plan=plan, worst=2)
    assert diagnosis.chosen
    assert diagnosis.cured.output_db > diagnosis.quantized.output_db + 20
    cured = apply(program, Plan.load(diagnosis.plan.save(tmp_path / "cured.json")))
    assert sqnr_db(program(x).detach(), cured(x).detach()) == pytest.approx(diagnosis.cured.output_db, abs=0.05)
    report = verify(export(cured, tmp_path / "m.onnx"), reference=program, data=(x, torch.arange(len(x)) % 6), batch=4)
    assert report.passed


def test_layers_kept_in_float_are_chosen_where_that_is_allowed_and_run(x, healthy, tmp_path):
    program, plan, quantized = healthy
    diagnosis = diagnose(quantized, program, x, plan=plan, worst=1, keep_float=True)
    kept = [cure for cure in diagnosis.chosen if cure.name == "keep float"]
    assert [cure.where for cure in kept] == ["mean"]
    assert 0 < kept[0].float_share < 0.1  # the last layer's
    cured = apply(program, diagnosis.plan)
    assert "mean" not in cured.quantizers
    assert verify(export(cured, tmp_path / "m.onnx"), reference=program, data=(x, torch.arange(len(x)) % 6), batch=4).passed


def test_uneven_channels_are_evened_and_the_cured_network_runs(x, outlier, tmp_path):
    program, plan, quantized, _ = outlier
    diagnosis = diagnose(quantized, program, x, plan=plan, worst=1)
    gains = {cure.name: cure.gain_db for cure in diagnosis.network}
    assert min(gains["equalization: cross-layer"], gains["equalization: smoothquant"]) > 20
    assert any(cure.name.startswith("equalization") for cure in diagnosis.chosen)
    cured = apply(program, diagnosis.plan)
    assert sqnr_db(program(x).detach(), cured(x).detach()) == pytest.approx(diagnosis.cured.output_db, abs=0.05)
    assert verify(export(cured, tmp_path / "m.onnx"), reference=program, data=(x, torch.arange(len(x)) % 6), batch=4).passed
    again = diagnose(cured, program, x, plan=diagnosis.plan, worst=1)
    assert again.quantized.output_db == pytest.approx(diagnosis.cured.output_db, abs=0.05)
    assert not [cure for cure in again.network if cure.name.startswith("equalization")]
    with pytest.raises(PlanError, match="give its plan"):
        diagnose(cured, program, x)


def test_nothing_is_chosen_where_nothing_helps(x, healthy):
    program, plan, quantized = healthy
    best = diagnose(quantized, program, x, plan=plan, worst=3).plan
    again = best if best is not None else plan
    for _ in range(3):
        diagnosis = diagnose(apply(program, again), program, x, plan=again, worst=3)
        if diagnosis.plan is None:
            break
        again = diagnosis.plan
    assert diagnosis.plan is None
    assert diagnosis.cured == diagnosis.quantized
    assert not diagnosis.chosen


def test_a_plan_is_read_off_the_two_networks(x, healthy):
    program, plan, quantized = healthy
    given, read = (diagnose(quantized, program, x, plan=known, worst=2) for known in (plan, None))
    assert read.to_dict() | {"seconds": 0} == given.to_dict() | {"seconds": 0}


def test_folded_norms_and_split_gates_are_no_error():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(4, 8, 3, bias=False), nn.BatchNorm2d(8), nn.SiLU(), nn.Conv2d(8, 8, 1), nn.Dropout(), nn.Flatten()).eval()
    x = torch.randn(24, 4, 6, 6)
    program = capture(net, x[:2])
    assert len(fold_batch_norms(program).graph.nodes) < len(program.graph.nodes)
    quantized = apply(program, sick.plan_of(program, x))
    diagnosis = diagnose(quantized, program, x, worst=2)
    assert diagnosis.notes == ()
    assert all(finding.isolated.output_db > 20 for finding in diagnosis.findings)
    names = [finding.name for finding in diagnosis.findings]
    assert len(names) == len(set(names))


def test_weights_alone_are_measured_and_cures_left_out_with_a_note(x):
    torch.manual_seed(0)
    program = capture(nn.Sequential(nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 4)).eval(), torch.randn(4, 32))
    quantized = apply(program, plan_dynamic_quantization(program))
    diagnosis = diagnose(quantized, program, torch.randn(32, 32))
    kinds = [finding.kind for finding in diagnosis.findings]
    assert kinds.count("weight") == 2
    assert kinds.count("value") == 2
    assert all(20 < finding.isolated.output_db < 80 for finding in diagnosis.findings)
    assert "cures are for static quantization" in diagnosis.notes[0]


def test_progress_cost_and_samples(x, healthy):
    program, _, quantized = healthy
    records = []
    diagnosis = diagnose(quantized, program, x, samples=20, worst=0, on_progress=records.append)
    assert diagnosis.samples == 20
    assert {record.stage for record in records} == {"diagnose"}
    assert records[-1].done == records[-1].total
    assert [record.done for record in records] == sorted(record.done for record in records)
    assert 2 < diagnosis.runs < 2 + len(diagnosis.findings)
    assert diagnosis.network == ()
    assert diagnosis.plan is None


def test_a_diagnosis_is_json(outlier):
    diagnosis = outlier[3]
    data = json.loads(json.dumps(diagnosis.to_dict(), allow_nan=False))
    again = Diagnosis.from_dict(data)
    assert again.to_dict() == diagnosis.to_dict()
    assert again.worst[0].cures == diagnosis.worst[0].cures
    assert "relu: outlier channel" in str(again)
    with pytest.raises(DataError, match="this is no diagnosis of ours .*it has no 'findings'"):
        Diagnosis.from_dict({"format": 1})
    with pytest.raises(DataError, match="format 9, this version reads 1"):
        Diagnosis.from_dict({"format": 9})


def test_networks_are_left_as_they_are(x, healthy):
    program, _, quantized = healthy
    before = program.weights_digest(), quantized.weights_digest()
    diagnose(quantized, program, x, worst=1)
    assert (program.weights_digest(), quantized.weights_digest()) == before


def test_wrong_arguments_are_told(x, healthy):
    program, _, quantized = healthy
    with pytest.raises(PlanError, match="the network is not quantized, so there is nothing to diagnose"):
        diagnose(program, program, x)
    with pytest.raises(ConfigError, match="samples must be at least 1"):
        diagnose(quantized, program, x, samples=0)
    with pytest.raises(ConfigError, match="worst must be 0 or more"):
        diagnose(quantized, program, x, worst=-1)
    with pytest.raises(DataError, match="diagnosis data is empty"):
        diagnose(quantized, program, [])
    torch.manual_seed(5)
    other = capture(sick.Net().eval(), x[:2])
    with pytest.raises(PlanError, match="conv.weight' is not the float network's .*name the float network that was quantized"):
        diagnose(quantized, other, x)
    smaller = capture(nn.Sequential(nn.Conv2d(4, 8, 3)).eval(), x[:2])
    with pytest.raises(PlanError):
        diagnose(quantized, smaller, x)


def test_a_trained_quantized_network_is_measured_without_cures(x, healthy):
    program, _, quantized = healthy
    state = {"fc.weight": quantized.state["fc.weight"] + 0.05 * torch.randn_like(quantized.state["fc.weight"])}
    trained = quantized.with_graph(quantized.graph, state)
    diagnosis = diagnose(trained, program, x, worst=1)
    assert "give its plan=" in diagnosis.notes[0] or "code steps of a plan" in diagnosis.notes[0]
    assert found(diagnosis, "fc.weight").isolated.output_db < 40


def test_floating_point_codes_have_no_range_to_blame():
    torch.manual_seed(0)
    x = torch.randn(32, 32)
    program = capture(nn.Sequential(nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 4)).eval(), x[:2])
    stored = apply(program, plan_weight_quantization(program, weights="bf16"))
    assert {finding.cause.label for finding in diagnose(stored, program, x).findings} == {"rounding"}
    mixed = apply(program, plan_quantization(program, x, rules={"2": "fp16"}))
    diagnosis = diagnose(mixed, program, x, worst=9)
    assert found(diagnosis, "2.weight").format == "fp16"
    assert diagnosis.notes == ()


def test_weights_in_blocks_are_cured_by_other_plans(tmp_path):
    torch.manual_seed(0)
    x = torch.randn(96, 64) @ torch.randn(64, 64)
    program = capture(nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 6)).eval(), x[:2])
    quantized = apply(program, plan_weight_quantization(program, weights="int4"))
    diagnosis = diagnose(quantized, program, x, worst=1)
    gains = {cure.name: cure.gain_db for cure in diagnosis.network}
    assert gains["rounding with data"] > 0.5
    assert "blocks of 16, rounding with data" in gains
    assert cure(diagnosis.worst[0], "keep float").gain_db > 0.5
    assert len(diagnosis.chosen) == 1
    cured = apply(program, diagnosis.plan)
    assert sqnr_db(program(x[:64]).detach(), cured(x[:64]).detach()) == pytest.approx(diagnosis.cured.output_db, abs=0.1)
    assert verify(export(cured, tmp_path / "m.onnx"), reference=program, data=(x, torch.arange(len(x)) % 6), batch=4).passed
