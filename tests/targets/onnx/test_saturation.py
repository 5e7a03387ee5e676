import json
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from gossamer.apply.engine import apply
from gossamer.numerics.affine import Quantizer
from gossamer.numerics.formats import IntFormat, PerTensor
from gossamer.plan.dynamic import plan_dynamic_quantization
from gossamer.plan.quantization import plan_quantization
from gossamer.program.capture import capture
from gossamer.targets.export import export
from gossamer.targets.onnx import cpu, run, saturation
from gossamer.targets.onnx.saturation import Saturation, pair_sums, saturable_layers, saturation_notes
from gossamer.targets.simulate import Simulator
from gossamer.targets.verify import verify

QEMU = shutil.which("qemu-x86_64")
SCRIPT = Path(__file__).with_name("old_processor.py")


class Network(nn.Module):
    """One layer of each kind; weights are large and alike, so that neighbours exceed 128 code steps together."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(8, 64, 3, padding=1)
        self.depthwise = nn.Conv2d(64, 64, 3, padding=1, groups=64)
        self.grouped = nn.Conv2d(64, 64, 3, padding=1, groups=2)  # smaller groups stay float on ONNX Runtime
        self.pointwise = nn.Conv2d(64, 12, 1)
        self.fc = nn.Linear(12, 5)
        with torch.no_grad():
            for weight in (parameter for parameter in self.parameters() if parameter.dim() > 1):
                weight.copy_(torch.where(torch.rand_like(weight) < 0.7, 1, -1) * (0.8 + 0.2 * torch.rand_like(weight)) * 0.2)

    def forward(self, x):
        for layer in (self.conv, self.depthwise, self.grouped, self.pointwise):
            x = layer(x).relu()
        return self.fc(x.mean((2, 3)))


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    x = torch.rand(32, 8, 8, 8)
    return capture(Network().eval(), x[:2]), x


@pytest.fixture(scope="module")
def coded(network):
    program, x = network
    return {name: apply(program, plan_quantization(program, x, weights=name)) for name in ("int8", "int7")}


@pytest.fixture(scope="module")
def old(network, coded, tmp_path_factory):
    """What a processor without VNNI makes of three files."""
    if QEMU is None or platform.machine() != "x86_64":
        pytest.skip("qemu-x86_64 is not installed (Debian: qemu-user), or this is no x86-64")
    folder = tmp_path_factory.mktemp("old")
    _, x = network
    for name, quantized in coded.items():
        export(quantized, folder / f"{name}.onnx")
        codes = {
            f"{value}/q": found.numpy() for value, found in Simulator(quantized).run(x[:4]).codes.items() if value not in quantized.state
        }
        np.savez(folder / f"{name}.npz", x=x[:4].numpy(), **codes)
    _save_dynamic(folder)
    command = [QEMU, "-cpu", "Haswell", sys.executable, str(SCRIPT), cpu.__file__, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env={"OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def _save_dynamic(folder):
    x = torch.rand(4, 64)
    layer = nn.Linear(64, 8)
    with torch.no_grad():
        layer.weight.copy_(0.8 + 0.2 * torch.rand(8, 64))
    program = capture(nn.Sequential(layer).eval(), x)
    artifact = export(apply(program, plan_dynamic_quantization(program)), folder / "dynamic.onnx")
    assert artifact.notes
    np.savez(folder / "dynamic.npz", x=x.numpy(), output=artifact.program(x).detach().numpy())


def test_without_vnni_codes_are_wrong_in_just_the_layers_that_are_named(old):
    assert old["saturates"]
    wrong = old["files"]["int8"][0]
    assert wrong["relu/q"] > 5  # the first layer, which reads exact codes
    assert old["files"]["dynamic"][0]["output"] > 0.1


@pytest.mark.parametrize(("name", "precise"), [("int8", True), ("int7", False), ("int7", True)])
def test_both_cures_make_every_code_equal_to_the_simulation(old, name, precise):
    steps = old["files"][name][precise]
    assert len(steps) == 6
    assert set(steps.values()) == {0}


def test_products_that_quantize_while_they_run_are_cured_too(old):
    assert old["files"]["dynamic"][1]["output"] < 1e-4


def test_layers_that_can_saturate_are_found_from_their_codes(coded):
    found = saturable_layers(coded["int8"])
    assert [layer.layer for layer in found] == ["conv", "grouped", "pointwise", "fc"]  # the depthwise kernel is exact
    assert all(0 < layer.channels <= layer.of and abs(layer.worst) > 2**15 for layer in found)
    assert saturable_layers(coded["int7"]) == ()


def test_codes_are_followed_past_what_only_moves_them():
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Flatten(), nn.Dropout(), nn.Linear(8 * 36, 4)).eval()
    x = torch.rand(32, 8, 8, 8)
    program = capture(layers, x[:2])
    found = saturable_layers(apply(program, plan_quantization(program, x)))
    assert [layer.layer for layer in found] == ["0", "4"]
    attention = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True, norm_first=True).eval()
    rows = torch.randn(16, 6, 32)
    program = capture(attention, rows[:2])
    quantized = apply(program, plan_quantization(program, rows, "openvino"))
    layers = {node.module for node in quantized.graph.nodes if node.op == "aten.linear.default" and node.module}
    assert {layer.layer for layer in saturable_layers(quantized) if "." in layer.layer or layer.layer in layers} >= layers
    assert len(saturable_layers(quantized)) == 4


def test_pair_sums_are_the_worst_over_all_pairs():
    codes = torch.randint(-127, 128, (6, 3, 2, 2)).float()
    low, high = pair_sums(codes)
    for row, lowest, highest in zip(codes.flatten(1), low, high, strict=True):
        ends = [(255 * (min(a, 0) + min(b, 0)), 255 * (max(a, 0) + max(b, 0))) for i, a in enumerate(row) for b in row[:i]]
        assert (lowest, highest) == (min(end[0] for end in ends), max(end[1] for end in ends))


def test_seven_bits_are_the_most_that_are_safe():
    low, high = pair_sums(torch.tensor([[-64.0, -64.0, 64.0, 64.0], [0.0, 65.0, 64.0, 0.0], [7.0, 0.0, 0.0, 0.0]]))
    assert ((low >= saturation.SHORT_LOW) & (high <= saturation.SHORT_HIGH)).tolist() == [True, False, True]


def test_signed_values_and_floats_cannot_saturate(network, coded):
    program, _ = network
    assert saturable_layers(program) == ()
    signed = Quantizer(IntFormat(bits=8), PerTensor(), (0.1,), (0,))
    weights = {name: quantizer for name, quantizer in coded["int8"].quantizers.items() if name in coded["int8"].state}
    values = {name: signed for name in coded["int8"].quantizers if name not in weights}
    assert saturable_layers(coded["int8"].with_graph(coded["int8"].graph, quantizers=weights | values)) == ()


def test_reports_and_artifacts_say_it(network, coded, tmp_path, monkeypatch):
    program, x = network
    monkeypatch.setattr(saturation, "saturates", lambda: False)
    artifact = export(coded["int8"], tmp_path / "m.onnx")
    report = verify(artifact, reference=program, data=(x, torch.arange(32) % 5), batch=4)
    assert report.passed
    assert report.notes == artifact.notes
    (note,) = report.notes
    assert "4 of the layers can saturate at 16 bits ('conv', 'grouped', 'pointwise', ...)" in note
    assert note in str(report)
    assert export(coded["int7"], tmp_path / "n.onnx").notes == ()


def test_a_processor_that_saturates_gets_exact_sessions_and_is_named(coded, network, tmp_path, monkeypatch):
    """The setting on any processor: weights become unsigned, and every number stays."""
    program, x = network
    for module in (run, saturation):
        monkeypatch.setattr(module, "saturates", lambda: True)
    assert "This processor is one of them" in saturation_notes(coded["int8"])[1]
    artifact = export(coded["int8"], tmp_path / "m.onnx")
    optimized = tmp_path / "optimized.onnx"
    run.start_session(artifact.path, artifact.path.read_bytes(), threads=1, optimized=optimized)
    import onnx

    stored = onnx.load(optimized).graph.initializer
    assert {tensor.data_type for tensor in stored if len(tensor.dims) > 1} == {onnx.TensorProto.UINT8}
    assert verify(artifact, reference=program, data=(x, torch.arange(32) % 5), batch=4).parity.max_steps == 0


def test_this_processor_is_asked_once():
    assert cpu.saturates() is cpu.saturates()
    assert cpu.saturates.cache_info().misses == 1


def test_a_finding_is_plain_data():
    assert Saturation("a", "a.weight", 1, 2, 40_000) == Saturation("a", "a.weight", 1, 2, 40_000)
