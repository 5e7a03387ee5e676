"""Reshapes behind reshapes, and rows that several layers read."""

import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn

from gossamer.apply.engine import apply
from gossamer.plan.quantization import plan_quantization
from gossamer.program.capture import capture
from gossamer.targets.export import export
from gossamer.targets.onnx.draft import Draft
from gossamer.targets.onnx.optimized import optimized_ops
from gossamer.targets.onnx.proto import Port, to_bytes
from gossamer.targets.onnx.tidy import join_reshapes


def chain(*shapes, allowzero=None):
    draft, name = Draft(), "x"
    for shape in shapes:
        (name,) = draft.emit("Reshape", (name, draft.constant(np.asarray(shape))), name="t", allowzero=allowzero)
    return draft, name


@pytest.mark.parametrize(
    ("shapes", "left"),
    [
        (([-1, 12], [0, 3, 4]), 1),  # the kept batch becomes the rest
        (([-1, 12], [-1, 3, 4], [0, 12]), 1),
        (([-1, 12], [12, -1]), 1),
        (([-1, 3, 4], [0, 2, -1]), 2),  # a kept and a free size: needs the one before
    ],
)
def test_reshapes_read_the_first_source_and_make_the_same(shapes, left):
    x = np.arange(24, dtype=np.float32).reshape(2, 12)
    expected = x
    for shape in shapes:
        expected = expected.reshape([expected.shape[place] if size == 0 else size for place, size in enumerate(shape)])
    draft, name = chain(*shapes)
    join_reshapes(draft)
    draft.without_dead_code([name])
    assert len(draft.nodes) == left
    data = to_bytes(draft, [Port("x", torch.float32, (2, 12))], [Port(name, torch.float32, expected.shape)], {})
    (found,) = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"]).run(None, {"x": x})
    np.testing.assert_array_equal(found, expected)


def test_shapes_in_which_zero_is_a_size_stay():
    draft, name = chain([-1, 12], [0, 3], allowzero=1)
    join_reshapes(draft)
    draft.without_dead_code([name])
    assert len(draft.nodes) == 2


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.out = nn.LayerNorm(16), nn.Linear(16, 16)
        self.query, self.key, self.value = nn.Linear(16, 16), nn.Linear(16, 16), nn.Linear(16, 16)

    def forward(self, x):
        x = self.norm(x)
        heads = (layer(x).view(-1, 5, 2, 8).transpose(1, 2) for layer in (self.query, self.key, self.value))
        return self.out(nn.functional.scaled_dot_product_attention(*heads).transpose(1, 2).reshape(-1, 5, 16))


def test_layers_that_read_one_value_share_its_rows_and_heads_are_made_in_one_step(tmp_path):
    samples = torch.randn(16, 5, 16, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    program = capture(Attention().eval(), samples[:2])
    path = export(apply(program, plan_quantization(program, samples)), tmp_path / "q.onnx").path
    ops = optimized_ops(path)
    assert ops["QGemm"] == 4
    # rows for three layers; heads of each; behind attention: tokens, rows, and tokens again
    assert ops["Reshape"] == 1 + 3 + 3
