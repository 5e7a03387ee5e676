"""C code on emulated chips: bit for bit the simulation, in less memory than the interpreter takes."""

import importlib.util
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from gossamer.apply.engine import apply
from gossamer.data.source import Data
from gossamer.errors import ConfigError, DataError, FileError, MissingRuntime, UnsupportedOp
from gossamer.numerics.affine import quantize
from gossamer.pipeline.loop import compress
from gossamer.pipeline.settings import Settings
from gossamer.plan.quantization import plan_quantization
from gossamer.program.capture import capture
from gossamer.targets.cortex_m import run as run_module
from gossamer.targets.cortex_m.emit import read_note
from gossamer.targets.cortex_m.run import COMPILER, EMULATOR, INSTALL, measure_memory, open_on
from gossamer.targets.export import export
from gossamer.targets.parity import check_parity
from gossamer.targets.simulate import simulate
from gossamer.targets.target import end_codes, targets
from gossamer.targets.verify import verify

toolchain = pytest.mark.skipif(not (shutil.which(COMPILER) and shutil.which(EMULATOR)), reason=f"needs {INSTALL}")
_spec = importlib.util.spec_from_file_location("tiny_networks", Path(__file__).parents[3] / "benchmarks" / "tiny_networks.py")
tiny = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(tiny)


class Mixed(nn.Module):
    """Joins, products, sums and pools of two branches, one of them used twice."""

    def __init__(self):
        super().__init__()
        self.one, self.two, self.three = nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, 24, 3, padding=1, groups=8), nn.Conv2d(32, 24, 1)
        self.four = nn.Conv2d(24, 8, 1)
        self.head = nn.Linear(128, 6)

    def forward(self, x):
        x = torch.relu(self.one(x))
        y = self.two(x)
        y = nn.functional.relu6(self.three(torch.cat([x, y], 1))) * y
        return self.head(nn.functional.max_pool2d(self.four(y) + x, 3, 2, 1).flatten(1))


