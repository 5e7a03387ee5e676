"""Eager in, eager out: the module with a pruned program's weights computes what the program computes."""

import copy
import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import nn

from gossamer.apply.eager import prune
from gossamer.apply.engine import apply
from gossamer.apply.transplant import transplant
from gossamer.errors import ConfigError, TransplantError
from gossamer.plan.constraints import Constraints
from gossamer.plan.pruning import plan_pruning
from gossamer.plan.score import score
from gossamer.program.capture import capture, relative_error
from gossamer.program.fold import fold_batch_norms
from networks import networks


def pruned(model, x, ratio=0.5, seed=0, **options):
    program = capture(model, x)
    plan = plan_pruning(program, score(program, "random", seed=seed), ratio, **options)
    assert plan.edits
    return apply(program, plan)


def assert_same(model, program, *inputs):
    with torch.no_grad():
        assert relative_error(model.eval()(*inputs), program.eval()(*inputs)) <= 1e-5


def parameters(model):
    return sum(parameter.numel() for parameter in model.parameters())


class Attention(nn.Module):
    """As most people write it: sizes in attributes, torch's fused product with its default scale."""

    def __init__(self, width=32, heads=4):
        super().__init__()
        self.heads = heads
        self.head_width = width // heads
        self.inner = width
        self.qkv = nn.Linear(width, 3 * width)
        self.scale = self.head_width**-0.5
        self.out = nn.Linear(width, width)

    def forward(self, x):
        batch, tokens, _ = x.shape
        q, k, v = self.qkv(x).reshape(batch, tokens, 3, self.heads, self.head_width).permute(2, 0, 3, 1, 4).unbind(0)
        mixed = nn.functional.scaled_dot_product_attention(q, k, v)
        return self.out(mixed.transpose(1, 2).reshape(batch, tokens, self.inner))


class Fixed(Attention):
    """The same with a width that only the source text knows."""

    def forward(self, x):
        batch, tokens, _ = x.shape
        q, k, v = self.qkv(x).reshape(batch, tokens, 3, 4, 8).permute(2, 0, 3, 1, 4).unbind(0)
        mixed = nn.functional.scaled_dot_product_attention(q, k, v)
        return self.out(mixed.transpose(1, 2).flatten(2))


class Rectified(Attention):
    """Runs with narrower heads, and then scales otherwise than the program; no weight can make up for it."""

    def forward(self, x):
        batch, tokens, _ = x.shape
        q, k, v = self.qkv(x).reshape(batch, tokens, 3, self.heads, self.head_width).permute(2, 0, 3, 1, 4).unbind(0)
        mixed = nn.functional.scaled_dot_product_attention(torch.sigmoid(q), k, v)
        return self.out(mixed.transpose(1, 2).reshape(batch, tokens, self.inner))


class Transformer(nn.Module):
    def __init__(self, attention=Attention, width=32):
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Linear(6, width)
        self.position = nn.Parameter(torch.randn(1, 5, width))
        self.norm = nn.LayerNorm(width)
        self.attention = attention(width)
        self.mlp = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))
        self.head = nn.Linear(width, 3)

    def forward(self, x):
        x = self.embed(x) + self.position
        x = x + self.attention(self.norm(x))
        x = x + self.mlp(x)
        return self.head(x.mean(1))


class FixedView(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 8, 1)
        self.head = nn.Linear(8 * 4, 2)

    def forward(self, x):
        y = torch.relu(self.conv(x))
        y = y.view(-1, 8, 4)  # the line
        return self.head(y.flatten(1))


