"""Time as a cost: layers as files of their own, budgets of time and size kept at once."""

import itertools
import math

import pytest
import torch
from torch import nn

import gossamer as gs
from gossamer.batches import as_batches
from gossamer.errors import PlanError
from gossamer.plan.spec import specs
from gossamer.progress import silent
from gossamer.search.diagnosis.findings import Damage
from gossamer.search.latency import isolated, stopwatch
from gossamer.search.precision import _Search, choose_precision
from gossamer.search.precision_settings import PrecisionBudget, PrecisionSearch
from gossamer.search.sensitivity import Evidence, Sensitivity, candidates
from gossamer.targets.onnx.optimized import optimized_ops


@pytest.fixture(scope="module")
def samples():
    return torch.randn(16, 16, 12, 12, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def program(samples):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(
            nn.Conv2d(16, 48, 3, padding=1), nn.BatchNorm2d(48), nn.ReLU(), nn.Conv2d(48, 48, 3, padding=1), nn.ReLU(),
            nn.Conv2d(48, 48, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(48, 10),
        )  # fmt: skip
    return gs.capture(net.eval(), samples[:2])


@pytest.fixture(scope="module")
def found(program, samples):
    return candidates(program, as_batches(samples, what="x"), specs["onnxruntime"], ("int8", "float"), {}, silent)


def test_a_layer_alone_computes_what_it_does_in_the_network(found, samples, tmp_path):
    network = found.planned["int8"]
    node = next(node for node in network.graph.nodes if node.module == "3")
    alone = isolated(network, node.name, "onnxruntime", 4)
    seen = {}
    network.run(samples[:4], observe=lambda name, value: seen.__setitem__(name, value))
    (source,), (result,) = alone.graph.inputs, alone.graph.outputs
    assert torch.equal(alone(seen[source]), seen[result])
    path = gs.export(alone, tmp_path / "m.onnx", io="uint8").path
    assert optimized_ops(path).keys() <= {"QLinearConv", "Transpose"}  # codes go in and out: no conversion counts


def test_layers_alike_are_measured_once(found, program, samples):
    evidence = Evidence(as_batches(samples, what="x"), 16, silent)
    with stopwatch(program, "onnxruntime", 1, 1) as watch:
        times = watch.layers_ms(found, 1, evidence)
        names = {place: (trial.unit.layers[0], trial.format) for place, trial in enumerate(found.trials)}
        cost = {names[place]: time for place, time in enumerate(times)}
        assert cost["3", "int8"] == cost["5", "int8"]
        assert cost["3", "float"] == cost["5", "float"]
        assert all(time > 0 for time in times)
        assert sum(time for place, time in enumerate(times) if names[place][1] == "float") < 3 * watch.float_ms
        assert watch.network_ms(program) == pytest.approx(watch.float_ms, rel=0.5)  # beside itself


def row(layer, name, damage, size, latency):
    return Sensitivity((layer,), name, Damage(10.0, damage), size, size, 8, latency)


@pytest.mark.parametrize(("size", "milliseconds"), [(60, 9.0), (45, 12.0), (200, 7.5), (60, 30.0)])
def test_both_budgets_are_kept_and_the_choice_is_near_the_best(size, milliseconds):
    generator = torch.Generator().manual_seed(size)
    damages = torch.rand(6, 3, generator=generator).sort(1, descending=True).values.tolist()
    times = (torch.rand(6, 3, generator=generator) * 3).tolist()
    sizes = [[4, 8, 32]] * 6
    table = tuple(
        row(f"l{layer}", name, damages[layer][place], sizes[layer][place], times[layer][place])
        for layer in range(6) for place, name in enumerate(("int4", "int8", "float"))
    )  # fmt: skip
    budget = PrecisionBudget(max_size_bytes=size, max_latency_ms=milliseconds)
    search = _Search(table, 3, budget, (20.0, 1.0))

    def measure(rules):
        rows = [item for item in table if rules[item.layers[0]] == item.format]
        return Damage(10.0, sum(item.damage.kl for item in rows)), 1.0 + sum(item.latency_ms for item in rows)

    best = search.best(measure)
    options = [
        sum(damages[layer][place] for layer, place in enumerate(choice))
        for choice in itertools.product(range(3), repeat=6)
        if sum(sizes[layer][place] for layer, place in enumerate(choice)) <= size
        and 1.0 + sum(times[layer][place] for layer, place in enumerate(choice)) <= milliseconds
    ]
    assert best.size_bytes <= size
    assert best.latency_ms <= milliseconds
    assert best.latency_ms == pytest.approx(best.predicted_ms)
    assert best.damage.kl <= 1.35 * min(options) + 0.05


def test_files_slower_than_their_layers_are_answered_by_a_tighter_aim():
    table = tuple(
        row(f"l{layer}", name, damage, 8, time) for layer in range(8) for name, damage, time in (("int8", 1.0, 1.0), ("float", 0.1, 2.0))
    )
    search = _Search(table, 2, PrecisionBudget(max_latency_ms=16.0), (16.0, 0.0))

    def measure(rules):
        fast = sum(name == "int8" for name in rules.values())
        return Damage(10.0, float(fast)), 1.2 * (8 * 2.0 - fast)  # 20 % slower than predicted

    best = search.best(measure)
    assert best.latency_ms <= 16.0
    assert 3 <= sum(name == "int8" for name in best.rules.values()) < 8


def test_one_format_for_all_is_measured_where_layers_alone_look_slower():
    table = tuple(
        row(f"l{layer}", name, damage, 8, time) for layer in range(6) for name, damage, time in (("int8", 1.0, 1.1), ("float", 0.1, 1.0))
    )
    search = _Search(table, 2, PrecisionBudget(max_latency_ms=4.0), (6.0, 0.0))

    def measure(rules):
        fast = set(rules.values()) == {"int8"}  # between layers on codes nothing is converted
        return Damage(10.0, 1.0), 3.0 if fast else 6.0

    assert set(search.best(measure).rules.values()) == {"int8"}


def test_a_budget_of_time_out_of_reach(program, samples):
    search = PrecisionSearch(budget=PrecisionBudget(max_latency_ms=1e-5), formats=("int8", "float"), samples=8)
    with pytest.raises(PlanError, match=r"the fastest that was measured takes .* ms, allowed are 1e-05 ms \(float takes .* ms\)"):
        choose_precision(program, samples, search=search)


def test_a_budget_of_time_is_met_by_the_file(program, samples):
    search = PrecisionSearch(budget=PrecisionBudget(min_speedup=0.5, max_bits=20), formats=("int8", "float"), samples=8)
    found = choose_precision(program, samples, search=search)
    assert found.latency_ms < math.inf
    assert found.bits <= 20
    assert {row.latency_ms is not None for row in found.table} == {True}


@pytest.mark.parametrize(
    ("text", "limits"),
    [
        ("5 bits", {"max_bits": 5.0}),
        ("300kB, 1.8x", {"max_size_bytes": 300_000, "min_speedup": 1.8}),
        ("2 ms", {"max_latency_ms": 2.0}),
        ("1e-3 nats", {"max_kl": 1e-3}),
        ("40 dB", {"min_sqnr_db": 40.0}),
    ],
)
def test_budgets_as_text(text, limits):
    assert PrecisionBudget.parse(text).to_json() == limits


@pytest.mark.parametrize("text", ["", "5", "five bits", "5 bit", "5 bits, 6 bits", "1e bits"])
def test_budgets_that_are_none(text):
    with pytest.raises(gs.errors.ConfigError, match="budget of formats must be numbers with different units"):
        PrecisionBudget.parse(text)
