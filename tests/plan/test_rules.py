"""Formats by layer: what rules decide, and that the runtime computes what they say."""

import pytest
import torch
from torch import nn

from gossamer.apply.engine import apply
from gossamer.errors import ConfigError, PlanError
from gossamer.plan.dynamic import plan_dynamic_quantization
from gossamer.plan.plan import Plan
from gossamer.plan.quantization import plan_quantization
from gossamer.plan.rules import Choice, layer_choices
from gossamer.plan.weight_only import plan_weight_quantization
from gossamer.program.capture import capture
from gossamer.targets.export import export
from gossamer.targets.onnx.optimized import layers_in_float
from gossamer.targets.verify import verify


class Net(nn.Module):
    """Two stages and a classifier."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(8, 16, 3, padding=1)
        self.body = nn.Sequential(nn.Conv2d(16, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 1))
        self.head = nn.Linear(16, 10)

    def forward(self, x):
        y = nn.functional.relu(self.stem(x))
        return self.head((self.body(y) + y).mean((2, 3)))


@pytest.fixture(scope="module")
def samples():
    return torch.randn(32, 8, 8, 8, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def program(samples):
    torch.manual_seed(0)
    return capture(Net().eval(), samples[:2])


def choices(program, rules):
    by_name = program.graph.by_name
    return {by_name[name].module: choice.format for name, choice in layer_choices(program, rules, "int8").items()}


def test_the_first_rule_that_matches_decides(program):
    rules = {"body.2": "int7", "body.*": "int4", "head": "float"}
    assert choices(program, rules) == {"stem": "int8", "body.0": "int4", "body.2": "int7", "head": "float"}
    assert choices(program, {}) == dict.fromkeys(["stem", "body.0", "body.2", "head"], "int8")
    assert Choice("float", "head") in layer_choices(program, rules, "int8").values()


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ({"haed": "float"}, "rules name 'haed', which is no layer of this network; did you mean 'head'?"),
        ({"body.1": "int4"}, "rules name 'body.1', which is no layer of this network"),  # a ReLU
        ({"*": "int8", "head": "float"}, "the rule for 'head' decides nothing, since earlier rules match all its layers"),
    ],
)
def test_rules_that_decide_nothing(program, samples, rules, message):
    with pytest.raises(PlanError, match=message):
        plan_quantization(program, samples, rules=rules)


@pytest.mark.parametrize(("name", "near"), [("int12", "int8"), ("uint4", "int4"), ("int16", "int8")])
def test_formats_that_the_target_does_not_run(program, samples, name, near):
    with pytest.raises(ConfigError, match=rf"the format of 'head' must be .* onnxruntime .*nearest is '{near}'\); got '{name}'"):
        plan_quantization(program, samples, rules={"head": name})
    with pytest.raises(ConfigError, match="format must be intN or uintN"):
        plan_quantization(program, samples, rules={"head": "half"})


def test_one_weight_has_one_format():
    layer = nn.Conv2d(8, 8, 1)
    shared = nn.Sequential(layer, nn.ReLU(), layer)
    program = capture(shared.eval(), torch.randn(2, 8, 4, 4))
    names = [node.module for node in program.graph.nodes if "conv" in node.op]
    if len(set(names)) == 1:  # one name for both: one rule
        assert set(choices(program, {names[0]: "int4"}).values()) == {"int4"}


def test_shared_weights_with_two_formats_are_refused():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1)
            self.two.weight = self.one.weight

        def forward(self, x):
            return self.two(self.one(x).relu())

    program = capture(Twice().eval(), torch.randn(2, 8, 4, 4))
    with pytest.raises(PlanError, match="'one' and 'two', which share one weight, different formats"):
        layer_choices(program, {"one": "int4"}, "int8")


def test_what_rules_say_is_planned_saved_and_run(program, samples, tmp_path):
    rules = {"body.0": "float", "body.2": "int2", "stem": "int4"}
    plan = plan_quantization(program, samples, rules=rules)
    assert ("body.0 (Conv)", "kept float as asked (body.0)") in [(item.where, item.reason) for item in plan.frozen]
    plan.save(tmp_path / "plan.json")
    quantized = apply(program, Plan.load(tmp_path / "plan.json"))
    bits = {name: q.format.bits for name, q in quantized.quantizers.items() if name.endswith("weight")}
    assert bits == {"stem.weight": 4, "body.2.weight": 2, "head.weight": 8}
    artifact = export(quantized, tmp_path / "m.onnx")
    assert [layer.op for layer in layers_in_float(artifact.path)] in (["Conv"], ["FusedConv"])
    report = verify(artifact, reference=program, data=(samples, torch.zeros(32, dtype=torch.long)), batch=8)
    assert report.problems == ()


def test_layers_kept_float_stay_exact(program, samples):
    everything = dict.fromkeys(["body.*", "head"], "float")
    quantized = apply(program, plan_quantization(program, samples, rules=everything))
    assert {name for name in quantized.quantizers if name.endswith("weight")} == {"stem.weight"}
    with pytest.raises(PlanError, match="no layer that onnxruntime computes in integers.*kept float as asked"):
        plan_quantization(program, samples, rules={"*": "float"})


def test_rules_about_values(program, samples, tmp_path):
    rules = {"body.0": "int4/uint5", "head": "/uint6", "body.2": "int8/uint4"}
    plan = Plan.from_json(plan_quantization(program, samples, rules=rules).to_json())
    quantized = apply(program, plan)
    nodes = {node.module: node for node in program.graph.nodes if node.module}
    read = {layer: quantized.quantizers[nodes[layer].uses[0]].format.name for layer in ("stem", "body.0", "body.2", "head")}
    assert read == {"stem": "uint8", "body.0": "uint5", "body.2": "uint4", "head": "uint6"}
    weights = {name: q.format.bits for name, q in quantized.quantizers.items() if name.endswith("weight")}
    assert weights == {"stem.weight": 8, "body.0.weight": 4, "body.2.weight": 8, "head.weight": 8}
    artifact = export(quantized, tmp_path / "m.onnx")
    report = verify(artifact, reference=program, data=(samples, torch.zeros(32, dtype=torch.long)), batch=8)
    assert report.problems == ()
    assert report.parity.max_steps == 0


def test_a_value_has_the_finest_format_that_its_readers_ask_for(samples):
    class Fork(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.one, self.two = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1)

        def forward(self, x):
            x = torch.relu(self.stem(x))
            return self.one(x) + self.two(x)

    program = capture(Fork().eval(), samples[:2])
    plan = plan_quantization(program, samples, rules={"one": "/uint4", "two": "/uint6"})
    quantized = apply(program, plan)
    source = next(node for node in program.graph.nodes if node.module == "one").uses[0]
    assert quantized.quantizers[source].format.name == "uint6"
    (note,) = plan.notes
    assert "reads uint6 in place of uint4, since another layer reads the same codes" in note


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ("int4/uint9", r"the format of what 'head' reads must be .*nearest is 'uint8'"),
        ("float/uint4", r"the format of 'head' must be one such as 'int4', 'int4/uint4' or '/uint4'; floats read floats"),
        ("int4/", r"the format of 'head' must be one such as 'int4'"),
    ],
)
def test_rules_about_values_that_cannot_be(program, samples, rule, message):
    with pytest.raises(ConfigError, match=message):
        plan_quantization(program, samples, rules={"head": rule})


def test_values_that_have_no_codes_have_no_formats(program):
    with pytest.raises(ConfigError, match="one of weights alone, since values stay float"):
        plan_weight_quantization(program, rules={"head": "int4/uint4"})
    with pytest.raises(ConfigError, match="one of weights alone, since values get theirs while the network runs"):
        plan_dynamic_quantization(program, rules={"head": "int4/uint4"})


def test_values_are_stored_alike(program, samples):
    with pytest.raises(ConfigError, match="must be one that is stored like int8, the others'"):
        plan_quantization(program, samples, "openvino", activations="int8", rules={"head": "/uint8"})
