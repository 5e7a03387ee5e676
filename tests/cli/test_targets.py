"""The list of targets: what is installed, and the command for what is not."""

import json
import os
import re
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from gossamer.cli.main import app
from gossamer.targets.target import Target, targets


def rows():
    result = CliRunner().invoke(app, ["targets", "--json"])
    assert result.exit_code == 0
    return {row["name"]: row for row in json.loads(result.stdout)["targets"]}


def test_each_target_says_what_it_can_run():
    found = rows()
    assert set(found) == set(targets.names())
    assert {"onnxruntime", "openvino", "litert", "tflm"} <= set(found)
    assert found["onnxruntime"]["version"]
    assert "int8" in found["litert"]["weights"]
    assert found["tflm"]["requantization"] == "gemmlowp"
    assert "Conv" in found["tflm"]["integer_ops"]


def test_a_missing_runtime_comes_with_its_command(monkeypatch):
    monkeypatch.setattr(Target, "runtime_version", property(lambda self: None))
    assert rows()["tflm"]["install"] == "pip install --pre tflite-micro"
    text = CliRunner().invoke(app, ["targets"]).stdout
    assert "litert is missing; install it: pip install ai-edge-litert" in text


def test_the_table_shows_runs_of_formats_as_spans(monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")
    found = rows()["onnxruntime"]
    assert found["weights"] == [f"int{bits}" for bits in range(8, 1, -1)]
    assert "fp16" in found["float_weights"]
    line = next(line for line in CliRunner().invoke(app, ["targets"]).stdout.splitlines() if "onnxruntime" in line)
    assert re.search(r" int2-8 +uint2-8 .* int4, int8", line)


@pytest.mark.parametrize(("columns", "widest"), [("80", 80), ("100", 100), (None, 120)])
def test_a_pipe_gets_the_columns_that_are_set_else_120_and_no_colours(columns, widest):
    done = subprocess.run(
        [sys.executable, "-m", "gossamer", "targets"],
        capture_output=True,
        env={name: value for name, value in os.environ.items() if name not in ("COLUMNS", "FORCE_COLOR")}
        | {"PYTHONIOENCODING": "ascii"}
        | ({} if columns is None else {"COLUMNS": columns}),
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert max(map(len, done.stdout.decode("ascii").splitlines())) <= widest
    assert b"\x1b" not in done.stdout
    assert all(name in done.stdout.decode("ascii") for name in targets.names())


@pytest.mark.parametrize("name", ["onnxruntime", "litert", "tflm", "openvino"])
def test_the_table_names_it(name):
    assert name in CliRunner().invoke(app, ["targets"]).stdout
