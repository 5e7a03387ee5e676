"""The target "tensorrt" without a GPU: the form of its files, parity of the stand-in, what is said and what is not measured."""

import json
import math
from dataclasses import replace

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from typer.testing import CliRunner

from chains import random_network
from gossamer.apply.engine import apply
from gossamer.cli.main import app
from gossamer.data.source import Data
from gossamer.errors import ConfigError, MissingRuntime, PlanError, UnsupportedOp
from gossamer.pipeline.loop import compress
from gossamer.plan.budget import Budget
from gossamer.plan.plan import Plan
from gossamer.plan.quantization import plan_quantization
from gossamer.plan.scheme import Scheme
from gossamer.program.bundle import load, save
from gossamer.program.capture import capture
from gossamer.targets.coded_ends import open_artifact
from gossamer.targets.export import export
from gossamer.targets.parity import check_parity, parity_problems
from gossamer.targets.results import Report
from gossamer.targets.target import Artifact, targets
from gossamer.targets.tensorrt.lint import lint
from gossamer.targets.verify import verify

NAME = "tensorrt"
without_gpu = pytest.mark.skipif(not targets[NAME].stand_in, reason="TensorRT runs here, so nothing stands in for it")


class Residual(nn.Module):
    """Batch norm, an identity residual, a residual with a layer of its own, a pool behind a sum, and activations in float."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(16)
        self.second = nn.Conv2d(16, 16, 3, padding=1)
        self.third = nn.Conv2d(16, 16, 3, padding=1)
        self.fourth = nn.Conv2d(16, 16, 3, stride=2, padding=1)
        self.short = nn.Conv2d(16, 16, 1, stride=2)
        self.last = nn.Conv2d(16, 8, 1)
        self.head = nn.Linear(8, 5)

    def forward(self, x):
        x = torch.relu(self.norm(self.first(x)))
        x = nn.functional.max_pool2d(torch.relu(x + self.second(x)), 2)
        x = torch.relu(self.short(x) + self.fourth(torch.relu(self.third(x))))
        return self.head(nn.functional.silu(self.last(x)).mean((2, 3)))


@pytest.fixture(scope="module")
def samples():
    return torch.randn(32, 3, 12, 12, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def program(samples):
    torch.manual_seed(0)
    network = Residual()
    network(samples)
    return capture(network.eval(), samples[:2])


@pytest.fixture(scope="module")
def quantized(program, samples):
    return apply(program, Plan.from_json(plan_quantization(program, samples, NAME).to_json()))


@pytest.fixture(scope="module")
def artifact(quantized, tmp_path_factory):
    bundle = save(quantized, tmp_path_factory.mktemp("trt") / "m.gossamer")
    return export(load(bundle), bundle.with_suffix(".onnx"), NAME)


def test_codes_stand_in_front_of_layers_and_of_residuals_only(quantized, artifact):
    """What TensorRT documents, read off the file: the oracle is the network's own structure."""
    graph = quantized.graph
    layer = {node.module: node for node in graph.nodes if node.module}
    wanted = {layer[name].uses[0] for name in ("first", "second", "third", "fourth", "short", "last", "head")}
    coded = {name for name in quantized.quantizers if name not in graph.state_names}
    assert coded == wanted | {layer["short"].name}  # what the first sum adds is read by a layer, too; the second one adds the short cut
    nodes = onnx.load(artifact.path).graph.node
    assert [node.op_type for node in nodes if node.op_type == "QuantizeLinear"] == ["QuantizeLinear"] * len(coded)
    makers = {name: node for node in nodes for name in node.output}
    for node in nodes:
        if node.op_type in ("Conv", "Gemm"):
            assert [makers[name].op_type for name in node.input[:2]] == ["DequantizeLinear"] * 2
            assert node.input[2] not in makers  # a float constant
        if node.op_type == "Relu":
            assert makers[node.input[0]].op_type in ("Conv", "Add")


def test_all_codes_are_signed_and_around_zero(quantized):
    assert {quantizer.format.name for quantizer in quantized.quantizers.values()} == {"int8"}
    assert {zero for quantizer in quantized.quantizers.values() for zero in quantizer.zero_point} == {0}


def test_the_file_keeps_the_rules(artifact):
    assert lint(artifact.path) == ()


