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
