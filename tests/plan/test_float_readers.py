"""Float readers of a value that others read on codes see floats: on the runtime, in plans, and beside dropout."""

import onnx
import pytest
import torch
from torch import nn

from gossamer.apply.engine import apply
from gossamer.plan.edits import CopyForCodes, QuantizeValue
from gossamer.plan.plan import Plan
from gossamer.plan.quantization import plan_quantization
from gossamer.program.capture import capture
from gossamer.search.diagnosis.patient import rebuilt_plan
from gossamer.targets.export import export
from gossamer.targets.target import targets
from gossamer.targets.value_errors import value_errors
from gossamer.targets.verify import verify


class PostNorm(nn.Module):
    """A perceptron as BERT has it: what the norm makes is read by a layer and by the residual addition."""

    def __init__(self, width=16, drop=0.1):
        super().__init__()
        self.first, self.second = nn.LayerNorm(width), nn.LayerNorm(width)
        self.drop = nn.Dropout(drop)
        self.up, self.down, self.head = nn.Linear(width, 32), nn.Linear(32, width), nn.Linear(width, 3)

    def forward(self, x):
        x = self.drop(self.first(x))
        return self.head(self.second(x + self.down(nn.functional.gelu(self.up(x)))))


@pytest.fixture(scope="module")
def samples():
    return torch.randn(64, 16, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def program(samples):
    torch.manual_seed(0)
    return capture(PostNorm().eval(), samples[:2])


@pytest.mark.parametrize("target", ["onnxruntime", "openvino"])
def test_the_addition_reads_floats_and_parity_holds(program, samples, tmp_path, target):
    if target == "openvino":
        pytest.importorskip("openvino")
    plan = plan_quantization(program, samples, target, weights=targets[target].exact_weights())
    (copy,) = [edit for edit in plan.edits if isinstance(edit, CopyForCodes)]
    quantized = apply(program, plan)
    assert copy.readers == ("linear",)
    assert f"{copy.value}_coded" in quantized.quantizers
    assert not quantized.quantizers.keys() & {"layer_norm", "dropout"}
    artifact = export(quantized, tmp_path / "q.onnx", target)
    model = onnx.load(artifact.path)
    add = next(node for node in model.graph.node if node.op_type == "Add" and "layer_norm" in node.input)
    assert not any(name.endswith("/dq") for name in add.input if name == "layer_norm")
    report = verify(artifact, reference=program, data=(samples, program(samples).argmax(1)))
    assert report.passed, report.problems


def test_the_residual_is_not_rounded(program, samples):
    """With every other rounding away, the network errs only by what the layer reads."""
    quantized = apply(program, plan_quantization(program, samples))
    only = {name: quantizer for name, quantizer in quantized.quantizers.items() if name.endswith("_coded")}
    values = {}
    with torch.no_grad():
        bare = quantized.with_graph(quantized.graph, quantizers=only).eval()
        bare.run(samples, observe={"layer_norm": values.__setitem__, "add": values.__setitem__, "linear_1": values.__setitem__})
    assert torch.equal(values["add"], values["layer_norm"] + values["linear_1"])


def test_plans_survive_json_and_are_found_again_from_the_networks(program, samples):
    plan = plan_quantization(program, samples)
    assert Plan.from_json(plan.to_json()) == plan
    quantized = apply(program, plan)
    found = rebuilt_plan(quantized, program)
    kinds = (CopyForCodes, QuantizeValue)
    assert {edit for edit in found.edits if isinstance(edit, kinds)} == {edit for edit in plan.edits if isinstance(edit, kinds)}
    assert value_errors(quantized, program, samples) == value_errors(quantized, program, samples, plan=plan)


def test_values_that_only_layers_read_are_not_copied(samples):
    network = nn.Sequential(nn.LayerNorm(16), nn.Linear(16, 8), nn.GELU(), nn.Linear(8, 3)).eval()
    plan = plan_quantization(capture(network, samples[:2]), samples)
    assert not any(isinstance(edit, CopyForCodes) for edit in plan.edits)
