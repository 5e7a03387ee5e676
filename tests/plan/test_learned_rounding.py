import json

import pytest
import torch
from torch import nn

from gossamer.apply.engine import apply
from gossamer.errors import ConfigError
from gossamer.numerics.affine import clips_like, quantize
from gossamer.plan.edits import QuantizeValue
from gossamer.plan.learned_rounding import learned
from gossamer.plan.plan import Plan
from gossamer.plan.quantization import plan_quantization
from gossamer.plan.reconstruction import Learning
from gossamer.plan.rounding import roundings
from gossamer.plan.scheme import Scheme
from gossamer.program.capture import capture
from gossamer.progress import Progress
from gossamer.targets.export import export
from gossamer.targets.onnx.run import open_session
from gossamer.targets.simulate import simulate

QUICK_FIELDS = {"iterations": 60, "elements": 60_000, "samples": 32, "rate": 0.05}


class Net(nn.Module):
    """A stem, an inverted residual, a pool and a classifier whose input comes from a view that names the batch."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(8, 16, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(16)
        self.expand, self.depth, self.project = nn.Conv2d(16, 32, 1), nn.Conv2d(32, 32, 3, padding=1, groups=32), nn.Conv2d(32, 16, 1)
        self.head = nn.Linear(16 * 4, 10)

    def forward(self, x):
        y = nn.functional.relu6(self.norm(self.first(x)))
        y = y + self.project(nn.functional.relu6(self.depth(nn.functional.relu6(self.expand(y)))))
        return self.head(nn.functional.max_pool2d(torch.relu(y), 4).view(x.size(0), -1))


@pytest.fixture(scope="module")
def samples():
    random = torch.Generator().manual_seed(1)
    mix = torch.randn(8, 8, generator=random)
    return torch.einsum("nchw,dc->ndhw", torch.randn(64, 8, 8, 8, generator=random), mix).contiguous() + 0.5


@pytest.fixture(scope="module")
def program(samples):
    torch.manual_seed(0)
    return capture(Net().eval(), samples[:2])


@pytest.fixture(scope="module", autouse=True)
def quick():
    """The methods with few steps, under names of their own."""
    for name, settings, by_layer in (("adaround", {}, True), ("brecq", {}, False), ("qdrop", {"drop": 0.5, "value_rate": 1e-3}, False)):
        if f"quick {name}" not in roundings:
            roundings.add(f"quick {name}", source="test")(learned(Learning(**QUICK_FIELDS, **settings), by_layer=by_layer))


METHODS = ("quick adaround", "quick brecq", "quick qdrop")


def planned(program, samples, name, **choices):
    return plan_quantization(program, samples[:32], weights="int4", scheme=Scheme(rounding=name, weight_ranges="mse"), **choices)


@pytest.fixture(scope="module")
def plans(program, samples):
    return {name: planned(program, samples, name) for name in (*METHODS, "second-order")}


def error(program, plan, samples):
    with torch.no_grad():
        return float((apply(program, plan)(samples) - program(samples)).square().mean())


@pytest.mark.parametrize("name", METHODS)
def test_what_is_learned_is_closer_to_float(program, samples, plans, name):
    start = error(program, plans["second-order"], samples[:32])
    found = error(program, plans[name], samples[:32])
    assert found <= start if name == "quick adaround" else found < start  # layers one by one gain least: a few steps may gain nothing


@pytest.mark.parametrize("name", METHODS)
def test_plans_are_data_and_the_same_for_the_same_seed(program, samples, plans, name):
    assert Plan.from_json(json.loads(json.dumps(plans[name].to_json()))) == plans[name]
    assert planned(program, samples, name) == plans[name]


def codes_of(program, plan):
    quantized = apply(program, plan)
    return {
        name: quantize(tensor.detach(), quantized.quantizers[name])
        for name, tensor in quantized.state.items()
        if name in quantized.quantizers
    }


def test_codes_are_those_of_the_start_or_next_to_them(program, samples, plans):
    same_scales = {**QUICK_FIELDS, "scale_rate": 0.0}
    if "quick fixed" not in roundings:
        roundings.add("quick fixed", source="test")(learned(Learning(**same_scales)))
    found, start = codes_of(program, planned(program, samples, "quick fixed")), codes_of(program, plans["second-order"])
    assert found.keys() == start.keys()
    moved = [(found[name] - start[name]).abs() for name in found]
    assert max(float(steps.max()) for steps in moved) == 1
    weights = {
        name: tensor for name, tensor in program.state.items() if name in found and name != "first.weight"
    }  # a norm is folded into that
    quantizers = {edit.value: edit.quantizer for edit in plans["second-order"].edits if isinstance(edit, QuantizeValue)}
    for name, weight in weights.items():
        quantizer = quantizers[name]
        position = weight.detach() / quantizer.tensors(weight)[0]
        changed = found[name] != start[name]
        towards = (found[name] - start[name]).sign() == (position - start[name]).sign()
        assert bool((towards | ~changed | (start[name].abs() == quantizer.integers.hi)).all())


@pytest.mark.parametrize(
    ("name", "learned_along"), [("quick adaround", {"project"}), ("quick brecq", {"expand", "depth", "project"}), ("quick qdrop", None)]
)
def test_parts_whose_weights_have_many_bits_keep_the_start(program, samples, name, learned_along):
    rules = {"project": "int3", "*": "int8"}  # "first" and "head" are parts of their own, on both sides of it
    before, after = (
        plan_quantization(program, samples[:32], rules=rules, scheme=Scheme(rounding=rounding, weight_ranges="mse"))
        for rounding in ("second-order", name)
    )
    codes, learned_codes = codes_of(program, before), codes_of(program, after)
    changed = {key.removesuffix(".weight") for key in codes if not torch.equal(codes[key], learned_codes[key])}
    assert changed <= (learned_along or {"expand", "depth", "project"})
    told: list[Progress] = []
    plan_quantization(program, samples[:32], rules=rules, scheme=Scheme(rounding=name), on_progress=told.append)
    assert {note.note for note in told if note.stage == "learn rounding" and note.note} <= {
        f"{layer}.weight" for layer in ("project", "expand")
    }
    seen = samples[:32]  # what is learned may not lose on the samples that it was learned from
    assert error(program, after, seen) <= error(program, before, seen)


@pytest.mark.parametrize("name", METHODS)
def test_the_runtime_computes_what_was_simulated(program, samples, plans, name, tmp_path):
    quantized = apply(program, plans[name])
    export(quantized, tmp_path / "net.onnx")
    found = open_session(tmp_path / "net.onnx", threads=1).run(samples[32:40].numpy())
    assert torch.equal(torch.from_numpy(found), simulate(quantized, samples[32:40]))


def test_learned_steps_of_values_clip_as_before(program, plans):
    before = {edit.value: edit.quantizer for edit in plans["quick brecq"].edits if isinstance(edit, QuantizeValue)}
    after = {edit.value: edit.quantizer for edit in plans["quick qdrop"].edits if isinstance(edit, QuantizeValue)}
    values = [name for name in before if name in program.graph.by_name]
    assert any(before[name] != after[name] for name in values)
    for name in values:
        if name.startswith(("relu6", "hardtanh")):
            assert clips_like(after[name], 0.0, 6.0)
        elif name.startswith("relu"):
            assert clips_like(after[name], 0.0, None)
    assert after["relu"] == after["max_pool2d"] == after["view"]  # pass on what they get
    assert not [item for item in plans["quick qdrop"].frozen if "do not clip" in item.reason]


def test_masked_weights_stay_zero(samples):
    torch.manual_seed(0)
    program = capture(Net().eval(), samples[:2])
    mask = torch.rand(32, 16, 1, 1, generator=torch.Generator().manual_seed(0)) < 0.5
    with torch.no_grad():
        program.state["expand.weight"].mul_(mask)
    program = program.with_graph(program.graph, masks={"expand.weight": mask})
    for name in METHODS:
        quantized = apply(program, planned(program, samples, name))
        assert not bool(quantized.state["expand.weight"][~mask].any())
        assert bool(quantized.state["expand.weight"][mask].any())


def test_a_weight_of_two_layers_is_learned_once(samples):
    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(8, 8, 3, padding=1)
            self.other = nn.Conv2d(8, 8, 1)

        def forward(self, x):
            return self.conv(torch.relu(self.other(torch.relu(self.conv(x)))))

    torch.manual_seed(0)
    program = capture(Shared().eval(), samples[:2])
    for name in METHODS:
        plan = planned(program, samples, name)
        assert [edit.value for edit in plan.edits if isinstance(edit, QuantizeValue)].count("conv.weight") == 1
        assert error(program, plan, samples[:32]) <= error(program, planned(program, samples, "second-order"), samples[:32])


def test_progress_is_told(program, samples):
    told: list[Progress] = []
    planned(program, samples, "quick brecq", on_progress=told.append)
    learning = [record for record in told if record.stage == "learn rounding"]
    assert [record.done for record in learning] == sorted(record.done for record in learning)
    assert learning[-1].done == learning[-1].total
    assert learning[0].note in program.state


def test_memory_limits_the_samples(program, samples):
    few = Learning(**{**QUICK_FIELDS, "memory_bytes": 1, "iterations": 2})
    if "one sample" not in roundings:
        roundings.add("one sample", source="test")(learned(few))
    assert planned(program, samples, "one sample").edits


def test_the_methods_are_there_with_their_sources():
    for name, source in (("adaround", "2004.10568"), ("brecq", "2102.05426"), ("qdrop", "2203.05740")):
        assert source in roundings.entry(name).source


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ({"iterations": 0}, "Learning.iterations must be at least 1; got 0"),
        ({"rate": -1.0}, "Learning.rate must be at least 0, and finite"),
        ({"drop": 1.5}, "Learning.drop must be in \\[0, 1\\]"),
    ],
)
def test_settings_outside_their_rules(choice, message):
    with pytest.raises(ConfigError, match=message):
        Learning(**choice)
