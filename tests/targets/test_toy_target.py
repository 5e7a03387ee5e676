"""A target is one folder and one registration: a small one comes, does all that targets do, and goes."""

import json

import numpy as np
import pytest
import torch
from torch import nn
from typer.testing import CliRunner

import gossamer as gs
from gossamer.cli.main import app
from gossamer.errors import ConfigError, UnsupportedOp
from gossamer.plan.plan import Plan
from gossamer.plan.spec import TargetSpec, specs
from gossamer.targets.target import Target, add_target, remove_target, targets
from toy_target import definitions, registered_toy


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second, self.last = nn.Linear(12, 16), nn.Linear(16, 16), nn.Linear(16, 3)

    def forward(self, x):
        x = self.first(x).relu()
        return self.last(x + self.second(x).relu())


@pytest.fixture
def toy():
    with registered_toy() as target:
        yield target


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    model, samples = Residual().eval(), torch.randn(96, 12)
    return gs.capture(model, samples[:2]), samples


def listed():
    return {row["name"]: row for row in json.loads(CliRunner().invoke(app, ["targets", "--json"]).stdout)["targets"]}


def test_it_comes_and_goes():
    before = targets.names()
    with registered_toy():
        assert targets.names() == (*before, "toy") == specs.names()
        expected = {
            "name": "toy",
            "file": "*.toy",
            "runtime": "numpy",
            "version": np.__version__,
            "weights": ["int8"],
            "activations": ["int8"],
            "dynamic_range": [],
            "weight_only": [],
            "requantization": "float32-half-even",
            "integer_ops": ["Gemm"],
        }
        assert expected.items() <= listed()["toy"].items()
    assert targets.names() == specs.names() == before
    assert "toy" not in listed()


def test_a_float_network_is_exported_and_verified(toy, network, tmp_path):
    program, samples = network
    artifact = gs.export(program, tmp_path / "net.toy", "toy")
    report = gs.verify(artifact, reference=program, data=(samples, program(samples).argmax(1)))
    assert report.passed, report.problems
    assert report.compressed.accuracy == 1
    assert report.versions["numpy"] == np.__version__


def test_a_quantized_network_is_bit_exact(toy, network, tmp_path):
    program, samples = network
    plan = Plan.from_json(gs.plan_quantization(program, samples, "toy").to_json())
    coded = gs.apply(program, plan)
    artifact = gs.export(coded, tmp_path / "net.toy", "toy")
    runner = toy.open(artifact.path, threads=1, values=True)
    seen = runner.run_values(samples.numpy())
    values = {name for name in coded.quantizers if name not in coded.state}
    assert values == {"x", "relu", "add"} and values <= seen.keys()  # the second ReLU is read by an addition in float alone
    report = gs.verify(artifact, reference=program, data=(samples, program(samples).argmax(1)))
    assert report.passed and report.parity.max_steps == 0
    assert report.parity.values_compared > 96 * len(values)
    np.testing.assert_allclose(runner.run(samples.numpy()), gs.simulate(coded, samples).numpy(), rtol=1e-5, atol=1e-6)


def test_a_runtime_that_computes_otherwise_is_found_out(network, tmp_path):
    """The proof can fail: halves rounded up instead of to even, and one step more here and there."""
    program, samples = network
    found = definitions()

    class Numpy:
        def __getattr__(self, name):
            return getattr(np, name)

        @staticmethod
        def rint(values):
            return np.floor(values + 0.7)

    found["np"] = Numpy()
    add_target(Target(spec=found["SPEC"], suffix=".toy", emit=found["emit"], open=found["open_file"], package="numpy"), source="")
    try:
        coded = gs.apply(program, gs.plan_quantization(program, samples, "toy"))
        report = gs.verify(gs.export(coded, tmp_path / "net.toy", "toy"), reference=program, data=(samples, program(samples).argmax(1)))
    finally:
        remove_target("toy")
    assert report.parity.max_steps == 1
    assert not report.passed and any("code steps from the simulation, allowed is 0" in problem for problem in report.problems)


def test_what_it_lacks_is_refused_by_name(toy, tmp_path):
    program = gs.capture(nn.Sequential(nn.Linear(4, 4), nn.Softmax(1)).eval(), torch.randn(2, 4))
    with pytest.raises(UnsupportedOp, match=r"no toy rule for aten.softmax.int at 1.*; export to another target"):
        gs.export(program, tmp_path / "net.toy", "toy")
    assert not (tmp_path / "net.toy").exists()


def test_a_name_is_taken_once(toy):
    with pytest.raises(ConfigError, match="target name must be one that is not registered yet; got 'toy'"):
        add_target(toy, source="")
    with pytest.raises(ConfigError, match="did you mean 'toy'"):
        remove_target("toyy")


def test_a_spec_with_a_name_alone_computes_in_float(network, tmp_path):
    program, samples = network
    found = definitions()
    add_target(
        Target(spec=TargetSpec(name="plain"), suffix=".toy", emit=found["emit"], open=found["open_file"], package="numpy"), source=""
    )
    try:
        for plan in (gs.plan_quantization, gs.plan_weight_quantization, gs.plan_dynamic_quantization):
            args = (samples,) if plan is gs.plan_quantization else ()
            with pytest.raises(ConfigError, match=r"target must be one (that|with).*; got 'plain'"):
                plan(program, *args, target="plain")
        report = gs.verify(gs.export(program, tmp_path / "net.toy", "plain"), reference=program, data=(samples, program(samples).argmax(1)))
        assert report.passed
    finally:
        remove_target("plain")
