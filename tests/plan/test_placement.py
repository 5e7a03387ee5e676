"""Which values get codes: oracles are small networks in which the right answer is plain to see."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from gossamer.plan.placement import place_quantizers
from gossamer.plan.site import inference_graph
from gossamer.plan.spec import specs
from gossamer.program.capture import capture
from gossamer.program.fold import fold_batch_norms
from gossamer.targets import onnx as onnx

SPEC = specs["onnxruntime"]


class Net(nn.Module):
    """Layers by name, and a function of them as forward."""

    def __init__(self, forward, **layers):
        super().__init__()
        for name, layer in layers.items():
            setattr(self, name, layer)
        self._forward = forward

    def forward(self, x):
        return self._forward(self, x)


def place(forward, shape=(2, 8, 6, 6), **layers):
    program = fold_batch_norms(capture(Net(forward, **layers).eval(), torch.randn(shape)))
    return program, place_quantizers(program, SPEC)


def coded(placement):
    return {name for group in placement.groups for name in group.values}


def test_activation_takes_the_codes_of_the_layer_before_it():
    program, placement = place(lambda net, x: torch.relu(net.norm(net.conv(x))), conv=nn.Conv2d(8, 8, 3), norm=nn.BatchNorm2d(8))
    names = [node.name for node in program.graph.nodes]
    assert names == ["conv2d", "relu"]
    assert coded(placement) == {"x", "relu"}
    assert placement.frozen == ()


def test_a_result_that_others_read_before_the_activation_has_codes_of_its_own():
    def forward(net, x):
        y = net.conv(x)
        return net.conv(torch.relu(y)) + y

    _, placement = place(forward, conv=nn.Conv2d(8, 8, 3, padding=1))
    assert {"conv2d", "relu"} <= coded(placement)
    assert [item.reason for item in placement.frozen] == ["it is free only right behind an op on integers that nothing else reads"]


def test_clamp_that_leaves_out_zero_is_not_free():
    _, placement = place(lambda net, x: net.conv(net.conv(x).clamp(1, 2)), conv=nn.Conv2d(8, 8, 1))
    assert {"conv2d", "clamp"} <= coded(placement)
    assert len(placement.frozen) == 1


def test_same_scale_ops_share_and_branches_meet():
    def forward(net, x):
        y = F.max_pool2d(net.one(x), 2)
        z = net.two(y) + y
        return net.head(torch.flatten(F.adaptive_avg_pool2d(torch.cat([z, y], 1), 1), 1))

    _, placement = place(forward, one=nn.Conv2d(8, 8, 3, padding=1), two=nn.Conv2d(8, 8, 1), head=nn.Linear(16, 4))
    groups = [group.values for group in placement.groups]
    assert ("conv2d", "max_pool2d") in groups
    assert ("adaptive_avg_pool2d", "flatten") in groups
    assert {("x",), ("conv2d_1",), ("add",), ("cat",)} <= set(groups)
    assert next(group for group in placement.groups if "max_pool2d" in group.values).roots == ("conv2d",)
    assert "linear" not in coded(placement)  # the last layer hands out floats
    assert placement.frozen == ()
    assert {layer.node for layer in placement.layers} == {"conv2d", "conv2d_1", "linear"}


def test_a_linear_layer_that_another_reads_has_codes():
    _, placement = place(lambda net, x: net.two(torch.relu(net.one(x))), (2, 8), one=nn.Linear(8, 8), two=nn.Linear(8, 3))
    assert coded(placement) == {"x", "relu"}


def test_dropout_is_looked_through():
    program, placement = place(
        lambda net, x: net.fc(net.drop(torch.relu(net.one(x)))), (2, 8), one=nn.Linear(8, 8), drop=nn.Dropout(), fc=nn.Linear(8, 3)
    )
    assert coded(placement) == {"x", "relu"}
    assert [node.op for node in inference_graph(program.graph).nodes].count("aten.dropout.default") == 0


def test_padding_of_an_input_whose_size_is_read_moves_codes():
    program, placement = place(
        lambda net, x: net.conv(F.pad(x, (0, 1, 0, 1))).reshape(x.size(0), -1), shape=(2, 8, 6, 6), conv=nn.Conv2d(8, 8, 3, stride=2)
    )
    assert any(node.op == "aten.sym_size.int" and node.uses == ("x",) for node in program.graph.nodes)
    assert {"x", "pad"} in [set(group.values) for group in placement.groups]


def test_padding_of_an_input_that_float_ops_read_too_stays_float():
    _, placement = place(
        lambda net, x: net.conv(F.pad(x, (0, 1, 0, 1))).flatten(1).sum(1) + torch.erf(x).flatten(1).sum(1),
        conv=nn.Conv2d(8, 8, 3, stride=2),
    )
    assert "x" not in coded(placement)


def test_split_parts_share_the_codes_of_the_whole():
    def forward(net, x):
        left, right = net.one(x).chunk(2, 1)
        return net.two(left) + right

    _, placement = place(forward, one=nn.Conv2d(8, 8, 1), two=nn.Conv2d(4, 4, 1))
    group = next(group for group in placement.groups if "conv2d" in group.values)
    assert len(group.values) == 3
    assert group.roots == ("conv2d",)


def test_what_only_floats_read_stays_float():
    _, placement = place(lambda net, x: net.fc(torch.softmax(torch.sin(x), 1)), (2, 8), fc=nn.Linear(8, 8))
    assert coded(placement) == {"softmax"}
    assert [item.where for item in placement.frozen] == ["sin (Sin)", "softmax (Softmax)"] or len(placement.frozen) == 2


@pytest.mark.parametrize(
    ("forward", "layers", "reason"),
    [
        (lambda net, x: F.conv2d(x, torch.tanh(net.conv.weight)), {"conv": nn.Conv2d(8, 8, 1)}, "its weight or bias is computed, not stored"),
        (lambda net, x: net.conv(x) + net.conv.weight.sum(), {"conv": nn.Conv2d(8, 8, 1)}, "its weight is also used by"),
        (lambda net, x: net.conv(x), {"conv": nn.ConvTranspose2d(8, 8, 2)}, "no integer kernel for ConvTranspose"),
        (lambda net, x: net.conv(x), {"conv": nn.Conv2d(8, 8, 1, dtype=torch.float64)}, "is not float32"),
        (lambda net, x: net.conv(x) + 3.0, {"conv": nn.Conv2d(8, 8, 1)}, "Add with a number has no integer kernel"),
        (lambda net, x: torch.add(net.conv(x), x, alpha=2), {"conv": nn.Conv2d(8, 8, 1)}, "it multiplies the second value by 2 first"),
        (lambda net, x: net.conv(x) + net.shift, {"conv": nn.Conv2d(8, 8, 1), "shift": nn.Parameter(torch.ones(8, 1, 1))}, "Add reads a parameter"),
        (lambda net, x: F.adaptive_avg_pool2d(net.conv(x), 4), {"conv": nn.Conv2d(8, 8, 1)}, "its bins overlap"),
        (lambda net, x: net.conv(x).mean(1), {"conv": nn.Conv2d(8, 8, 1)}, "only the mean over height and width"),
        (lambda net, x: F.pad(net.conv(x), (1, 1), value=2.0), {"conv": nn.Conv2d(8, 8, 1)}, "it pads with a number other than 0"),
        (lambda net, x: F.avg_pool2d(net.conv(x), 2, divisor_override=3), {"conv": nn.Conv2d(8, 8, 1)}, "it divides by a number of its own"),
        (lambda net, x: torch.sin(net.conv(x)), {"conv": nn.Conv2d(8, 8, 1)}, "onnxruntime has no integer kernel for Sin"),
    ],
)  # fmt: skip
def test_what_cannot_run_on_codes_says_why(forward, layers, reason):
    double = any(parameter.dtype == torch.float64 for layer in layers.values() for parameter in getattr(layer, "parameters", list)())
    program = capture(Net(forward, **layers).eval(), torch.randn(2, 8, 6, 6, dtype=torch.float64 if double else torch.float32))
    placement = place_quantizers(program, SPEC)
    assert any(reason in item.reason for item in placement.frozen), placement.frozen


def test_a_residual_sum_in_front_of_a_layer_norm_stays_float_behind_linear_layers():
    """Linear layers hand out floats; the value that layers read has codes all the same."""

    def forward(net, x):
        y = net.norm(x)
        y = net.norm(y + net.down(torch.relu(net.up(y))))
        return net.head(y)

    layers = {"norm": nn.LayerNorm(8), "up": nn.Linear(8, 16), "down": nn.Linear(16, 8), "head": nn.Linear(8, 3)}
    program, placement = place(forward, (2, 5, 8), **layers)
    add = next(node.name for node in program.graph.nodes if "add" in node.op)
    assert add not in placement.integer
    assert "relu" in coded(placement) and not {add, "linear_1"} & coded(placement)
    assert [item.reason for item in placement.frozen if "(Add)" in item.where] == [
        "only float ops read it, so that codes would cost accuracy and save nothing"
    ]


def test_a_token_joined_to_coded_values_in_front_of_a_layer_norm_stays_float():
    """The codes of the patches are too coarse for a small token, and nothing reads the joined codes."""

    def forward(net, x, joined):
        tokens = net.patches(x).flatten(2).transpose(1, 2)
        return joined(torch.cat([net.token.expand(x.shape[0], -1, -1), tokens], 1))

    layers = {"patches": nn.Conv2d(8, 16, 2, 2), "token": nn.Parameter(torch.randn(1, 1, 16) / 50)}
    net = {**layers, "norm": nn.LayerNorm(16), "head": nn.Linear(16, 3)}
    _, placement = place(lambda net, x: forward(net, x, lambda y: net.head(net.norm(y))), **net)
    assert {"conv2d", "transpose"} <= coded(placement) and not {"expand", "cat"} & coded(placement)
    assert [item.reason for item in placement.frozen if "(Concat)" in item.where] == [
        "only float ops read it, so that codes would cost accuracy and save nothing"
    ]
    _, placement = place(lambda net, x: forward(net, x, net.head), **net)  # here a layer reads the codes
    assert {"expand", "cat"} <= coded(placement)


def test_sums_between_layers_and_behind_convolutions_keep_their_codes():
    def forward(net, x):
        y = net.conv(x)
        y = y + net.conv(torch.relu(y))
        return torch.nn.functional.gelu(y + net.conv(y))  # its convolution hands out codes, so that the sum may as well read them

    program, placement = place(forward, conv=nn.Conv2d(8, 8, 1))
    assert {node.name for node in program.graph.nodes if "add" in node.op} <= placement.integer


@pytest.mark.parametrize(("kernel", "integer"), [(3, False), (7, True)])
def test_a_first_layer_with_few_channels_runs_in_integers_where_its_kernel_is_large(kernel, integer):
    _, placement = place(lambda net, x: net.next(net.first(x)), (2, 3, 16, 16), first=nn.Conv2d(3, 8, kernel), next=nn.Conv2d(8, 8, 1))
    assert [layer.weight for layer in placement.layers] == (["first.weight", "next.weight"] if integer else ["next.weight"])


def test_groups_of_few_channels_stay_float_where_integers_are_slower():
    model = nn.Sequential(
        nn.Conv2d(4, 844, 1),
        nn.Conv2d(844, 844, 3, groups=211),  # a prime number, so that groups cannot be merged
        nn.Conv2d(844, 844, 3, groups=844),
        nn.Conv2d(844, 64, 1),
        nn.Conv2d(64, 64, 3, groups=16),
        nn.Conv2d(64, 8, 1),
    )
    x = torch.randn(4, 4, 12, 12)
    program = capture(model.eval(), x)
    onnxruntime, openvino = (place_quantizers(program, specs[target]).frozen for target in ("onnxruntime", "openvino"))
    assert ["has groups that read only 4 channels" in item.reason for item in onnxruntime] == [True]
    assert openvino == ()