def test_layers_are_integers_in_the_plan(program, samples):
    frozen = [item.where for item in plan_quantization(program, samples, NAME).frozen]
    assert not any(kind in where for where in frozen for kind in ("Conv", "Gemm", "Relu", "Add", "MaxPool"))
    assert any("Silu" in where for where in frozen)


@without_gpu
def test_verify_says_what_ran_and_measures_no_latency(program, artifact, samples, tmp_path):
    report = verify(artifact, reference=program, data=(samples, program(samples).argmax(1)), batch=16)
    assert report.passed, report.problems
    assert report.parity.max_steps <= 1 and len(report.parity.layers) == 7
    assert not report.timed and math.isnan(report.speedup) and math.isnan(report.original.latency_ms) and report.repeats == 0
    assert "Checked, not run on TensorRT (no CUDA device)" in str(report) or "not installed" in str(report)
    assert "not measured" in str(report) and "nan" not in str(report)
    assert "tensorrt" not in report.versions
    document = json.loads(json.dumps(report.to_dict()).replace("NaN", "null"))
    again = Report.from_dict(document)
    assert not again.timed and str(again) == str(report)


@without_gpu
def test_a_budget_on_latency_needs_the_runtime(program, artifact, samples):
    with pytest.raises(MissingRuntime, match="a budget with a limit on latency on tensorrt needs the package 'tensorrt'"):
        verify(artifact, reference=program, data=(samples, program(samples).argmax(1)), budget=Budget(min_speedup=2.0))


@without_gpu
def test_the_list_of_targets_says_checked_not_run():
    rows = json.loads(CliRunner().invoke(app, ["targets", "--json"]).stdout)["targets"]
    row = next(row for row in rows if row["name"] == NAME)
    assert row["version"] is None and "Checked, not run" in row["stand_in"] and "pip install tensorrt" in row["install"]
    assert "checked, not" in CliRunner().invoke(app, ["targets"]).stdout


@without_gpu
def test_compress_writes_a_report_without_invented_figures(samples, tmp_path):
    torch.manual_seed(0)
    network = Residual().eval()
    data = (samples, network(samples).argmax(1))
    result = compress(network, Data(train=data, validation=data), NAME, Budget(max_drop_points=100.0), work_dir=tmp_path / "work")
    folder = result.save(tmp_path / "out")
    assert lint(folder / "model.onnx") == ()
    page = (folder / "report.html").read_text()
    assert "latency was not measured" in page and "Checked, not run" in page and "nan" not in page.replace("nano", "").lower().split()
    assert json.loads((folder / "report.json").read_text())["speedup"] is None


def test_a_layer_that_was_tampered_with_is_found(quantized, samples, tmp_path):
    weights = {**quantized.state, "third.weight": quantized.state["third.weight"].detach().flip(0)}
    impostor = Artifact(export(quantized.with_graph(quantized.graph, weights), tmp_path / "m.onnx", NAME).path, NAME, quantized)
    problems = parity_problems(check_parity(impostor, open_artifact(impostor, threads=1), (samples[:4],)), impostor, "it")
    assert any("code steps from the simulation" in problem for problem in problems)


def test_float_networks_are_plain_onnx(program, samples, tmp_path):
    artifact = export(program, tmp_path / "float.onnx", NAME)
    assert lint(artifact.path) == ()
    assert not {"QuantizeLinear", "BatchNormalization"} & {node.op_type for node in onnx.load(artifact.path).graph.node}
    for batch in (1, 5):
        got = open_artifact(artifact, threads=1).run(samples[:batch].numpy())
        np.testing.assert_allclose(got, program(samples[:batch]).detach().numpy(), atol=1e-5)


def test_mixed_precision_keeps_the_rules_and_parity(program, samples, tmp_path):
    rules = {"first": "float", "third": "fp16", "head": "bf16"}
    mixed = apply(program, plan_quantization(program, samples, NAME, rules=rules, scheme=Scheme(ranges="min-max")))
    artifact = export(mixed, tmp_path / "mixed.onnx", NAME)
    assert lint(artifact.path) == ()
    parity = check_parity(artifact, open_artifact(artifact, threads=1), (samples[:8],))
    assert parity_problems(parity, artifact, "it") == [] and parity.layers


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.qkv, self.out = nn.LayerNorm(16), nn.Linear(16, 48), nn.Linear(16, 16)

    def forward(self, x):
        q, k, v = self.qkv(self.norm(x)).reshape(-1, 5, 3, 2, 8).permute(2, 0, 3, 1, 4).unbind(0)
        mixed = torch.softmax(q @ k.transpose(-1, -2) / 8**0.5, -1) @ v
        return x + self.out(mixed.transpose(1, 2).reshape(-1, 5, 16))


