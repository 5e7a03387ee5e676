"""The target "torch": bundles under torch.compile, parity of codes and floats, any batch, threads, and what is refused."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from chains import random_formats, random_network
from gossamer.apply.engine import apply
from gossamer.errors import ConfigError, FileError, MissingRuntime, PlanError
from gossamer.plan.plan import Plan
from gossamer.plan.quantization import plan_quantization
from gossamer.plan.scheme import Scheme
from gossamer.plan.site import has_weight
from gossamer.program.bundle import load
from gossamer.program.capture import capture
from gossamer.targets.coded_ends import open_artifact
from gossamer.targets.energy import estimate_energy
from gossamer.targets.export import export
from gossamer.targets.parity import check_parity, parity_problems
from gossamer.targets.target import Artifact, targets
from gossamer.targets.torch_compile import run
from gossamer.targets.torch_compile.run import QUANTIZED, TorchRunner, open_bundle, prepared
from gossamer.targets.verify import verify

NAME = "torch"
needs_compiler = pytest.mark.skipif(run.compiler() is None, reason="torch.compile needs g++: apt-get install g++")


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.second = nn.Conv2d(8, 8, 3, padding=1)
        self.head = nn.Linear(8, 4)

    def forward(self, x):
        x = torch.relu(self.norm(self.conv(x)))
        return self.head((x + self.second(x)).mean((2, 3)))


@pytest.fixture(scope="module")
def samples():
    return torch.randn(24, 3, 6, 6, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def program(samples):
    torch.manual_seed(0)
    network = Small()
    network(samples)
    return capture(network.eval(), samples[:2])


@pytest.fixture(scope="module")
def quantized(program, samples):
    plan = plan_quantization(program, samples, NAME, weights="int4", activations="int8")
    return apply(program, Plan.from_json(plan.to_json()))


@needs_compiler
def test_verify_compiles_and_compares(program, quantized, samples, tmp_path):
    artifact = export(quantized, tmp_path / "m.gossamer", NAME)
    threads = torch.get_num_threads()
    report = verify(artifact, reference=artifact, data=(samples, program(samples).argmax(1)), batch=5)  # compiling is slow: once
    assert report.passed, report.problems
    assert report.parity.max_steps <= 1 and len(report.parity.layers) == 3
    assert report.timed and report.speedup > 0
    assert report.versions["torch"] == torch.__version__
    assert QUANTIZED in report.notes
    assert torch.get_num_threads() == threads


@needs_compiler
def test_a_layer_that_was_tampered_with_is_found(quantized, samples, tmp_path):
    other = quantized.with_graph(quantized.graph, {**quantized.state, "conv.weight": quantized.state["conv.weight"].detach().flip(0)})
    impostor = Artifact(export(other, tmp_path / "m.gossamer", NAME).path, NAME, quantized)
    report = verify(impostor, reference=impostor, data=(samples, torch.zeros(24, dtype=torch.long)), batch=5)
    assert any("code steps from the simulation" in problem for problem in report.problems)


def test_more_networks_can_be_open_than_torch_compiles_of_one_function(tmp_path, monkeypatch):
    compile_as_usual = torch.compile
    monkeypatch.setattr(torch, "compile", lambda function, **_: compile_as_usual(function, fullgraph=True, backend="eager"))
    x = torch.randn(3, 4)
    for _ in range(torch._dynamo.config.recompile_limit + 2):
        program = capture(nn.Linear(4, 2), x)
        np.testing.assert_allclose(TorchRunner(program, tmp_path, 1).run(x.numpy()), program(x).detach().numpy(), atol=1e-5)


@settings(max_examples=4, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_random_networks_equal_the_simulation(seed, tmp_path_factory):
    """What is compiled, run without compiling it: codes of any width, signed or not."""
    net, shape = random_network(seed)
    x = torch.randn(6, *shape, generator=torch.Generator().manual_seed(seed))
    program = capture(net, x[:2])
    weights, activations, rules = random_formats(seed, sorted({node.module for node in program.graph.nodes if has_weight(node)}))
    try:
        plan = plan_quantization(program, x, NAME, weights=weights, activations=activations, rules=rules, scheme=Scheme(rounding="nearest"))
    except PlanError as error:
        if "no layer that torch computes in integers" in str(error):
            return
        raise
    artifact = export(apply(program, plan), tmp_path_factory.mktemp("chains") / "m.gossamer", NAME)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "compile", lambda function, **_: function)
        patch.setattr(run, "compiler", lambda: "none needed")
        parity = check_parity(artifact, open_artifact(artifact, threads=1), (x[:4],))
    assert parity.layers and parity_problems(parity, artifact, f"network {seed}") == []


def test_weights_are_rounded_once_and_values_get_coders(quantized, samples):
    ready, coders = prepared(quantized)
    assert not ready.quantizers
    assert set(coders) == {"x", *(name for name in quantized.quantizers if name in quantized.graph.by_name)}
    weight = ready.state["conv.weight"]
    assert all(len(channel.unique()) <= 15 for channel in weight)


def test_batch_norms_of_float_networks_are_folded(program, samples):
    ready, coders = prepared(program)
    assert not coders
    assert not any("batch_norm" in node.op for node in ready.graph.nodes)
    torch.testing.assert_close(ready(samples), program(samples), atol=1e-5, rtol=1e-5)


def test_the_file_is_a_bundle_that_loads_without_code(quantized, tmp_path):
    path = export(quantized, tmp_path / "m.gossamer", NAME).path
    assert load(path).quantizers == quantized.quantizers


def test_each_size_of_thread_pool_is_given_back():
    before = torch.get_num_threads()
    with run._threads(before + 1):
        assert torch.get_num_threads() == before + 1
    assert torch.get_num_threads() == before


def test_without_a_compiler_the_command_is_told(program, tmp_path, monkeypatch):
    path = export(program, tmp_path / "m.gossamer", NAME).path
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(MissingRuntime, match="needs the package 'g\\+\\+', which is not installed; run: apt-get install g\\+\\+"):
        open_bundle(path, threads=1)
    assert targets[NAME].runtime_version is None


def test_what_cannot_be_compiled_is_told_in_a_sentence(program, samples, tmp_path, monkeypatch):
    path = export(program, tmp_path / "m.gossamer", NAME).path

    def refuse(self):
        def compiled(*inputs):
            raise torch._dynamo.exc.Unsupported("no kernel for this op.\nmore", case_name="x")

        return compiled

    monkeypatch.setattr(TorchRunner, "_compile", refuse)
    runner = TorchRunner(load(path), path, 1)
    with pytest.raises(
        FileError, match=r"cannot be compiled by torch.compile here \(no kernel for this op\); export the network for another"
    ):
        runner.run(samples[:2].numpy())


def test_other_suffixes_and_targets_are_refused(program, quantized, tmp_path):
    with pytest.raises(ConfigError, match=r"ends in '\.gossamer'"):
        export(program, tmp_path / "m.onnx", NAME)
    with pytest.raises(PlanError, match="was quantized for 'torch', not for 'onnxruntime'"):
        export(quantized, tmp_path / "m.onnx", "onnxruntime")


def test_codes_that_are_floats_save_no_energy(program, quantized):
    plain = quantized.with_graph(quantized.graph, quantizers={})
    assert estimate_energy(quantized) == estimate_energy(plain)
