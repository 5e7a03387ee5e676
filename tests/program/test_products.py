"""Products with a parameter become layers. Oracle: `capture` compares with the eager module, `apply` proves the removal."""

import pytest
import torch
from torch import nn

from gossamer.apply.engine import apply
from gossamer.plan.pruning import plan_pruning
from gossamer.plan.score import score
from gossamer.program.capture import capture


class Products(nn.Module):
    """x @ w, written in one of several ways, and a layer behind it."""

    def __init__(self, way):
        super().__init__()
        self.way = way
        self.weight, self.bias = nn.Parameter(torch.randn(5, 8)), nn.Parameter(torch.randn(8))
        self.turned, self.head = nn.Parameter(torch.randn(8, 5)), nn.Linear(8, 3)

    def forward(self, x):
        made = {
            "matmul": lambda: x @ self.weight,
            "mm": lambda: torch.mm(x, self.weight),
            "addmm": lambda: torch.addmm(self.bias, x, self.weight),
            "t": lambda: x @ self.turned.t(),
            "T": lambda: x @ self.turned.T,
            "transpose": lambda: torch.mm(x, self.turned.transpose(-2, 1)),
        }
        return self.head(made[self.way]().relu())


@pytest.mark.parametrize("way", ["matmul", "mm", "addmm", "t", "T", "transpose"])
def test_products_with_a_parameter_are_layers_and_shrink(way):
    torch.manual_seed(0)
    program = capture(Products(way).eval(), torch.randn(2, 5))
    assert [node.op for node in program.graph.nodes if "relu" not in node.op] == [
        *(["aten.t.default"] if way in ("matmul", "mm", "addmm") else []),
        "aten.linear.default",
        "aten.linear.default",
    ]
    small = apply(program, plan_pruning(program, score(program, "l1"), 0.5))
    assert small.cost().macs == 5 * 4 + 4 * 3
    assert program.cost().macs == 5 * 8 + 8 * 3


class OtherProducts(nn.Module):
    """Products that are no layers."""

    def __init__(self):
        super().__init__()
        self.weight, self.square = nn.Parameter(torch.randn(4, 4)), nn.Parameter(torch.randn(4, 4))
        self.table = nn.Parameter(torch.randn(4))

    def forward(self, x):
        left = self.weight @ x.transpose(0, 1)  # the parameter stands on the left
        vector = x @ self.table
        swapped = x @ self.square.transpose(0, 0)
        return left.transpose(0, 1) + vector.unsqueeze(1) + swapped


def test_other_products_stay():
    program = capture(OtherProducts().eval(), torch.randn(2, 4))
    ops = [node.op for node in program.graph.nodes]
    assert ops.count("aten.matmul.default") + ops.count("aten.mv.default") >= 2
    assert "aten.linear.default" not in ops


class AddedProducts(nn.Module):
    """Products with something added that is no bias, or of two values."""

    def __init__(self):
        super().__init__()
        self.stem, self.head = nn.Linear(4, 8), nn.Linear(8, 3)
        self.weight, self.bias = nn.Parameter(torch.randn(8, 8)), nn.Parameter(torch.randn(8))

    def forward(self, x):
        y = self.stem(x)
        y = torch.addmm(self.bias, y, self.weight, alpha=0.5) + torch.addmm(y, y, self.weight, beta=-2)
        scores = torch.baddbmm(x.mean(), y.unsqueeze(2), y.unsqueeze(1), beta=2, alpha=0.25)
        never_read = torch.baddbmm(torch.full_like(scores, float("nan")), y.unsqueeze(2), y.unsqueeze(1), beta=0)
        return self.head((scores + never_read).softmax(-1) @ y.unsqueeze(2) @ y.unsqueeze(1)).mean(1)


def test_what_is_added_to_a_product_is_an_op_of_its_own():
    program = capture(AddedProducts().eval(), torch.randn(2, 4))
    ops = [node.op for node in program.graph.nodes]
    assert not {"aten.addmm.default", "aten.baddbmm.default"} & set(ops)
    assert ops.count("aten.linear.default") == 4
    small = apply(program, plan_pruning(program, score(program, "l1"), 0.5))
    assert small.state["head.weight"].shape == (3, 4)


def test_a_matrix_used_twice_is_transposed_once_and_named_apart():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.w, self.w_t = nn.Parameter(torch.randn(4, 4)), nn.Parameter(torch.randn(4))

        def forward(self, x):
            return ((x @ self.w) + self.w_t).relu() @ self.w

    program = capture(Twice().eval(), torch.randn(2, 4))
    assert [node.name for node in program.graph.nodes if node.op == "aten.t.default"] == ["w_t_"]


def test_outer_products_are_pointwise():
    class Outer(nn.Module):
        def forward(self, x):
            return x @ torch.outer(x[0], torch.arange(4.0) + 1)

    program = capture(Outer().eval(), torch.randn(2, 4), dynamic_batch=False)
    assert "aten.outer.default" not in [node.op for node in program.graph.nodes]
    assert program.cost().macs == 2 * 4 * 4  # the product with the table
