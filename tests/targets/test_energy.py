"""Energy: the estimate by hand on small networks, the counters on a made-up machine."""

import json

import pytest
import torch
from torch import nn

from gossamer.apply.engine import apply
from gossamer.errors import ConfigError
from gossamer.plan.quantization import plan_quantization
from gossamer.program.capture import capture
from gossamer.targets.energy import HOROWITZ, Clock, Energy, energy_facts, estimate_energy, find_counter, measure_energy


@pytest.fixture
def machine(tmp_path):
    """A folder as the kernel shows it: one package, which starts again at 1,000,000, with a part below."""
    for name, value in (("intel-rapl:0", 999_000), ("intel-rapl:0:0", 5)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "energy_uj").write_text(f"{value}\n")
        (tmp_path / name / "max_energy_range_uj").write_text("1000000\n")
    return tmp_path


class Load:
    """Time and energy of a made-up machine: 10 mW idle; each call takes 0.1 s and 4000 uJ more."""

    def __init__(self, folder):
        self.file, self.time, self.uj = folder / "intel-rapl:0" / "energy_uj", 0.0, 999_000.0

    def sleep(self, seconds):
        self.time += seconds
        self.uj = (self.uj + 10_000 * seconds) % 1_000_000
        self.file.write_text(str(round(self.uj)))

    def run(self):
        self.uj += 4000
        self.sleep(0.1)


def test_what_a_network_takes_beyond_idle_is_measured(machine):
    load, counter = Load(machine), find_counter(machine)
    assert counter.name == "RAPL, intel-rapl:0"  # the part is in the package
    found = measure_energy({"net": load.run}, counter, 8, clock=Clock(lambda: load.time, load.sleep))
    assert found["net"] == pytest.approx(4000 / 8 / 1000, rel=1e-3)  # across the counter's end, too


def test_no_counter_or_no_right_to_read_it_gives_none(tmp_path, machine):
    assert find_counter(tmp_path / "none") is None
    (machine / "intel-rapl:0" / "energy_uj").unlink()
    assert find_counter(machine) is None


def test_nothing_to_measure_is_refused(machine):
    with pytest.raises(ConfigError, match="at least 1 input"):
        measure_energy({}, find_counter(machine), 0)


def test_the_estimate_of_a_linear_layer_by_hand():
    program = capture(nn.Linear(6, 4).eval(), torch.zeros(2, 6))
    found = estimate_energy(program)
    assert found.estimated_compute_mj == pytest.approx(24 * 4.6e-9)
    assert found.estimated_memory_mj == pytest.approx(((24 + 4) * 4 * 1300 / 8 + (6 * 2 + 4) * 4 * 100 / 8) * 1e-9)
    assert found.measured_mj is None


def test_codes_take_less_than_floats_and_views_and_activations_nothing():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 64, 4)).eval()
    samples = torch.randn(4, 8, 8, 8)
    program = capture(network, samples[:2])
    before = estimate_energy(program)
    coded = apply(program, plan_quantization(program, samples, "onnxruntime"))
    after = estimate_energy(coded)
    macs = 64 * 72 * 8 + 512 * 4
    assert before.estimated_compute_mj == pytest.approx(macs * 4.6e-9)
    assert after.estimated_compute_mj == pytest.approx(macs * 0.3e-9)
    values = 8 * 64 * 2 + 512 * 2 + 512 * 0 + 512 + 4  # input, activation, its view read again, output
    weights = before.estimated_memory_mj * 1e9 - values * 4 * HOROWITZ.value_byte_pj
    assert weights == pytest.approx(program.cost().size_bytes * HOROWITZ.weight_byte_pj)
    assert after.estimated_memory_mj < before.estimated_memory_mj / 3


def test_estimate_and_measurement_are_different_sentences():
    one = Energy(estimated_compute_mj=1.0, estimated_memory_mj=2.0)
    (only,) = energy_facts(one, one)
    assert "estimate (not measured): 3 mJ" in only
    both = Energy(estimated_compute_mj=1.0, measured_mj=7.0, counter="RAPL")
    estimate, measured = energy_facts(both, both)
    assert "7" not in estimate
    assert "measured: 7 mJ before" in measured
    assert Energy.from_dict(json.loads(json.dumps({"measured_mj": 7.0, "counter": "RAPL", "estimated_compute_mj": 1.0}))) == both
