"""Simulated == executed: the random networks of tests/chains.py on LiteRT and its interpreter for microcontrollers, value by value.

GOSSAMER_CHAINS=1000 runs as many networks.
"""

import os

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from chains import random_network
from gossamer.errors import PlanError
from gossamer.targets.parity import check_parity
from gossamer.targets.target import targets
from targets.tflite.layer_chains import LayerChain
from targets.tflite.test_transposed import coded, needs

EXAMPLES = int(os.environ.get("GOSSAMER_CHAINS", "4"))


@pytest.mark.parametrize("target", ["litert", "tflm"])
@settings(max_examples=EXAMPLES, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_random_chains(seed, target, tmp_path_factory):
    needs(target)
    net, shape = random_network(seed, more=True)
    samples = torch.randn(6, *shape, generator=torch.Generator().manual_seed(seed)) * (1 + seed % 3)
    try:
        _, _, artifact = coded(net, samples, target, tmp_path_factory.mktemp("chains"))
    except PlanError as error:
        if "computes in integers" in str(error):  # no layer of it
            return
        raise
    parity = check_parity(artifact, targets[target].open(artifact.path, threads=1), (samples[:3],))
    assert parity.max_steps == 0, [layer for layer in parity.layers if layer.max_steps]


KINDS = {  # of layers on codes of so many bits
    "int8": ["conv", "strided", "depthwise", "grouped", "add", "join", "gate", "pool", "relu6"],
    "int16": ["conv", "strided", "depthwise", "add", "clamped", "sigmoid", "halved"],
}


@pytest.mark.parametrize(("target", "bits"), [("litert", "int8"), ("litert", "int16"), ("tflm", "int16")])
@settings(max_examples=2 * EXAMPLES, deadline=None)
@given(data=st.data(), width=st.sampled_from([4, 6, 16]), seed=st.integers(0, 1000))
def test_chains_of_layers(data, width, seed, target, bits, tmp_path_factory):
    needs(target)
    kinds = data.draw(st.lists(st.sampled_from(KINDS[bits]), min_size=1, max_size=4))
    kinds = kinds if kinds.count("halved") + kinds.count("strided") <= 3 else kinds[:3]
    torch.manual_seed(seed)
    samples = torch.randn(8, 3, 12, 12)
    network = LayerChain(kinds, width, classes=5, flat=bits == "int16")
    network(samples)  # gives a lazy layer its size
    _, _, artifact = coded(network, samples, target, tmp_path_factory.mktemp("chain"), activations=bits)
    parity = check_parity(artifact, targets[target].open(artifact.path, threads=1), (samples[:3],))
    # a sigmoid of wide codes is computed in float and coded afterwards: the last bit may decide a tie
    allowed = 1 if "sigmoid" in kinds else 0
    assert parity.max_steps <= allowed, [layer for layer in parity.layers if layer.max_steps]
    assert parity.output_error < 1e-6
    assert len(parity.layers) > 2
