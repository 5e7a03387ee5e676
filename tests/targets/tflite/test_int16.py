"""16-bit codes of values with 8-bit codes of weights, on both runtimes of this format: bit for bit what the simulation says."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gossamer.apply.engine import apply
from gossamer.errors import ConfigError
from gossamer.numerics.distance import sqnr_db
from gossamer.plan.plan import Plan
from gossamer.plan.quantization import plan_quantization
from gossamer.plan.scheme import Scheme
from gossamer.program.bundle import load, save
from gossamer.program.capture import capture
from gossamer.targets.export import export
from gossamer.targets.parity import check_parity
from gossamer.targets.simulate import simulate
from gossamer.targets.target import targets
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
@given(
    st.lists(st.sampled_from(["conv", "strided", "depthwise", "add", "clamped", "sigmoid", "halved"]), max_size=4).filter(
        lambda kinds: kinds.count("halved") + kinds.count("strided") <= 3
    ),
    st.sampled_from([4, 6, 16]),
    st.integers(0, 1000),
)
@settings(max_examples=8, deadline=None)
def test_random_networks_are_bit_exact(tmp_path_factory, target, kinds, width, seed):
    if target == "tflm":
        pytest.importorskip("tflite_micro")
    program, samples = made(kinds, width, seed)
    quantized = apply(program, plan_quantization(program, samples, target, activations="int16", scheme=NEAREST))
    artifact = export(quantized, tmp_path_factory.mktemp("chain") / "m.tflite", target)
    parity = check_parity(artifact, targets[target].open(artifact.path, threads=1), (samples[:3],))
    # a sigmoid is computed in float and coded afterwards: the last bit may decide a tie
    assert all(layer.max_steps == 0 or "sigmoid" in kinds for layer in parity.layers), [x for x in parity.layers if x.max_steps]
    assert parity.max_steps <= 1
    assert parity.output_error < 1e-6


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
