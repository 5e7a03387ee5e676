"""Networks that call CMSIS-NN: the same bits as the simulation on every core, with its files beside them."""

import shutil

import numpy as np
import pytest
import torch
from torch import nn

from gossamer.apply.engine import apply
from gossamer.errors import MissingRuntime
from gossamer.plan.quantization import plan_quantization
from gossamer.program.capture import capture
from gossamer.targets.cortex_m import cmsis
from gossamer.targets.cortex_m.emit import read_note
from gossamer.targets.cortex_m.run import COMPILER, EMULATOR, INSTALL, measure_memory, open_on
from gossamer.targets.export import export
from gossamer.targets.simulate import simulate
from gossamer.targets.target import targets

installed = pytest.mark.skipif(cmsis.sources() is None, reason=f"needs {cmsis.INSTALL}")
toolchain = pytest.mark.skipif(not (shutil.which(COMPILER) and shutil.which(EMULATOR)), reason=f"needs {INSTALL}")


class Many(nn.Module):
    """Every call: convolutions with and without borders, strides, dilation, of one row; depthwise ones; pools; linear layers of one and many rows."""

    def __init__(self):
        super().__init__()
        self.start = nn.Conv2d(3, 9, 3, 2, 1)
        self.deep = nn.Conv2d(9, 9, 3, 2, 1, groups=9)
        self.wide = nn.Conv2d(9, 9, (5, 3), padding=(2, 1), groups=9)
        self.twice = nn.Conv2d(9, 18, 3, padding=1, groups=9)
        self.apart = nn.Conv2d(18, 7, 3, padding=2, dilation=2)
        self.row = nn.Conv2d(7, 5, (1, 3), padding=(0, 1))
        self.skip = nn.Conv2d(7, 5, 1, 2)
        self.rows, self.head = nn.Linear(5, 6), nn.Linear(44, 10)

    def forward(self, x):
        x = torch.relu(self.wide(torch.relu(self.deep(torch.relu(self.start(x))))))
        x = nn.functional.max_pool2d(self.apart(self.twice(x)), 3, 1, 1)
        row = self.row(nn.functional.max_pool2d(x, (4, 1))).permute(0, 2, 3, 1)
        rows = torch.relu(self.rows(row)).flatten(1)
        return self.head(torch.cat([rows, self.skip(x).permute(0, 2, 3, 1).flatten(1)], 1))


@pytest.fixture(scope="module")
def samples():
    return torch.randn(6, 3, 16, 16, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def program(samples):
    torch.manual_seed(0)
    return capture(Many().eval(), samples[:2])


@pytest.fixture(scope="module")
def quantized(program, samples):
    return apply(program, plan_quantization(program, samples, "cmsis_nn"))


@toolchain
@pytest.mark.parametrize("core", ["cortex-m4", "cortex-m55"])
def test_our_kernels_compute_the_same_bits(program, samples, core, tmp_path):
    quantized = apply(program, plan_quantization(program, samples, "cortex_m"))
    artifact = export(quantized, tmp_path / "net.c", "cortex_m")
    np.testing.assert_array_equal(open_on(artifact.path, core).run(samples.numpy()), simulate(quantized, samples).numpy())


@toolchain
@installed
@pytest.mark.parametrize("core", ["cortex-m4", "cortex-m7", "cortex-m55"])
def test_every_core_computes_the_same_bits(quantized, samples, core, tmp_path):
    artifact = export(quantized, tmp_path / "net.c", "cmsis_nn")
    text = artifact.path.read_text()
    assert all(f"{call}(" in text for call in ("gs_cmsis_conv", "gs_cmsis_depthwise", "gs_cmsis_linear", "gs_cmsis_max_pool"))
    np.testing.assert_array_equal(open_on(artifact.path, core).run(samples.numpy()), simulate(quantized, samples).numpy())
    assert measure_memory(artifact.path, core).ram_bytes == read_note(artifact.path)["arena_bytes"]


@installed
def test_sources_and_licence_come_along(quantized, tmp_path):
    artifact = export(quantized, tmp_path / "net.c", "cmsis_nn")
    names = {path.relative_to(tmp_path).as_posix() for path in artifact.files}
    assert {"cmsis-nn/arm_convolve_s8.c", "cmsis-nn/arm_nnfunctions.h", "cmsis-nn/cmsis_gcc.h", "cmsis-nn/LICENSE.txt"} <= names
    assert names == {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()}
    assert "Apache-2.0" in (tmp_path / "cmsis-nn" / "arm_convolve_s8.c").read_text()
    assert "# Kernels: CMSIS-NN 4.0.0" in (tmp_path / "Makefile").read_text()
    assert read_note(artifact.path)["kernels"] == "CMSIS-NN 4.0.0"
    assert "cmsis-nn/arm_avgpool_s8.c" not in names  # only what is called


def test_without_the_sources_it_says_how_to_get_them(quantized, tmp_path, monkeypatch):
    monkeypatch.setattr(cmsis, "find_spec", lambda name: None)
    with pytest.raises(MissingRuntime, match=r"pip install bakenn"):
        export(quantized, tmp_path / "net.c", "cmsis_nn")
    assert targets["cmsis_nn"].runtime_version is None
    assert not list(tmp_path.iterdir())
