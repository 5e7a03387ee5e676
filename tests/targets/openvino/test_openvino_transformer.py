"""Transformers on OpenVINO: one kernel for each linear layer, attention on codes, nothing rounded twice; parity on random blocks."""

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention

from gossamer.apply.engine import apply
from gossamer.errors import PlanError
from gossamer.plan.edits import QuantizeValue, SplitAttention
from gossamer.plan.plan import Plan
from gossamer.plan.quantization import plan_quantization
from gossamer.program.capture import capture
from gossamer.search.diagnosis.patient import rebuilt_plan
from gossamer.targets.export import export
from gossamer.targets.openvino.run import compile_model, kernels_of
from gossamer.targets.parity import check_parity, open_artifact
from gossamer.targets.target import targets
from gossamer.targets.verify import verify

pytest.importorskip("openvino")
TOKENS, WIDTH = 10, 32


class Block(nn.Module):
    """Multi-head attention and a perceptron, with layer norms in front, as vision transformers have them."""

    def __init__(self, heads, masked=False):
        super().__init__()
        self.heads, self.masked = heads, masked
        self.norm, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 2 * WIDTH, bias=not masked), nn.Linear(2 * WIDTH, WIDTH)

    def forward(self, x):
        split = self.qkv(self.norm(x)).reshape(-1, TOKENS, 3, self.heads, WIDTH // self.heads).permute(2, 0, 3, 1, 4)
        query, key, value = split.unbind(0)
        mask = (x[:, None, None, :, 0] > -1.5) if self.masked else None
        seen = nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        x = x + self.out(seen.transpose(1, 2).reshape(-1, TOKENS, WIDTH))
        return x + self.down(nn.functional.gelu(self.up(self.norm2(x))))


class Mean(nn.Module):
    """Over tokens."""

    def forward(self, x):
        return x.mean(1)


def network(heads=2, masked=False, seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(Block(heads, masked), Block(heads, masked), Mean(), nn.Linear(WIDTH, 5)).eval()


@pytest.fixture(scope="module")
def samples():
    return torch.randn(32, TOKENS, WIDTH, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def program(samples):
    return capture(network(), samples[:2])


@pytest.fixture(scope="module")
def plan(program, samples):
    return plan_quantization(program, samples, "openvino", weights=targets["openvino"].exact_weights())


def test_linear_layers_and_attention_are_one_integer_kernel_each(program, plan, tmp_path):
    path = export(apply(program, plan), tmp_path / "q.onnx", "openvino").path
    kernels = kernels_of(compile_model(path, path.read_bytes(), threads=1))
    layers = [kernel for kernel in kernels if kernel.kind.startswith("FullyConnected")]
    assert len(layers) == 9
    assert all(kernel.name.endswith("_I8") for kernel in layers)
    ups = [kernel for kernel in layers if any("gelu" in name for name in kernel.made)]
    assert [kernel.result for kernel in ups] == ["u8", "u8"]  # GELU and the rounding behind it are part of the layer
    # what is rounded by a kernel of its own: queries, keys and values, since a Split cannot; and the last layer's input, behind a mean;
    # with AVX2 alone attention weights, too
    assert sum(kernel.kind == "FakeQuantize" and "attention_weights" not in str(kernel.made) for kernel in kernels) <= 7
    assert not any(kernel.kind == "Convert" for kernel in kernels)
    attention = [kernel for kernel in kernels if any("attention" in name and "weights/q" in name for name in kernel.made)]
    assert [kernel.result for kernel in attention] == ["u8", "u8"]


def test_factors_have_their_zero_points_at_zero_and_scales_of_their_own(program, plan):
    quantized = apply(program, plan)
    factors = [name for node in quantized.graph.nodes if node.op == "aten.matmul.default" for name in node.uses]
    assert len(factors) == 8
    for name in factors:
        quantizer = quantized.quantizers[name]
        assert quantizer.zero_point == (0,)
        assert quantizer.format.signed is not name.endswith("_weights")
    assert len({quantized.quantizers[name].scale for name in factors}) == 8
    assert not any(quantized.quantizers.keys() & {node.name for node in quantized.graph.nodes if node.op.startswith("aten.permute")})


@pytest.mark.parametrize(("heads", "masked"), [(1, False), (4, False), (2, True), (8, True)])
@pytest.mark.parametrize("activations", ["uint8", "int8"])
def test_parity_of_random_blocks(samples, tmp_path, heads, masked, activations):
    program = capture(network(heads, masked, seed=heads), samples[:2])
    quantized = apply(
        program, plan_quantization(program, samples, "openvino", weights=targets["openvino"].exact_weights(), activations=activations)
    )
    report = verify(
        export(quantized, tmp_path / "q.onnx", "openvino"),
        reference=program,
        data=(samples, torch.zeros(len(samples), dtype=torch.long)),
        batch=16,
    )
    assert report.passed, report.problems
    assert report.parity.max_steps <= 1
    assert len(report.parity.layers) >= 14


def test_the_plan_survives_json_and_is_found_again_from_the_networks(program, plan):
    again = Plan.from_json(plan.to_json())
    assert again == plan
    assert sum(isinstance(edit, SplitAttention) for edit in plan.edits) == 2
    assert {edit for edit in rebuilt_plan(apply(program, plan), program).edits if isinstance(edit, (SplitAttention, QuantizeValue))} == {
        edit for edit in plan.edits if isinstance(edit, (SplitAttention, QuantizeValue))
    }


def test_a_plan_that_splits_what_is_no_attention_is_refused(program, plan):
    wrong = replace(plan, edits=(SplitAttention("linear"), *plan.edits))
    with pytest.raises(PlanError, match="splits 'linear', which is no attention"):
        apply(program, wrong)


class Alike(nn.Module):
    """Queries and keys that are all large and of one sign, so that two products of codes exceed 16 bits wherever kernels add two."""

    def __init__(self):
        super().__init__()
        self.qkv, self.out = nn.Linear(32, 96), nn.Linear(32, 4)
        nn.init.constant_(self.qkv.bias, 3.0)

    def forward(self, x):
        q, k, v = self.qkv(x).chunk(3, -1)
        return self.out(scaled_dot_product_attention(q, k * 0.05, v)).mean(1)


def test_second_factors_have_the_bits_of_exact_weights(tmp_path):
    torch.manual_seed(0)
    samples = torch.randn(16, 12, 32)
    program = capture(Alike().eval(), samples[:2])
    for weights, bits in (("int8", {8}), ("int7", {7})):
        quantized = apply(program, plan_quantization(program, samples, "openvino", weights=weights))
        products = [node for node in quantized.graph.nodes if node.op == "aten.matmul.default"]
        assert len(products) == 2
        assert {quantized.quantizers[node.uses[1]].format.bits for node in products} == bits
        assert {quantized.quantizers[node.uses[0]].format.bits for node in products} == {8}
        if weights == targets["openvino"].exact_weights():
            artifact = export(quantized, tmp_path / "q.onnx", "openvino")
            assert check_parity(artifact, open_artifact(artifact, threads=1), (samples,)).max_steps <= 1
