from dataclasses import replace

import torch
from torch import nn

from gossamer.plan.parts import make_part, pick, to_rows
from gossamer.plan.segments import cut, join_front
from gossamer.program.capture import capture
from gossamer.program.ops import op_of
from gossamer.program.ops.kinds import Convolution, Linear


class Residual(nn.Module):
    def __init__(self, width=8):
        super().__init__()
        self.one, self.two = nn.Conv2d(width, width, 3, padding=1), nn.Conv2d(width, width, 1)

    def forward(self, x):
        return x + self.two(torch.relu(self.one(x)))


class Network(nn.Module):
    """A chain that narrows, two residual branches, and a view that names the batch."""

    def __init__(self):
        super().__init__()
        self.chain = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 4, 1), nn.Conv2d(4, 8, 1), nn.ReLU())
        self.first, self.second = Residual(), Residual()
        self.head = nn.Linear(8 * 36, 5)

    def forward(self, x):
        y = self.second(self.first(self.chain(x)))
        return self.head(y.reshape(x.shape[0], -1)) * 2


def layers(program):
    return {node.name for node in program.graph.nodes if isinstance(op_of(node).kind, (Convolution, Linear))}


def test_parts_in_a_row_compute_the_network():
    program = capture(Network().eval(), torch.randn(2, 3, 8, 8))
    x = torch.randn(5, 3, 8, 8)
    graphs = cut(program, layers(program))
    assert len(graphs) == 3
    made = [name for graph in graphs for name in layers(program) if name in graph.by_name]
    assert sorted(made) == sorted(layers(program))
    values = {program.inputs[0].name: to_rows(x)}
    for graph in graphs:
        part = make_part(program, graph, {})
        for name, value in part.run({name: pick(values[name], torch.arange(5)) for name in graph.inputs}).items():
            values[name] = to_rows(value)
    with torch.no_grad():
        assert torch.allclose(values[program.graph.outputs[0]], program(x), atol=1e-6)


def test_branches_stay_whole_and_chains_are_cut_where_they_are_narrow():
    program = capture(Network().eval(), torch.randn(2, 3, 8, 8))
    graphs = cut(program, layers(program), most_layers=1)
    ends = [graph.outputs[0] for graph in graphs]
    assert cut(program, layers(program), most_layers=3)[0].outputs == ("conv2d_1",)  # 4 channels, where the next has 8
    assert {"add", "add_1"} <= set(ends)
    assert all(len(graph.outputs) == 1 for graph in graphs)
    assert ends[-1] == program.graph.outputs[0]


def test_outputs_in_the_middle_are_kept():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two, self.three, self.four = (nn.Linear(4, 4) for _ in range(4))

        def forward(self, x):
            return self.four(self.three(self.two(self.one(x)) * 2))

    program = capture(Two().eval(), torch.randn(2, 4))
    early = program.graph.nodes[1].name
    program = program.with_graph(replace(program.graph, outputs=(early, *program.graph.outputs)))
    graphs = cut(program, layers(program), most_layers=3)
    assert {name for graph in graphs for name in graph.outputs} >= set(program.graph.outputs)


def test_a_fixed_batch_is_cut_as_well():
    class Fixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x):
            return self.two(torch.relu(self.one(x)).reshape(3, 4))

    program = capture(Fixed().eval(), torch.randn(3, 4), dynamic_batch=False)
    assert len(cut(program, layers(program), most_layers=1)) == 2


def test_parts_before_those_that_matter_are_one():
    program = capture(Network().eval(), torch.randn(2, 3, 8, 8))
    x = torch.randn(5, 3, 8, 8)
    graphs = cut(program, layers(program))
    last = next(name for name in layers(program) if name in graphs[-1].by_name)
    joined = join_front(graphs, {last})
    assert len(joined) == 2 and joined[1] == graphs[-1] and len(joined[0].outputs) == 1
    values = {program.inputs[0].name: x}
    for graph in joined:
        values.update(make_part(program, graph, {}).run({name: values[name] for name in graph.inputs}))
    with torch.no_grad():
        assert torch.allclose(values[program.graph.outputs[0]], program(x), atol=1e-6)
    assert join_front(graphs, layers(program)) == graphs  # the first part matters already
    assert join_front(graphs, set()) == graphs  # none does: nothing lies before it
