import pytest
import torch
from torch import nn

from gossamer.program.attention import split_attention, whole_attention
from gossamer.program.capture import capture


class Attention(nn.Module):
    def __init__(self, kind, **options):
        super().__init__()
        self.kind, self.options = kind, options

    def forward(self, query, key, value, mask):
        mask = {"none": None, "float": mask, "bool": mask > 0}[self.kind]
        return nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=mask, **self.options)


def captured(kind, **options):
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(2, 3, size, 4, generator=generator) for size in (5, 6, 6))
    mask = torch.randn(2, 1, 5, 6, generator=generator)
    mask[0, 0, 2] = -1  # a row without any key
    inputs = (query, key, value, mask)
    return capture(Attention(kind, **options).eval(), inputs), inputs


@pytest.mark.parametrize("kind", ["none", "float", "bool"])
@pytest.mark.parametrize("scale", [None, 0.3])
def test_split_attention_computes_the_same(kind, scale):
    program, inputs = captured(kind, scale=scale)
    split = split_attention(program)
    (name,) = whole_attention(program)
    assert whole_attention(split) == ()
    assert [node.name for node in split.graph.nodes if node.op == "aten.matmul.default"] == [f"{name}_scores", name]
    torch.testing.assert_close(split(*inputs), program(*inputs))


def test_only_named_ones_are_split():
    program, _ = captured("none")
    assert whole_attention(split_attention(program, ())) == whole_attention(program)


@pytest.mark.parametrize("options", [{"is_causal": True}, {"enable_gqa": True}])
def test_causal_attention_and_shared_heads_stay_whole(options):
    program, _ = captured("none", **options)
    assert whole_attention(program) == ()
