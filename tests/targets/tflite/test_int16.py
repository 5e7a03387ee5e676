"""16-bit codes of values with 8-bit codes of weights, on both runtimes of this format: bit for bit what the simulation says."""

import pytest
import torch

from gossamer.apply.engine import apply
from gossamer.errors import ConfigError
from gossamer.numerics.distance import sqnr_db
from gossamer.plan.plan import Plan
from gossamer.plan.quantization import plan_quantization
from gossamer.plan.scheme import Scheme
from gossamer.program.bundle import load, save
from gossamer.program.capture import capture
from gossamer.targets.export import export
from gossamer.targets.simulate import simulate
from gossamer.targets.verify import verify
from targets.tflite.layer_chains import LayerChain

pytest.importorskip("ai_edge_litert")
NEAREST = Scheme(rounding="nearest")


def made(kinds, width, seed):
    torch.manual_seed(seed)
    samples = torch.randn(8, 3, 12, 12)
    network = LayerChain(kinds, width, classes=5, flat=True)
    network(samples)  # gives the lazy layer its size
    return capture(network.eval(), samples[:2]), samples


@pytest.mark.parametrize("target", ["litert", "tflm"])
def test_finer_codes_lose_less(target, tmp_path):
    if target == "tflm":
        pytest.importorskip("tflite_micro")
    program, samples = made(["conv", "add", "clamped"], 16, 0)
    true = program(samples).detach()
    noise = {}
    for bits in ("int8", "int16"):
        plan = plan_quantization(program, samples, target, activations=bits, scheme=NEAREST, rules={"head": "float"})
        quantized = apply(program, Plan.from_json(plan.to_json()))
        save(quantized, tmp_path / "m.gossamer")
        quantized = load(tmp_path / "m.gossamer")
        noise[bits] = sqnr_db(true, simulate(quantized, samples))
        artifact = export(quantized, tmp_path / "m.tflite", target)
        report = verify(artifact, reference=program, data=(samples, true.argmax(1)), batch=4)
        assert report.problems == ()
    assert noise["int16"] > noise["int8"] + 3


def test_what_only_codes_of_8_bits_can():
    program, samples = made(["conv"], 4, 0)
    with pytest.raises(ConfigError, match="a format that cortex_m computes with"):
        plan_quantization(program, samples, "cortex_m", activations="int16")
    with pytest.raises(ConfigError, match="a format that litert computes with"):
        plan_quantization(program, samples, "litert", activations="int12")