class EveryLayer(nn.Module):
    """One of each torch layer that keeps sizes."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.slope = nn.PReLU(8)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.group = nn.GroupNorm(2, 8)
        self.plain = nn.InstanceNorm2d(8)
        self.up = nn.ConvTranspose2d(8, 6, 2, stride=2)
        self.line = nn.Linear(6, 10)
        self.layer = nn.LayerNorm(10)
        self.bare = nn.LayerNorm(10, elementwise_affine=False)
        self.head = nn.Linear(10, 2)

    def forward(self, x):
        y = self.plain(self.group(self.depthwise(self.slope(self.norm(self.conv(x))))))
        y = self.up(y).mean((2, 3))
        return self.head(torch.relu(self.bare(self.layer(self.line(y)))))


@settings(max_examples=12)
@given(networks(), st.floats(0.1, 0.8), st.integers(0, 99))
def test_random_networks(network, ratio, seed):
    small = pruned(network, torch.zeros(2, 3, 8, 8), ratio, seed)
    eager = transplant(small, network)
    assert type(eager) is type(network)
    assert parameters(eager) == parameters(small)
    assert_same(eager, small, torch.randn(3, 3, 8, 8))


def test_sizes_of_all_layers_are_those_of_their_weights():
    model = EveryLayer().eval()
    small = pruned(model, torch.zeros(2, 3, 6, 6))
    eager = transplant(small, model)
    assert_same(eager, small, torch.randn(3, 3, 6, 6))
    width, inner = eager.conv.out_channels, eager.line.out_features
    assert width < 8 and inner < 10 and eager.up.out_channels < 6
    assert eager.norm.num_features == eager.slope.num_parameters == eager.plain.num_features == eager.group.num_channels == width
    assert (eager.depthwise.groups, eager.depthwise.in_channels, eager.depthwise.out_channels) == (width, width, width)
    assert (eager.up.in_channels, eager.up.out_channels, eager.line.in_features) == (width, eager.line.in_features, eager.up.out_channels)
    assert eager.layer.normalized_shape == eager.bare.normalized_shape == (inner,)
    assert eager.head.in_features == inner


def test_a_transformer_with_narrower_heads():
    """Heads lose channels, so the fused product scales otherwise than before: its queries make up for it."""
    model = Transformer().eval()
    small = pruned(model, torch.zeros(2, 5, 6))
    eager = transplant(small, model)
    assert_same(eager, small, torch.randn(4, 5, 6))
    attention = eager.attention
    assert attention.head_width < 8 and attention.heads == 4
    assert attention.inner == 4 * attention.head_width == attention.out.in_features
    assert attention.scale == pytest.approx(attention.head_width**-0.5)
    assert (model.attention.head_width, model.attention.inner) == (8, 32)


def test_whole_heads():
    model = Transformer().eval()
    program = capture(model, torch.zeros(2, 5, 6))
    plan = plan_pruning(program, score(program, "random", seed=3, attention="heads"), 0.5, mode="layerwise")
    small = apply(program, plan)
    eager = transplant(small, model)
    assert_same(eager, small, torch.randn(4, 5, 6))
    assert (eager.attention.heads, eager.attention.head_width, eager.attention.inner) == (2, 8, 16)


def line_of(cls, text):
    import inspect

    lines, first = inspect.getsourcelines(cls)
    return first + next(number for number, line in enumerate(lines) if text in line)


def test_a_view_with_a_hard_coded_size_is_named():
    model = FixedView().eval()
    small = pruned(model, torch.zeros(2, 1, 2, 2))
    with pytest.raises(
        TransplantError, match=r"use the program itself.*change that line.*Constraints\(skip=...\) of \('conv',\)"
    ) as caught:
        transplant(small, model)
    assert f"test_transplant.py:{line_of(FixedView, '# the line')}" in caught.value.line
    assert caught.value.groups == ("conv",)
    assert "\n" not in str(caught.value)


def test_a_width_that_raises_nothing_is_named():
    model = Transformer(Rectified).eval()
    small = pruned(model, torch.zeros(2, 5, 6))
    with pytest.raises(TransplantError, match="keeps an old size, and its output differs by") as caught:
        transplant(small, model)
    assert caught.value.module == "attention"
    assert caught.value.line == f"test_transplant.py:{line_of(Rectified, 'sigmoid(q)')}"
    assert "attention.qkv" in caught.value.groups


def test_hard_coded_heads_name_module_and_line():
    model = Transformer(Fixed).eval()
    small = pruned(model, torch.zeros(2, 5, 6))
    with pytest.raises(TransplantError, match="in 'attention' at .*test_transplant.py:") as caught:
        transplant(small, model)
    assert caught.value.module == "attention"
    assert "attention.qkv" in caught.value.groups


def test_prune_keeps_whole_what_a_line_fixes():
    x = torch.randn(2, 5, 6)
    model = Transformer(Fixed).eval()
    with pytest.raises(TransplantError, match=r"reshape\(batch, tokens, 3, 4, 8\)"):
        prune(model, x, 0.4)
    small = prune(model, x, 0.4, hard_coded="keep")
    assert small.attention.qkv.out_features == 96
    assert small.mlp[1].out_features < 64
    assert parameters(small) < parameters(model)
    assert small(x).shape == (2, 3)


def test_prune_takes_budget_scores_and_constraints():
    from gossamer.plan.budget import Budget

    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16 * 16, 3)).train()
    x = torch.randn(2, 1, 8, 8)
    asked = []

    def by_chance(program):
        asked.append(program)
        return score(program, "random", seed=1)

    small = prune(model, x, budget=Budget(macs=0.5), criterion=by_chance, constraints=Constraints(skip=("0",)))
    assert asked and small.training and model.training
    assert small[0].out_channels == 16
    assert small[2].out_channels < 16
    assert capture(small, x).cost().macs <= 0.5 * capture(model, x).cost().macs


def test_prune_refuses_an_unknown_way():
    with pytest.raises(ConfigError, match="hard_coded must be one of raise, keep; got 'ignore'"):
        prune(nn.Linear(2, 2), torch.zeros(2, 2), 0.5, hard_coded="ignore")


def test_the_argument_is_untouched_and_its_settings_are_kept():
    model = nn.Sequential(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 3)).train()
    model[1].eval()
    model[0].bias.requires_grad_(False)
    seen = []
    model[2].register_forward_hook(lambda module, args, result: seen.append(result.shape[1]))
    before = copy.deepcopy(model.state_dict())
    small = pruned(model, torch.zeros(2, 1, 8, 8))
    eager = transplant(small, model)
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in before.items())
    assert model[0].out_channels == 8 and model.training and not model[1].training
    assert eager.training and not eager[1].training and not eager[0].bias.requires_grad and eager[0].weight.requires_grad
    seen.clear()
    eager(torch.zeros(2, 1, 8, 8))
    assert seen == [eager[0].out_channels]
    mine = {tensor.data_ptr() for tensor in [*model.state_dict().values(), *small.state_dict().values()]}
    assert not mine & {tensor.data_ptr() for tensor in eager.state_dict().values()}


def test_tied_weights_stay_tied():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = nn.Linear(3, 8)
            self.a = nn.Linear(8, 8)
            self.b = nn.Linear(8, 8)
            self.b.weight = self.a.weight
            self.head = nn.Linear(8, 2)

        def forward(self, x):
            return self.head(torch.relu(self.b(torch.relu(self.a(torch.relu(self.first(x)))))))

    model = Tied().eval()
    small = pruned(model, torch.zeros(2, 3))
    eager = transplant(small, model)
    assert eager.a.weight is eager.b.weight
    assert_same(eager, small, torch.randn(4, 3))


def test_a_mapping_of_inputs_and_an_output_key():
    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Linear(4, 8)
            self.head = nn.Linear(8, 2)

        def forward(self, x, *, shift):
            return {"logits": self.head(torch.relu(self.body(x) + shift))}

    model = Named().eval()
    example = {"x": torch.randn(2, 4), "shift": torch.randn(2, 1)}
    program = capture(model, example, output="logits")
    small = apply(program, plan_pruning(program, score(program), 0.5))
    for eager in (transplant(small, model, example, output="logits"), transplant(small, model, output="logits")):
        assert torch.allclose(eager(**example)["logits"], small(**example))
    with pytest.raises(TransplantError, match="returns a dict, not one tensor; pass output="):
        transplant(small, model)


def test_a_trained_and_repaired_program_goes_back():
    """Values come from the program as it is now, a bias that the module was made without included."""
    from gossamer.apply.repair import repair

    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(2, 8, 3, bias=False), nn.ReLU(), nn.Conv2d(8, 6, 3, bias=False), nn.ReLU(), nn.Flatten(), nn.Linear(96, 3)
    ).eval()
    program = capture(model, torch.zeros(2, 2, 8, 8))
    plan = plan_pruning(program, score(program), 0.4)
    small = repair(apply(program, plan), program, plan, [torch.randn(16, 2, 8, 8)], "mean")
    eager = transplant(small, model)
    assert_same(eager, small, torch.randn(3, 2, 8, 8))


def test_programs_with_other_operations_are_refused():
    torch.manual_seed(0)
    for bias in (True, False):
        model = nn.Sequential(nn.Conv2d(1, 8, 3, bias=bias), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 3)).eval()
        nn.init.normal_(model[1].running_mean)
        small = fold_batch_norms(pruned(model, torch.zeros(2, 1, 8, 8)))
        with pytest.raises(TransplantError, match="transplant the program as it was before folding"):
            transplant(small, model)


def test_a_quantized_program_is_refused():
    from gossamer.numerics.affine import Quantizer
    from gossamer.numerics.formats import IntFormat, PerTensor

    model = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2)).eval()
    program = capture(model, torch.zeros(2, 3))
    quantizer = Quantizer(IntFormat(bits=8), PerTensor(), (0.1,), (0,))
    with pytest.raises(TransplantError, match="the program is quantized"):
        transplant(program.with_graph(program.graph, quantizers={program.graph.outputs[0]: quantizer}), model)


def test_another_model_is_refused():
    small = pruned(nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2)).eval(), torch.zeros(2, 3))
    with pytest.raises(TransplantError, match=re.escape("has the weight '2.weight', which the module does not have")):
        transplant(small, nn.Sequential(nn.Linear(3, 2)).eval())
    with pytest.raises(TransplantError, match="shape"):
        transplant(small, nn.Sequential(nn.Conv1d(3, 8, 1), nn.ReLU(), nn.Conv1d(8, 2, 1)).eval())


def test_weights_go_through_a_file_and_training_goes_on(tmp_path):
    torch.manual_seed(0)
    model = Transformer().train()
    eager = prune(model, torch.zeros(2, 5, 6), 0.5)
    save_file(eager.state_dict(), tmp_path / "small.safetensors")
    again = copy.deepcopy(eager)
    for parameter in again.parameters():
        nn.init.zeros_(parameter)
    again.load_state_dict(load_file(tmp_path / "small.safetensors"))
    x, target = torch.randn(8, 5, 6), torch.randint(0, 3, (8,))
    assert torch.equal(again.eval()(x), eager.eval()(x))
    optimizer = torch.optim.SGD(again.train().parameters(), lr=0.1)
    losses = []
    for _ in range(5):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(again(x), target)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