@pytest.fixture(scope="module")
def samples():
    return torch.randn(16, 3, 16, 16, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def program(samples):
    torch.manual_seed(0)
    return capture(Mixed().eval(), samples[:2])


@pytest.fixture(scope="module")
def quantized(program, samples):
    return apply(program, plan_quantization(program, samples, "cortex_m"))


@pytest.fixture
def artifact(quantized, tmp_path):
    return export(quantized, tmp_path / "net.c", "cortex_m")


@toolchain
@pytest.mark.parametrize("name", tiny.NETWORKS)
def test_the_mlperf_tiny_networks(name, tmp_path):
    make, shape = tiny.NETWORKS[name]
    torch.manual_seed(0)
    samples = torch.randn(4, *shape)
    network = make()
    network(samples)  # gives the batch norm statistics
    program = capture(network.eval(), samples[:2])
    artifact = export(apply(program, plan_quantization(program, samples, "cortex_m")), tmp_path / "net.c", "cortex_m")
    parity = check_parity(artifact, targets["cortex_m"].open(artifact.path, threads=1), (samples[:1],))
    assert parity.max_steps == 0
    assert parity.output_error == 0
    assert len(parity.layers) >= 10
    memory = measure_memory(artifact.path)
    micro = pytest.importorskip("tflite_micro") and export(
        apply(program, plan_quantization(program, samples, "tflm")), tmp_path / "net.tflite", "tflm"
    )
    runner = targets["tflm"].open(micro.path, threads=1)
    runner.run(samples[:1].numpy())
    assert memory.ram_bytes <= runner.arena_bytes()
    assert memory.flash_bytes <= micro.size_bytes + 8192  # the kernels are in ours


@toolchain
@pytest.mark.parametrize("core", ["cortex-m4", "cortex-m7", "cortex-m55"])
def test_every_core_computes_the_same_bits(artifact, quantized, samples, core):
    runner = open_on(artifact.path, core)
    np.testing.assert_array_equal(runner.run(samples.numpy()), simulate(quantized, samples).numpy())
    counts = runner.instructions(samples.numpy())
    assert list(counts) == [f"{position} {step['name']}" for position, step in enumerate(read_note(artifact.path)["steps"])]
    assert counts == runner.instructions(samples.numpy())
    assert sum(counts.values()) > 10_000


@toolchain
@pytest.mark.parametrize("core", ["cortex-m4", "cortex-m7", "cortex-m55"])
def test_instructions_are_those_that_run(artifact, samples, core):
    before = open_on(artifact.path, core).instructions(samples.numpy())
    loop = '{ int turns = 50000; __asm volatile("1: subs %0, #1\\n\\tbne 1b" : "+l"(turns) : : "cc"); }'
    artifact.path.write_text(artifact.path.read_text().replace("GS_STEP(1);", f"{loop} GS_STEP(1);"))
    more = sum(open_on(artifact.path, core).instructions(samples.numpy()).values()) - sum(before.values())
    assert more == pytest.approx(100_000, rel=1e-3)  # each board's timer has a clock of its own


@toolchain
def test_verify_compares_with_the_float_network_on_the_same_chip(program, artifact, samples):
    report = verify(artifact, reference=program, data=(samples, program(samples).argmax(1)), batch=4)
    assert report.passed, report.problems
    assert report.parity.max_steps == 0


@toolchain
def test_float_networks_run_too(program, samples, tmp_path):
    path = export(program, tmp_path / "net.c", "cortex_m").path
    got = targets["cortex_m"].open(path, threads=1).run(samples[:3].numpy())
    np.testing.assert_allclose(got, program(samples[:3]).detach().numpy(), atol=1e-5)


@toolchain
@pytest.mark.parametrize("tool", ["make", "cmake"])
def test_the_project_builds_for_a_chip(artifact, tool, tmp_path):
    if shutil.which(tool) is None:
        pytest.skip(f"needs {tool}")
    folder = artifact.path.parent
    flags = "-mcpu=cortex-m7 -mfpu=fpv5-d16 -mfloat-abi=hard -O3"
    if tool == "make":
        subprocess.run(["make", "-C", folder, f"CC={COMPILER}", "AR=arm-none-eabi-ar", f"CFLAGS={flags}"], check=True, capture_output=True)
        assert (folder / "libnet.a").exists()
        return
    built = tmp_path / "built"
    options = ["-DCMAKE_SYSTEM_NAME=Generic", f"-DCMAKE_C_COMPILER={COMPILER}", f"-DCMAKE_C_FLAGS={flags} --specs=nosys.specs"]
    subprocess.run(["cmake", "-S", folder, "-B", built, *options], check=True, capture_output=True)
    subprocess.run(["cmake", "--build", built], check=True, capture_output=True)
    assert (built / "libnet.a").exists()


def test_the_header_tells_what_callers_need(artifact, quantized):
    text = artifact.path.with_suffix(".h").read_text()
    assert "int net_invoke(const int8_t *input, int8_t *output);" in text
    assert repr(quantized.quantizers["x"].scale[0]) in text
    assert "malloc" not in artifact.path.read_text()
    assert {file.name for file in artifact.path.parent.iterdir()} == {
        "net.c", "net.h", "gossamer_kernels.c", "gossamer_layers_s8.c", "gossamer_kernels.h", "gossamer_layers_mve.c",
        "gossamer_depthwise_mve.c", "gossamer_values_mve.c", "gossamer_mve.h", "Makefile", "CMakeLists.txt",
    }  # fmt: skip


@pytest.mark.parametrize("target", ["cortex_m", "cmsis_nn"])
def test_codes_of_other_kinds_are_made_by_callers(program, samples, target, tmp_path):
    quantized = apply(program, plan_quantization(program, samples, target))
    for io in ("uint8", "int8"):
        with pytest.raises(ConfigError, match=r"io must be 'float' for \w+: its C function takes and gives int8 codes .* \(byte \^ 0x80\)"):
            export(quantized, tmp_path / "net.c", target, io=io)
    ours = quantized.quantizers["x"]
    values = torch.linspace(-5, 5, 999)
    unsigned = quantize(values, end_codes(ours, "uint8")).numpy().astype(np.uint8)
    np.testing.assert_array_equal((unsigned ^ 0x80).view(np.int8), quantize(values, end_codes(ours, "int8")).numpy())


@toolchain
def test_compress_goes_the_whole_way_for_a_chip(samples, tmp_path):
    torch.manual_seed(0)
    network = Mixed().eval()
    data = Data(train=None, calibration=samples, validation=(samples, network(samples).argmax(1)))
    result = compress(network, data, target="cortex_m", settings=Settings(epochs=0, batch=4), work_dir=tmp_path)
    assert result.report.passed, result.report.problems
    assert "original_model_invoke" in (tmp_path / "original-model.h").read_text()
    assert result.report.compressed.size_bytes == measure_memory(result.artifact.path).flash_bytes
    assert "not a chip's" in " ".join(result.report.notes)
    saved = result.save(tmp_path / "out")
    assert measure_memory(saved / "model.c") == measure_memory(result.artifact.path)  # all it needs came along
    assert "libmodel.a" in (saved / "Makefile").read_text()


@toolchain
@pytest.mark.parametrize(("core", "width"), [("cortex-m55", 300), ("cortex-m4", 1200), ("cortex-m7", 1200)])
def test_more_constants_than_chips_have_flash_run_on_the_emulator(core, width, tmp_path):
    """The network before compression is run there, too."""
    program = capture(nn.Linear(1000, width).eval(), torch.zeros(2, 1000))
    x = torch.randn(2, 1000)
    got = open_on(export(program, tmp_path / "net.c", "cortex_m").path, core).run(x.numpy())
    torch.testing.assert_close(torch.from_numpy(got), program(x).detach())


@toolchain
def test_a_network_that_does_not_fit_says_by_how_much(tmp_path):
    program = capture(nn.Sequential(nn.Conv2d(1, 64, 3), nn.Conv2d(64, 1, 1)).eval(), torch.zeros(2, 1, 66, 66))
    path = export(program, tmp_path / "net.c", "cortex_m").path
    message = r"does not fit the emulated board: its RAM is [\d,]+ bytes too small; most bytes are held by 0 \(1,048,576\)"
    with pytest.raises(FileError, match=message):
        open_on(path, "cortex-m55").run(np.zeros((1, 1, 66, 66), np.float32))


@toolchain
def test_an_emulator_that_leaves_no_result_is_told(artifact, samples, monkeypatch):
    monkeypatch.setattr("gossamer.targets.cortex_m.run.EMULATOR", "true")
    with pytest.raises(DataError, match="ended without a result"):
        open_on(artifact.path, "cortex-m4").run(samples[:1].numpy())


def test_bad_input(artifact, quantized, samples, tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match="starts with a letter"):
        export(quantized, tmp_path / "1net.c", "cortex_m")

    class Sine(nn.Module):
        def forward(self, x):
            return x.sin()

    with pytest.raises(UnsupportedOp, match="SIN"):
        export(capture(Sine().eval(), torch.zeros(2, 4)), tmp_path / "sine.c", "cortex_m")
    foreign = tmp_path / "foreign.c"
    foreign.write_text("int main(void) { return 0; }")
    with pytest.raises(FileError, match="was not written by this package"):
        read_note(foreign)
    with pytest.raises(FileError, match="cannot be read"):
        read_note(tmp_path / "none.c")
    monkeypatch.setattr(run_module.shutil, "which", lambda name: None)
    with pytest.raises(MissingRuntime, match="apt-get install"):
        targets["cortex_m"].open(artifact.path, threads=1)


@toolchain
def test_threads_and_cores_that_are_not_there(artifact):
    with pytest.raises(ConfigError, match="threads must be 1"):
        targets["cortex_m"].open(artifact.path, threads=2)
    with pytest.raises(ConfigError, match="did you mean 'cortex-m55'"):
        open_on(artifact.path, "cortex-m5")
