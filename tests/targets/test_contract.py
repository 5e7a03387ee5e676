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

DAMAGES = {
    "cut to a half": lambda data: data[: len(data) // 2],
    "cut to 200 bytes": lambda data: data[:200],
    "foreign": lambda data: b"nothing that any runtime reads" * 40,
    "empty": lambda data: b"",
}


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


@pytest.mark.parametrize("count", [0, 2])
def test_a_wrong_number_of_inputs_is_refused(target, artifact, network, count):
    with pytest.raises(DataError, match=rf"takes 1 input.*; got {count}"):
        target.open(artifact.path, threads=1).run(*[network[1].numpy()] * count)


@pytest.mark.parametrize("bad", [np.zeros((1, 9), np.float32), np.zeros(8, np.float32), np.zeros((1, 8))], ids=["shape", "rank", "type"])
def test_inputs_of_another_shape_or_type_are_refused(target, artifact, bad):
    if target.spec.name == "toy":
        pytest.skip("the runner of the page in the docs is kept short")
    with pytest.raises(DataError, match="input"):
        target.open(artifact.path, threads=1).run(bad)


def test_threads_are_checked(target, artifact):
    with pytest.raises(ConfigError, match="threads must be .*; got 0"):
        target.open(artifact.path, threads=0)


def test_missing_files_are_named(target, artifact):
    with pytest.raises(FileError, match=rf"missing\{target.suffix}: "):
        target.open(artifact.path.with_name(f"missing{target.suffix}"), threads=1)


@pytest.mark.parametrize("values", [False, True])
@pytest.mark.parametrize("damage", DAMAGES, ids=list(DAMAGES))
def test_damaged_files_are_named(target, artifact, network, tmp_path, damage, values):
    path = tmp_path / f"damaged{target.suffix}"
    path.write_bytes(DAMAGES[damage](artifact.path.read_bytes()))
    with pytest.raises(FileError, match=rf"damaged\{target.suffix}: "):
        target.open(path, threads=1, values=values).run(network[1].numpy())  # a compiler reads its source when it first runs
