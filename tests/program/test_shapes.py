"""Shapes: running the program on real numbers is the oracle."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from gossamer.errors import UnsupportedOp
from gossamer.program.capture import capture
from gossamer.program.shapes import TensorMeta, infer_shapes, tensor_meta
from networks import networks


@settings(max_examples=8, deadline=None)
@given(networks(), st.integers(1, 3))
def test_shapes_and_types_are_those_of_the_real_values(network, batch):
    program = capture(network, torch.zeros(2, 3, 8, 8))
    metas = infer_shapes(program, batch=batch)
    seen = {}
    with torch.no_grad():
        program.run(*program.example_inputs(batch), observe=lambda name, value: seen.__setitem__(name, value))
    assert seen.keys() == {"x", *(node.name for node in program.graph.nodes)}
    for name, value in {**seen, **program.state}.items():
        compare(metas[name], value)


def compare(meta, value):
    if isinstance(value, torch.Tensor):
        assert (meta.shape, meta.dtype, meta.numel) == (tuple(value.shape), value.dtype, value.numel())
        assert meta.size_bytes == value.numel() * value.element_size()
    elif isinstance(value, (tuple, list)):
        assert len(meta) == len(value)
        for one, other in zip(meta, value, strict=True):
            compare(one, other)
    else:
        assert meta == value


def test_views_share_a_storage_and_others_do_not():
    class Net(nn.Module):
        def forward(self, x):
            y = torch.relu(x)
            return y.view(y.shape[0], -1), torch.relu(y)

    program = capture(Net(), torch.zeros(2, 3, 4), output=lambda pair: pair[0].sum() + pair[1].sum())
    metas = infer_shapes(program)
    tensors = {name: meta for name, meta in metas.items() if isinstance(meta, TensorMeta)}
    by_op = {node.op: node.name for node in program.graph.nodes}
    reshape = tensors[by_op["aten.reshape.default"]]
    assert sum(meta.storage == reshape.storage for meta in tensors.values()) == 2
    assert len({meta.storage for meta in tensors.values()}) == len(tensors) - 1


def test_results_that_are_numbers_stay_numbers():
    class Net(nn.Module):
        def forward(self, x):
            return x.expand(x.shape[0], 2, 3).reshape(x.shape[0] * 2, 3)

    program = capture(Net(), torch.zeros(2, 1, 3))
    assert 10 in infer_shapes(program, batch=5).values()


def test_nothing_is_computed_and_no_mode_is_left():
    program = capture(nn.Linear(100, 100), torch.zeros(2, 100))
    with torch.no_grad():
        program.get_parameter("weight").fill_(float("nan"))
    assert tensor_meta(infer_shapes(program, batch=10**9), program.graph.outputs[0]).shape == (10**9, 100)
    assert type(torch.zeros(1)) is torch.Tensor


def test_sizes_that_depend_on_values_are_named():
    class Net(nn.Module):
        def forward(self, x):
            return x * x.max().item()

    program = capture(Net(), torch.ones(2, 3))
    assert torch.equal(program(torch.full((1, 3), 2.0)), torch.full((1, 3), 4.0))
    with pytest.raises(UnsupportedOp, match=r"no shape rule for aten\.\S+ at test_shapes.py:\d+; its result depends on values"):
        infer_shapes(program)


def test_tensors_without_memory_give_the_shapes_of_fake_ones():
    """The quick way and the careful one agree, a second time too, when results are remembered; tied tensors share storage."""
    from gossamer.program import shapes
    from networks import BLOCKS, RandomNetwork

    def plain(metas):
        places = {}
        return {
            name: (meta.shape, meta.dtype, places.setdefault(meta.storage, len(places))) if isinstance(meta, TensorMeta) else meta
            for name, meta in metas.items()
        }

    for seed, blocks in enumerate((BLOCKS[:4], BLOCKS[4:7], BLOCKS[7:])):
        program = capture(RandomNetwork(blocks, 8, True, seed).eval(), torch.zeros(2, 3, 8, 8))
        expected = plain(shapes._infer_on_fakes(program, 3))
        assert plain(shapes._infer_on_meta(program, 3)) == expected
        assert plain(shapes._infer_on_meta(program, 3)) == expected


@pytest.mark.filterwarnings("ignore:The tensor attributes", "ignore:LSTM with projections")
@pytest.mark.parametrize(
    "layer",
    [nn.LSTM(3, 4, 2, batch_first=True, bidirectional=True), nn.GRU(3, 4, batch_first=True), nn.LSTM(3, 4, proj_size=2, batch_first=True)],
)
def test_shapes_of_recurrent_layers_are_those_of_a_run(layer):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = layer

        def forward(self, x):
            outputs, states = self.layer(x)
            finals = states if isinstance(states, tuple) else (states,)
            return torch.cat([outputs.flatten(1), *(final.transpose(0, 1).flatten(1) for final in finals)], 1)

    program = capture(Net().eval(), torch.randn(2, 5, 3))
    metas, seen = infer_shapes(program, batch=3), {}
    program.run(torch.randn(3, 5, 3), observe=lambda name, value: seen.update({name: value}))
    (node,) = [node for node in program.graph.nodes if node.op.endswith(".input")]
    assert [meta.shape for meta in metas[node.name]] == [tuple(result.shape) for result in seen[node.name]]
    assert tensor_meta(metas, program.graph.outputs[0]).shape == tuple(seen[program.graph.outputs[0]].shape)
