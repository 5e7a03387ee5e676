"""Mixed precision: what the table says is what happens, budgets are kept, and mixing beats one format for all."""

import json
import math

import pytest
import torch
from torch import nn

from gossamer.apply.engine import apply
from gossamer.apply.quantize import quantize_program
from gossamer.batches import as_batches
from gossamer.errors import ConfigError, PlanError
from gossamer.plan.edits import QuantizeValue
from gossamer.plan.quantization import plan_quantization
from gossamer.plan.spec import specs
from gossamer.program.capture import capture
from gossamer.search.precision import choose_precision
from gossamer.search.precision_settings import PrecisionBudget, PrecisionSearch
from gossamer.search.sensitivity import outputs_damage, stored_bits, weight_bytes
from gossamer.targets.export import export
from gossamer.targets.verify import verify


class Net(nn.Module):
    """Layers of different sizes; the second, small one is far more sensitive than the others: its channels cancel."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(8, 32, 3, padding=1)
        self.touchy = nn.Conv2d(32, 32, 1)
        self.large = nn.Conv2d(32, 48, 3, padding=1)
        self.head = nn.Linear(48, 10)

    def forward(self, x):
        y = torch.relu(self.touchy(torch.relu(self.first(x))))
        return self.head(torch.relu(self.large(y)).mean((2, 3)))


@pytest.fixture(scope="module")
def samples():
    return torch.randn(32, 8, 8, 8, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def program(samples):
    torch.manual_seed(0)
    net = Net().eval()
    with torch.no_grad():
        net.touchy.weight += 3.0 * torch.tensor([1.0, -1.0]).repeat(16).reshape(1, 32, 1, 1)
        net.first.weight[1::2] = net.first.weight[::2] * (1 + 0.02 * torch.randn(16, 8, 3, 3))
        net.first.bias[1::2] = net.first.bias[::2]
        net.head.weight *= 50
    return capture(net, samples[:2])


def choose(program, data, /, *, budget, target="onnxruntime", table=None, **search):
    return choose_precision(program, data, target, search=PrecisionSearch(budget=budget, **search), table=table)


def uniform(program, samples, name):
    plan = plan_quantization(program, samples, weights=name)
    return outputs_damage(apply(program, plan), program, as_batches(samples, what="x"), 32)


@pytest.fixture(scope="module")
def mixed(program, samples):
    return choose(program, samples, budget=PrecisionBudget(max_bits=5), formats=("int4", "int8"), samples=32)


def test_a_budget_of_bits_is_kept_and_used_where_it_helps(program, samples, mixed):
    assert mixed.bits <= 5
    assert mixed.rules["touchy"] == "int8"
    assert mixed.rules["large"] == "int4"
    assert mixed.damage.output_db > uniform(program, samples, "int4").output_db
    assert mixed.damage.kl <= min(damage.kl for size, damage in mixed.tried if size <= mixed.size_bytes)
    assert len(mixed.tried) >= 2


def test_the_damage_is_that_of_the_plan_and_the_file(program, samples, mixed, tmp_path):
    plan = plan_quantization(program, samples, rules=mixed.rules)
    quantized = apply(program, plan)
    assert outputs_damage(quantized, program, as_batches(samples, what="x"), 32) == mixed.damage
    artifact = export(quantized, tmp_path / "m.onnx")
    report = verify(artifact, reference=program, data=(samples, torch.zeros(32, dtype=torch.long)), batch=8)
    assert report.problems == ()
    assert mixed.size_bytes < artifact.size_bytes
    assert "2 x int4" in str(mixed) or "1 x int4" in str(mixed) or "3 x int4" in str(mixed)
    json.dumps(mixed.to_json())


def test_the_table_measures_one_layer_at_a_time(program, samples, mixed):
    rows = {(row.layers, row.format): row for row in mixed.table}
    assert len(rows) == len(mixed.table) == 8
    plans = {name: plan_quantization(program, samples, weights=name) for name in ("int4", "int8")}
    nodes = {node.module: node for node in program.graph.nodes if node.module}
    for (layers, name), row in rows.items():
        (layer,) = layers
        wanted = {nodes[layer].uses[0], nodes[layer].name, f"{layer}.weight"}
        edits = [edit for edit in plans[name].edits if getattr(edit, "value", getattr(edit, "node", "")) in wanted]
        edits = [edit for edit in edits if not (isinstance(edit, QuantizeValue) and edit.value == nodes[layer].name)]
        alone = outputs_damage(quantize_program(program, edits, "onnxruntime"), program, as_batches(samples, what="x"), 32)
        assert row.damage.output_db == pytest.approx(alone.output_db, abs=0.01)
        assert row.size_bytes == weight_bytes(program.state[f"{layer}.weight"], name, row.bits)
    assert all(rows[layer, "int8"].damage.output_db > rows[layer, "int4"].damage.output_db for layer, _ in rows)


def test_the_smallest_within_a_budget_of_damage(program, samples):
    limit = 25.0
    found = choose(program, samples, budget=PrecisionBudget(min_sqnr_db=limit), formats=("int4", "int6", "int8"), samples=32)
    assert found.damage.output_db >= limit
    assert found.size_bytes < sum(row.size_bytes for row in found.table if row.format == "int8")
    by_kl = choose(program, samples, budget=PrecisionBudget(max_kl=found.damage.kl), formats=("int4", "int8"), samples=32)
    assert by_kl.damage.kl <= found.damage.kl


def test_float_is_the_last_resort(program, samples):
    eight = uniform(program, samples, "int8").output_db
    found = choose(program, samples, budget=PrecisionBudget(min_sqnr_db=eight + 3), formats=("int8", "float"), samples=32)
    assert found.damage.output_db >= eight + 3
    assert set(found.rules.values()) == {"int8", "float"}


def test_budgets_out_of_reach(program, samples):
    with pytest.raises(PlanError, match=r"no choice of these formats is within the budget; the smallest takes \d+ bytes, 4.00 bits"):
        choose(program, samples, budget=PrecisionBudget(max_bits=3.9), formats=("int4", "int8"))
    with pytest.raises(PlanError, match=r"no choice .* the nearest leaves \d+\.\d dB, KL"):
        choose(program, samples, budget=PrecisionBudget(min_sqnr_db=90), formats=("int4", "int8"))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {},
            "PrecisionBudget must be one or more of max_size_bytes, max_bits, max_latency_ms, min_speedup, or one of max_kl and min_sqnr_db",
        ),
        ({"max_bits": 4, "max_kl": 1}, "or one of"),
        ({"min_sqnr_db": 4, "max_kl": 1}, "or one of"),
        ({"max_bits": 0}, "PrecisionBudget.max_bits must be above 0"),
        ({"max_kl": math.inf}, "PrecisionBudget.max_kl must be above 0"),
    ],
)
def test_bad_budgets(given, message):
    with pytest.raises(ConfigError, match=message):
        PrecisionBudget(**given)


def test_bad_arguments(program, samples):
    budget = PrecisionBudget(max_bits=6)
    for formats in (("int8",), ("int8", "int8")):
        with pytest.raises(ConfigError, match="formats must be two or more different formats"):
            choose(program, samples, budget=budget, formats=formats)
    with pytest.raises(ConfigError, match="nearest is 'int8'"):
        choose(program, samples, budget=budget, formats=("int9", "int8"))
    with pytest.raises(PlanError, match="at least one integer format"):
        choose(program, samples, budget=budget, formats=("fp16", "float"))
    with pytest.raises(ConfigError, match="samples must be at least 1"):
        choose(program, samples, budget=budget, samples=0)
    maps = capture(nn.Sequential(nn.Conv2d(8, 1, 1)).eval(), samples[:2])
    with pytest.raises(ConfigError, match="max_kl must be given only for outputs with classes"):
        choose(maps, samples, budget=PrecisionBudget(max_kl=0.1))


def test_floats_for_storage_are_among_the_choices(program, samples):
    found = choose(program, samples, budget=PrecisionBudget(max_bits=10), formats=("int8", "fp16", "float"), samples=16)
    assert found.bits <= 10
    assert "float" not in found.rules.values()
    assert stored_bits("fp16", specs["onnxruntime"], "Conv", 3) == 16
    assert [stored_bits(f"int{bits}", specs["onnxruntime"], "Conv", 3) for bits in range(2, 9)] == [2, 4, 4, 8, 8, 8, 8]


def test_bits_are_those_of_the_file_where_a_target_packs_some_layers_alone(tmp_path):
    """LiteRT reads two codes from a byte in linear layers whose rows fill their bytes, and nowhere else."""
    pytest.importorskip("ai_edge_litert")
    torch.manual_seed(0)
    inputs = torch.randn(64, 4, 8, 8)
    model = nn.Sequential(nn.Conv2d(4, 64, 3), nn.ReLU(), nn.Flatten(), nn.Linear(2304, 63), nn.ReLU(), nn.Linear(63, 65)).eval()
    program = capture(model, inputs[:2])
    search = PrecisionSearch(budget=PrecisionBudget(max_bits=5), formats=("int4", "int8"), samples=16)
    found = choose_precision(program, inputs, "litert", search=search)
    bits = {(*row.layers, row.format): row.bits for row in found.table}
    assert {key: bits[key] for key in bits if key[1] == "int4"} == {("0", "int4"): 8, ("3", "int4"): 4, ("5", "int4"): 8}
    files = {
        name: export(apply(program, plan_quantization(program, inputs, "litert", weights=name)), tmp_path / "m.tflite", "litert").size_bytes
        for name in ("int4", "int8")
    }
    sizes = {name: sum(row.size_bytes for row in found.table if row.format == name) for name in files}
    assert files["int8"] - files["int4"] == pytest.approx(sizes["int8"] - sizes["int4"], abs=200)


def test_another_budget_needs_no_second_table(program, samples, mixed):
    stages = []
    search = PrecisionSearch(budget=PrecisionBudget(max_bits=8), formats=("int4", "int8"), samples=32)
    again = choose_precision(program, samples, search=search, table=mixed.table, on_progress=lambda progress: stages.append(progress.stage))
    assert "sensitivity" not in stages
    assert again.table == mixed.table
    assert mixed.bits < again.bits <= 8
    assert again.damage.kl < mixed.damage.kl
    with pytest.raises(ConfigError, match="table must be one of the formats int8, int4 for each layer"):
        choose(program, samples, budget=PrecisionBudget(max_bits=8), formats=("int8", "int4"), table=())
