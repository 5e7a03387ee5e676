"""Damage from curvature: the trace is that of the Hessian, the estimate that of a small change, and it finds what is sensitive."""

import pytest
import torch
from torch import nn

import gossamer as gs
from gossamer.batches import as_batches
from gossamer.plan.spec import specs
from gossamer.progress import silent
from gossamer.search.curvature import estimated_damages, traces_of
from gossamer.search.precision import choose_precision
from gossamer.search.precision_settings import PrecisionBudget, PrecisionSearch
from gossamer.search.sensitivity import Evidence, candidates, measured_damages


def evidence(samples):
    return Evidence(as_batches(samples, what="x"), len(samples), silent)


@pytest.fixture(scope="module")
def samples():
    return torch.randn(256, 6, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def program(samples):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 5))
    return gs.capture(net.eval(), samples[:2])


def exact_trace(program, samples, name):
    """tr of the Hessian of the mean KL at the float network's own outputs, by autograd."""
    true = program(samples).detach().log_softmax(1)
    others = {key: tensor.detach() for key, tensor in program.state.items()}

    def divergence(weight):
        got = torch.func.functional_call(program, {**others, name: weight}, (samples,)).log_softmax(1)
        return (true.exp() * (true - got)).sum(1).mean()

    weight = others[name]
    hessian = torch.autograd.functional.hessian(divergence, weight).reshape(weight.numel(), weight.numel())
    return float(hessian.trace())


@pytest.mark.parametrize("name", ["0.weight", "2.weight"])
def test_the_trace_is_that_of_the_hessian(program, samples, name):
    traces = traces_of(program, [name], evidence(samples))
    numbers = program.state[name].numel()
    assert traces.kl[name] * numbers == pytest.approx(exact_trace(program, samples, name), rel=0.15)


def test_the_estimate_is_that_of_a_small_random_change(program, samples):
    traces = traces_of(program, ["2.weight"], evidence(samples))
    weight = program.state["2.weight"].detach()
    true = program(samples).detach()
    signal = float(true.double().square().sum())
    noises = []
    for seed in range(20):
        change = 1e-3 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(seed))
        got = torch.func.functional_call(program, {"2.weight": weight + change}, (samples,))
        noises.append(float((got.detach().double() - true.double()).square().sum()) / signal / float(change.square().sum()))
    assert sum(noises) / len(noises) == pytest.approx(traces.noise["2.weight"], rel=0.15)


def test_outputs_without_classes_have_no_divergence(samples):
    net = gs.capture(nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 1)).eval(), samples[:2])
    traces = traces_of(net, ["0.weight"], evidence(samples))
    assert traces.kl is None
    assert traces.noise["0.weight"] > 0


def test_it_is_of_the_size_of_what_is_measured(samples):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 5))
    with torch.no_grad():
        net[6].weight *= 4
        net[2].weight *= 4  # curvature before it grows by 16, its own does not change
    program = gs.capture(net.eval(), samples[:2])
    plain = {"scheme": gs.Scheme(rounding="nearest", bias_correction=False)}
    found = candidates(program, as_batches(samples, what="x"), specs["onnxruntime"], ("int4", "float"), plain, silent)
    estimated, measured = (method(found, evidence(samples)) for method in (estimated_damages, measured_damages))
    pairs = [(trial.format, one.kl, other.kl) for trial, one, other in zip(found.trials, estimated, measured, strict=True)]
    assert all(one == 0 == other for name, one, other in pairs if name == "float")
    ratios = [one / other for name, one, other in pairs if name == "int4"]
    assert len(ratios) == 4
    assert all(0.2 < ratio < 5 for ratio in ratios), ratios


def test_it_is_a_method_of_the_search(program, samples):
    budget = PrecisionBudget(max_bits=6)
    found = choose_precision(program, samples, search=PrecisionSearch(budget=budget, formats=("int4", "int8"), sensitivity="hawq"))
    assert found.bits <= 6
    assert set(found.rules) == {"0", "2"}
