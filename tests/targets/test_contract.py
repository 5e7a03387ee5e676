"""What holds for every target, ours or one that was added: names, errors, and a float network that comes out the same."""

import numpy as np
import pytest
import torch
from torch import nn

import gossamer as gs
from gossamer.errors import ConfigError, DataError, FileError, MissingRuntime
from gossamer.plan.spec import specs
from gossamer.targets.kernel_sets import kernel_sets
from gossamer.targets.target import targets
from toy_target import registered_toy


@pytest.fixture(scope="module", params=[*targets.names(), "toy"])
def target(request):
    if request.param != "toy":
        yield targets[request.param]
        return
    with registered_toy() as toy:
        yield toy


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    model, samples = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3)).eval(), torch.randn(4, 8)
    return gs.capture(model, samples[:2]), samples


@pytest.fixture(scope="module")
def artifact(target, network, tmp_path_factory):
    try:
        written = gs.export(network[0], tmp_path_factory.mktemp("contract") / f"net{target.suffix}", target.spec.name)
        target.open(written.path, threads=1)
    except MissingRuntime as error:
        pytest.skip(str(error))
    return written


def test_its_spec_is_found_under_its_name_and_names_a_rounding_that_exists(target):
    spec = specs[target.spec.name]
    assert spec is target.spec
    assert targets.entry(spec.name).source == specs.entry(spec.name).source != ""
    assert spec.requantization in kernel_sets
    assert spec.same_scale_ops <= spec.integer_ops and spec.float_result_ops <= spec.integer_ops and spec.gate_ops <= spec.integer_ops
    missing = [op for op in spec.integer_ops - spec.same_scale_ops if op not in kernel_sets[spec.requantization]]
    assert not missing, f"{spec.name} runs {missing} on codes, which its simulation cannot"
    assert target.suffix.startswith(".") and target.install_command


def test_a_float_network_comes_out_the_same(target, artifact, network):
    program, samples = network
    runner = target.open(artifact.path, threads=1)
    for batch in (samples, samples[:1]):
        np.testing.assert_allclose(runner.run(batch.numpy()), program(batch).detach().numpy(), rtol=1e-4, atol=1e-5)
    named = target.open(artifact.path, threads=1, values=True).run_values(samples.numpy())
    np.testing.assert_allclose(next(iter(named.values())), program(samples).detach().numpy(), rtol=1e-4, atol=1e-5)


def test_inputs_that_do_not_fit_are_refused(target, artifact, network):
    runner = target.open(artifact.path, threads=1)
    samples = network[1].numpy()
    with pytest.raises(DataError, match="takes 1 input"):
        runner.run(samples, samples)


def test_threads_are_checked(target, artifact):
    with pytest.raises(ConfigError, match="threads"):
        target.open(artifact.path, threads=0)


def test_files_that_are_none_of_its_own_are_refused(target, artifact, tmp_path):
    damaged, missing = tmp_path / f"damaged{target.suffix}", tmp_path / f"missing{target.suffix}"
    damaged.write_bytes(b"nothing that any runtime reads" * 40)
    for path in (damaged, missing):
        with pytest.raises(FileError, match=path.name):
            target.open(path, threads=1)
    cut = tmp_path / f"cut{target.suffix}"
    cut.write_bytes(artifact.path.read_bytes()[:200])
    with pytest.raises(FileError, match="cut"):
        target.open(cut, threads=1)
