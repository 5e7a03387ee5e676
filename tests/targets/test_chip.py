"""What reports say of chips: what fits, by how much it does not, and estimates that are called so."""

import dataclasses
import json

import pytest
import torch
from torch import nn

from gossamer.errors import ConfigError
from gossamer.plan.budget import Budget
from gossamer.plan.chips import CYCLES, chips
from gossamer.program.capture import capture
from gossamer.targets.chip import ChipLayer, ChipReport
from gossamer.targets.export import export
from gossamer.targets.target import targets
from gossamer.targets.verify import verify


@pytest.fixture
def report():
    layers = [
        ChipLayer(name=name, op="CONV_2D", instructions=900_000 * k, constant_bytes=200_000 * k, arena_bytes=150_000 - 10_000 * k)
        for k, name in enumerate("abcd", 1)
    ]
    return ChipReport(
        core="cortex-m4", kernels="portable C", flash_bytes=600_000, arena_bytes=140_000, io_bytes=1_000, layers=tuple(layers)
    )


def test_estimates_follow_from_counts_and_the_stated_assumptions(report):
    rows = {row.name: row for row in report.board_rows()}
    assert set(rows) == {entry.name for entry in chips if entry.value.core == "cortex-m4"}
    milliseconds = 9_000_000 * CYCLES["cortex-m4"] / 64e6 * 1000
    assert float(rows["nrf52840"].latency) == pytest.approx(milliseconds, rel=5e-3)
    assert float(rows["nrf52840"].rate) == pytest.approx(1000 / milliseconds, rel=5e-3)
    assert rows["stm32f446re"][4:] == ("no", "-", "-")
    assert "estimates, not measurements" in report.facts()[1]


def test_what_does_not_fit_says_by_how_much_and_where(report):
    assert report.misfit() == ()
    flash, ram = dataclasses.replace(report, board="stm32f446re").misfit()
    assert flash == (
        f"The network does not fit stm32f446re: its flash is {600_000 - 512 * 1024:,} bytes too small; "
        "most bytes are held by d (800,000), c (600,000), b (400,000)."
    )
    assert f"its RAM is {141_000 - 128 * 1024:,} bytes too small; most bytes are held by a (140,000), b (130,000), c" in ram


def test_it_comes_back_from_json(report):
    assert ChipReport.from_dict(json.loads(json.dumps(dataclasses.asdict(report)))) == report


def test_an_unknown_board_names_the_nearest():
    with pytest.raises(ConfigError, match="did you mean 'stm32f446re'"):
        Budget(board="stm32f446")
    assert Budget(**Budget(board="nrf52840", macs=0.5).to_json()) == Budget(board="nrf52840", macs=0.5)


def test_a_board_needs_a_target_that_writes_for_chips(tmp_path):
    program = capture(nn.Linear(4, 2).eval(), torch.zeros(2, 4))
    artifact = export(program, tmp_path / "net.onnx")
    with pytest.raises(ConfigError, match="cortex_m, .* write for chips|cmsis_nn, cortex_m write for chips"):
        verify(artifact, reference=artifact, data=(torch.zeros(2, 4), torch.zeros(2, dtype=torch.long)), budget=Budget(board="nrf52840"))


@pytest.mark.skipif(targets["cortex_m"].runtime_version is None, reason=f"needs {targets['cortex_m'].install}")
def test_verify_holds_a_network_against_a_board(tmp_path):
    torch.manual_seed(0)
    program = capture(nn.Sequential(nn.Linear(400, 400), nn.ReLU(), nn.Linear(400, 5)).eval(), torch.zeros(2, 400))
    artifact = export(program, tmp_path / "net.c", "cortex_m")
    data = (torch.randn(4, 400), torch.zeros(4, dtype=torch.long))
    found = verify(artifact, reference=artifact, data=data, batch=1, budget=Budget(board="stm32f446re"))
    assert not found.passed
    (problem,) = found.problems
    assert "the flash of stm32f446re is" in problem
    assert "most bytes are held by 0 (641,600), 2 (8,020)" in str(found)  # the layers' paths in the user's network
    assert found.chip.instructions > 400 * 400
    assert found.compressed.ram_bytes == found.chip.ram_bytes == found.chip.arena_bytes + 405 * 4
    assert type(found).from_dict(json.loads(json.dumps(found.to_dict()))) == found
