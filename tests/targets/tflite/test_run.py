"""Files and inputs that cannot be run, one sentence each."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn

from gossamer.errors import ConfigError, DataError, FileError, MissingRuntime
from gossamer.program.capture import capture
from gossamer.targets.export import export
from gossamer.targets.tflite import TARGET
from gossamer.targets.tflite import flat as flat_module

pytest.importorskip("ai_edge_litert")


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    program = capture(nn.Linear(4, 2).eval(), torch.zeros(2, 4))
    return export(program, tmp_path_factory.mktemp("run") / "m.tflite", "litert").path


def test_inputs_that_do_not_fit(path):
    runner = TARGET.open(path, threads=1)
    with pytest.raises(DataError, match="takes 1 inputs; got 2"):
        runner.run(np.zeros((1, 4), np.float32), np.zeros((1, 4), np.float32))
    with pytest.raises(DataError, match="LiteRT refuses these inputs"):
        runner.run(np.zeros((1, 5), np.float32))
    assert runner.run(np.zeros((3, 4), np.float32)).shape == (3, 2)


def test_files_that_cannot_be_run(path, tmp_path):
    with pytest.raises(FileError, match="cannot be read"):
        TARGET.open(tmp_path / "none.tflite", threads=1)
    other = tmp_path / "other.tflite"
    other.write_bytes(b"not a file of this kind")
    with pytest.raises(FileError, match=r"is not a \.tflite file"):
        TARGET.open(other, threads=1)
    with pytest.raises(ConfigError, match="threads must be at least 1"):
        TARGET.open(path, threads=0)


@pytest.mark.parametrize("kept", [0.2, 0.5, 0.9])
def test_truncated_files(path, tmp_path, kept):
    data = path.read_bytes()
    short = tmp_path / "short.tflite"
    short.write_bytes(data[: int(len(data) * kept)])
    with pytest.raises(FileError, match="is damaged|cannot run|can run"):
        TARGET.open(short, threads=1)


def test_a_missing_runtime_is_named(path, monkeypatch):
    for name in ("ai_edge_litert", "ai_edge_litert.interpreter"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingRuntime, match="pip install ai-edge-litert"):
        TARGET.open(path, threads=1)
    with pytest.raises(MissingRuntime, match="pip install ai-edge-litert"):
        flat_module.schema()


def test_importing_the_package_does_not_import_the_runtime():
    code = "import sys, gossamer.targets; print([name for name in sys.modules if name.startswith(('ai_edge_litert', 'flatbuffers'))])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
