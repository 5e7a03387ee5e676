"""OpenVINO with kernels of processors without VNNI, which oneDNN takes when it is told to."""

import json
import os
import platform
import subprocess
import sys

import pytest
import torch
from torch import nn

import gossamer as gs
from gossamer.search.precision_settings import PrecisionBudget, PrecisionSearch
from gossamer.targets.target import targets

pytest.importorskip("openvino")
pytestmark = pytest.mark.skipif(platform.machine() != "x86_64", reason="only x86-64 has kernels that saturate")
SCRIPT = """
import json
import torch
from torch import nn
import gossamer as gs

torch.manual_seed(0)
torch.set_num_threads(1)
model = nn.Sequential(nn.Conv2d(8, 16, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16 * 36, 4)).eval()
with torch.no_grad():
    model[0].weight.copy_(0.8 + 0.2 * torch.rand_like(model[0].weight))
x = torch.rand(16, 8, 8, 8)
program = gs.capture(model, x[:2])
found = {}
for weights in ("int8", "int7"):
    plan = gs.plan_quantization(program, x, "openvino", weights=weights)
    artifact = gs.export(gs.apply(program, plan), f"{weights}.onnx", "openvino")
    report = gs.verify(artifact, reference=program, data=(x, torch.arange(16) % 4), batch=4)
    found[weights] = [report.parity.max_steps, report.passed, list(report.notes)]
print(json.dumps(found))
"""


def test_int8_saturates_and_int7_does_not(tmp_path):
    environment = {**os.environ, "ONEDNN_MAX_CPU_ISA": "AVX2", "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", SCRIPT], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    steps, passed, notes = found["int8"]
    assert steps > 5
    assert not passed
    assert "2 of the layers can saturate at 16 bits ('0', '3'): quantize with weights='int7'." in notes[0]
    steps, passed, notes = found["int7"]
    assert (steps <= 1, passed, notes) == (True, True, [])


def test_signed_values_are_warned_of():
    torch.manual_seed(0)
    x = torch.randn(16, 8, 8, 8)
    program = gs.capture(nn.Sequential(nn.Conv2d(8, 16, 3), nn.Flatten(), nn.Linear(16 * 36, 4)).eval(), x[:2])
    signed = gs.apply(program, gs.plan_quantization(program, x, "openvino", weights="int7", activations="int8"))
    (note,) = targets["openvino"].notes(signed)
    assert "2 of the layers can come out wrong, since they read int8 values ('0', '2'): quantize with activations='uint8'." in note
    assert targets["openvino"].notes(gs.apply(program, gs.plan_quantization(program, x, "openvino", weights="int7"))) == ()


def test_exact_weights_are_those_that_compress_takes(tmp_path, monkeypatch):
    """What it asks the kernels for, it plans with, and says so."""
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 4)).eval(), torch.randn(32, 3, 8, 8)
    data = gs.Data(train=(x, model(x).argmax(1)), validation=(x, model(x).argmax(1)))
    widest = targets["openvino"].exact_weights()
    for name, settings, wanted in (
        ("usual", gs.Settings(batch=4), widest),
        ("asked", gs.Settings(batch=4, weights="int7"), "int7"),
        ("mixed", gs.Settings(batch=4, weights="mixed", precision=PrecisionSearch(budget=PrecisionBudget(max_bits=9))), widest),
    ):
        result = gs.compress(model, data, "openvino", settings=settings, work_dir=tmp_path / name)
        assert result.report.passed, result.report.problems
        assert {quantizer.format.name for value, quantizer in result.program.quantizers.items() if value in result.program.state} == {
            wanted
        }
        told = [note for note in result.to_dict()["notes"] if "VNNI" in note]
        assert len(told) == (widest == "int7" and name != "asked")
