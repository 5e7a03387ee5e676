"""gossamer diagnose on a run folder, on a model, and on a quantized file."""

import json

import pytest
import torch
from typer.testing import CliRunner

from gossamer.apply.engine import apply
from gossamer.cli.main import app
from gossamer.data.source import Data
from gossamer.pipeline.loop import compress
from gossamer.plan.plan import Plan
from gossamer.program.bundle import load, save
from search.diagnosis import sick_networks as sick

MODULE = """
import torch
from search.diagnosis import sick_networks as sick

def factory():
    return sick.outlier_channel()

def loaders():
    x = sick.samples()
    return {"calibration": x, "validation": (x, torch.arange(len(x)) % 6)}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with a module of the user's own, a run, and a quantized file."""
    folder = tmp_path_factory.mktemp("user")
    (folder / "sickly.py").write_text(MODULE)
    x = sick.samples()
    program = sick.captured(sick.outlier_channel(), x)
    save(program, folder / "float.gossamer")
    save(apply(program, sick.plan_of(program, x)), folder / "coded.gossamer")
    compress(program, Data(calibration=x, validation=(x, torch.arange(len(x)) % 6)), work_dir=folder / "work").save(folder / "out")
    return folder


@pytest.fixture
def run(folder, monkeypatch):
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(str(folder))
    return lambda *words: CliRunner().invoke(app, ["diagnose", *words])


def test_a_run_folder_is_diagnosed_with_its_plan(run, folder):
    done = run("out", "--data", "sickly:loaders", "--worst", "1", "--json")
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    worst = min(found["findings"], key=lambda finding: finding["isolated"]["output_db"])
    assert (worst["name"], worst["cause"]["label"]) == ("relu", "outlier channel")
    assert found["notes"] == []
    page = (folder / "out" / "diagnosis.html").read_text()
    assert "outlier channel" in page
    cured = Plan.load(folder / "out" / "cured-plan.json")
    assert apply(load(folder / "out" / "pruned.gossamer"), cured).quantizers


def test_a_model_is_quantized_and_diagnosed(run, folder):
    done = run("sickly:factory", "--data", "sickly:loaders", "--worst", "1", "--samples", "16", "-o", "there")
    assert done.exit_code == 0, done.output
    assert "outlier channel" in done.stdout
    assert "keep float" in done.stdout
    assert "16, without labels" in done.stdout
    assert {path.name for path in (folder / "there").iterdir()} >= {"diagnosis.json", "diagnosis.html"}


def test_a_quantized_file_needs_its_float_network(run):
    done = run("coded.gossamer", "--data", "sickly:loaders")
    assert done.exit_code == 2
    assert "--float must be the .gossamer file of the float network" in " ".join(done.stderr.split())
    done = run("coded.gossamer", "--data", "sickly:loaders", "--float", "float.gossamer", "--worst", "0", "-o", "coded")
    assert done.exit_code == 0, done.output
    assert "outlier channel" in done.stdout


def test_data_must_be_named_for_a_model(run):
    done = run("sickly:factory")
    assert done.exit_code == 2
    assert "--data must be given for a model" in " ".join(done.stderr.split())


@pytest.mark.parametrize(
    "option", [("--target", "openvino"), ("--weights", "w.safetensors"), ("--float", "float.gossamer"), ("--output", "0")]
)
def test_what_a_run_has_decided_is_not_asked_again(run, option):
    done = run("out", *option)
    assert done.exit_code == 2
    assert f"{option[0]} must be left out for the folder of a run, which has its own; got" in " ".join(done.stderr.split())


def test_an_unfinished_run_is_told(run, tmp_path):
    done = run(str(tmp_path))
    assert done.exit_code == 2
    assert "holds no finished run" in " ".join(done.stderr.split())