def test_attention_runs_on_codes_and_its_residual_stays_float(tmp_path):
    torch.manual_seed(0)
    x = torch.randn(16, 5, 16)
    program = capture(Attention().eval(), x[:2])
    quantized = apply(program, plan_quantization(program, x, NAME))
    assert "x" not in quantized.quantizers
    artifact = export(quantized, tmp_path / "a.onnx", NAME)
    assert lint(artifact.path) == ()
    products = [node for node in onnx.load(artifact.path).graph.node if node.op_type in ("MatMul", "Gemm")]
    assert len(products) == 4
    parity = check_parity(artifact, open_artifact(artifact, threads=1), (x[:8],))
    assert parity_problems(parity, artifact, "it") == []


@settings(max_examples=4, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_random_networks_keep_the_rules(seed, tmp_path_factory):
    net, shape = random_network(seed)
    x = torch.randn(6, *shape, generator=torch.Generator().manual_seed(seed)) * (1 + seed % 3)
    program = capture(net, x[:2])
    try:
        plan = plan_quantization(program, x, NAME, scheme=Scheme(rounding="nearest"))
    except PlanError as error:
        if "no layer that tensorrt computes in integers" in str(error):
            return
        raise
    folder = tmp_path_factory.mktemp("chains")
    for name, network in (("float", program), ("int8", apply(program, plan))):
        artifact = export(network, folder / f"{name}.onnx", NAME)
        assert lint(artifact.path) == ()
        parity = check_parity(artifact, open_artifact(artifact, threads=1), (x[:4],))
        assert parity_problems(parity, artifact, f"network {seed}, {name}") == []


class Pool1d(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv1d(3, 4, 3)

    def forward(self, x):
        return nn.functional.avg_pool1d(self.conv(x), 2)


def test_an_op_that_tensorrt_refuses_is_named_with_its_layer_and_a_way_out(tmp_path):
    program = capture(Pool1d().eval(), torch.randn(2, 3, 9))
    with pytest.raises(
        UnsupportedOp, match=r"no TensorRT rule for aten\.avg_pool1d.* \(TensorRT does not read this AveragePool: it pools over one axis"
    ):
        export(program, tmp_path / "m.onnx", NAME)
    with pytest.raises(UnsupportedOp, match=r"at .*test_tensorrt\.py:\d+ .*export for another target, such as onnxruntime"):
        export(program, tmp_path / "m.onnx", NAME)
    assert not (tmp_path / "m.onnx").exists()


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (lambda x: nn.functional.max_pool2d(x, 2, dilation=2), "MaxPool: its dilations are not all 1"),
        (lambda x: nn.functional.interpolate(x, scale_factor=2, mode="bicubic"), "Resize: its mode is 'cubic'"),
        (lambda x: nn.functional.fold(x.flatten(2), (9, 9), 1), "no operator Col2Im"),
    ],
)
def test_what_its_parser_does_not_read_is_refused(function, reason, tmp_path):
    class Network(nn.Module):
        def forward(self, x):
            return function(x * 2)

    program = capture(Network(), torch.randn(2, 4, 9, 9))
    with pytest.raises(UnsupportedOp, match=reason):
        export(program, tmp_path / "m.onnx", NAME)


def test_quantizers_that_break_a_rule_are_refused(quantized, tmp_path):
    odd = {**quantized.quantizers, "x": replace(quantized.quantizers["x"], zero_point=(3,))}
    broken = quantized.with_graph(quantized.graph, quantizers=odd)
    with pytest.raises(
        PlanError, match="TensorRT's rule 'zero-point' is broken at .*its zero point is 3.0.*plan the network anew for 'tensorrt'"
    ):
        export(broken, tmp_path / "m.onnx", NAME)


def test_what_it_does_not_compute_with_is_refused(program, samples):
    for wrong in ({"weights": "int4"}, {"activations": "uint8"}, {"rules": {"head": "fp8_e4m3"}}):
        with pytest.raises(ConfigError, match="a format that tensorrt computes with"):
            plan_quantization(program, samples, NAME, **wrong)
