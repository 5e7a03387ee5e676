"""Files and inputs that cannot be run, one sentence each."""

import subprocess
import sys

import pytest
import torch
from torch import nn

from gossamer.errors import FileError, MissingRuntime
from gossamer.program.capture import capture
from gossamer.targets.export import export
from gossamer.targets.tflite import TARGET
from gossamer.targets.tflite import flat as flat_module

pytest.importorskip("ai_edge_litert")


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    program = capture(nn.Linear(4, 2).eval(), torch.zeros(2, 4))
    return export(program, tmp_path_factory.mktemp("run") / "m.tflite", "litert").path


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
