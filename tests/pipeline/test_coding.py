"""Formats by layer within compress: kept to the budget, in the report, in the plan, and in the file that runs."""

import json
import sys

import pytest
from typer.testing import CliRunner

import gossamer as gs
from gossamer.cli.main import app
from gossamer.errors import ConfigError
from gossamer.plan.plan import Plan
from gossamer.search.precision_settings import PrecisionBudget, PrecisionSearch

MODULE = """
import torch
from torch import nn


def make():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(8, 16, 3), nn.ReLU(), nn.Conv2d(16, 24, 3), nn.ReLU(), nn.Flatten(), nn.Linear(24 * 16, 3)).eval()


def samples():
    inputs = torch.randn(64, 8, 8, 8, generator=torch.Generator().manual_seed(1))
    part = inputs, make()(inputs).argmax(1)
    return {"calibration": inputs, "validation": part}


def labelled():
    part = samples()["validation"]
    return {"train": part, "validation": part}
"""


@pytest.fixture(scope="module")
def parts():
    space = {}
    exec(MODULE, space)
    return space["make"](), space["samples"]()


@pytest.fixture(scope="module")
def result(parts, tmp_path_factory):
    search = PrecisionSearch(budget=PrecisionBudget(max_bits=5), formats=("int4", "int8"))
    settings = gs.Settings(weights="mixed", precision=search, batch=8)
    return gs.compress(*parts, settings=settings, work_dir=tmp_path_factory.mktemp("work"))


def test_formats_by_layer_are_chosen_planned_saved_and_run(result, parts, tmp_path):
    assert result.report.problems == ()
    precision = result.best.precision
    assert precision["bits"] <= 5
    bits = {name.removesuffix(".weight"): q.format.bits for name, q in result.program.quantizers.items() if name.endswith("weight")}
    assert {layer: f"int{number}" for layer, number in bits.items()} == precision["rules"]
    assert set(bits.values()) == {4, 8}
    assert "bits each" in result.statement
    folder = result.save(tmp_path)
    document = json.loads((folder / "report.json").read_text())
    assert document["precision"]["rules"] == precision["rules"]
    assert document["settings"]["precision"]["budget"] == {"max_bits": 5}
    assert "bits each" in (folder / "report.html").read_text()
    plan = Plan.from_json(json.loads((folder / "plan.json").read_text())["quantization"])
    again = gs.export(gs.apply(result.best.pruned, plan), tmp_path / "again.onnx")
    assert again.path.read_bytes() == result.artifact.path.read_bytes()
    reread = gs.export(gs.load(folder / "model.gossamer"), tmp_path / "reread.onnx")
    assert reread.path.read_bytes() == result.artifact.path.read_bytes()


def test_the_file_is_smaller_than_at_eight_bits(result, parts, tmp_path):
    plain = gs.compress(*parts, settings=gs.Settings(batch=8), work_dir=tmp_path)
    assert plain.best.precision is None
    assert result.report.compressed.size_bytes < 0.8 * plain.report.compressed.size_bytes


def test_formats_for_mixing_need_mixing():
    with pytest.raises(ConfigError, match="precision must be None unless weights is 'mixed'"):
        gs.Settings(precision=PrecisionSearch())
    with pytest.raises(ConfigError, match=r"sensitivity method must be .*did you mean 'hawq'"):
        PrecisionSearch(sensitivity="hawk")


def test_from_the_command_line(tmp_path, monkeypatch):
    (tmp_path / "mixed_nets.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    common = ["compress", "--model", "mixed_nets:make", "--data", "mixed_nets:samples", "--batch", "8", "--json"]
    mixed = ["--weight-format", "mixed", "--weight-budget", "5 bits", "--weight-choices", "int4,int8", "--sensitivity", "hawq"]
    done = CliRunner().invoke(app, [*common, *mixed, "-o", "out"])
    assert done.exit_code == 0, done.output
    document = json.loads(done.stdout)
    assert document["precision"]["bits"] <= 5
    assert document["settings"]["precision"]["sensitivity"] == "hawq"
    refused = CliRunner().invoke(app, [*common, "--weight-budget", "5 bits", "-o", "other"])
    assert refused.exit_code == 2
    assert "--weight-budget must be left out, or --weight-format be 'mixed'" in refused.stderr
    sys.modules.pop("mixed_nets", None)


def test_training_through_the_rounding_from_the_command_line(tmp_path, monkeypatch):
    (tmp_path / "trained_nets.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    common = ["compress", "--model", "trained_nets:make", "--batch", "8", "--json", "--qat", "always", "--qat-epochs", "1"]
    done = CliRunner().invoke(
        app, [*common, "--data", "trained_nets:labelled", "--weight-format", "int4", "--activation-format", "uint4", "-o", "a"]
    )
    assert done.exit_code == 0, done.output
    document = json.loads(done.stdout)
    assert document["settings"]["qat"] == {"when": "always", "epochs": 1, "recipe": None}
    assert "quantization-aware training" in document["statement"]
    assert document["candidates"][0]["qat"]["trained_drop_points"] is not None
    refused = CliRunner().invoke(app, [*common, "--data", "trained_nets:samples", "-o", "b"])
    assert refused.exit_code == 2
    assert "without training data" in refused.stderr
    sys.modules.pop("trained_nets", None)


def test_values_of_few_bits(parts, tmp_path):
    result = gs.compress(*parts, settings=gs.Settings(weights="int4", activations="uint4", batch=8), work_dir=tmp_path)
    codes = [quantizer.format.bits for name, quantizer in result.program.quantizers.items() if not name.endswith("weight")]
    assert set(codes) == {4}
    assert result.report.parity.max_steps == 0
