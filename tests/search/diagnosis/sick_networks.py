"""Small networks, each with one real defect of quantization, and a healthy one."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from gossamer.apply.engine import apply
from gossamer.numerics.affine import Quantizer
from gossamer.numerics.formats import PerTensor
from gossamer.numerics.ranges import choose_weight_quantizer
from gossamer.plan.edits import QuantizeValue, RoundWeight, ShiftBias
from gossamer.plan.plan import Plan
from gossamer.plan.quantization import plan_quantization
from gossamer.plan.scheme import Scheme
from gossamer.program.capture import capture
from gossamer.program.program import Program

CHANNELS = 16


class Net(nn.Module):
    """Convolution, depthwise convolution, pointwise convolution, linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, CHANNELS, 3, padding=1)
        self.depthwise = nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1, groups=CHANNELS)
        self.pointwise = nn.Conv2d(CHANNELS, CHANNELS, 1)
        self.fc = nn.Linear(CHANNELS, 6)

    def forward(self, x: Tensor) -> Tensor:
        for layer in (self.conv, self.depthwise, self.pointwise):
            x = layer(x).relu()
        return self.fc(x.mean((2, 3)))


def healthy() -> Net:
    torch.manual_seed(0)
    return Net().eval()


def samples(number: int = 48) -> Tensor:
    return torch.randn(number, 4, 8, 8, generator=torch.Generator().manual_seed(1))


def rescaled(net: Net, layer: str, factors: Tensor) -> Net:
    """The same function with the channels of a layer's result `factors` times as large: what is behind it undoes that."""
    behind = {"conv": net.depthwise, "depthwise": net.pointwise}[layer]
    made = getattr(net, layer)
    with torch.no_grad():
        made.weight.mul_(factors.reshape(-1, 1, 1, 1))
        made.bias.mul_(factors)
        behind.weight.div_(factors.reshape(-1, 1, 1, 1) if behind is net.depthwise else factors.reshape(1, -1, 1, 1))
    return net


def outlier_channel() -> Net:
    """One channel of the first convolution is 200 times as large as the others."""
    factors = torch.ones(CHANNELS)
    factors[5] = 200.0
    return rescaled(healthy(), "conv", factors)


def depthwise_spread() -> Net:
    """Channels of the depthwise convolution differ by up to 1000 times."""
    return rescaled(healthy(), "depthwise", torch.logspace(0, 3, CHANNELS))


def plan_of(program: Program, x: Tensor, **scheme: object) -> Plan:
    return plan_quantization(program, x, scheme=Scheme(**scheme))  # type: ignore[arg-type]


def with_range(plan: Plan, name: str, factor: float) -> Plan:
    """The plan with the scale of a value `factor` times as large."""

    def change(edit: object) -> object:
        if not isinstance(edit, QuantizeValue) or edit.value != name:
            return edit
        scale = torch.tensor(edit.quantizer.scale) * factor
        return replace(edit, quantizer=replace(edit.quantizer, scale=tuple(scale.tolist())))

    return replace(plan, edits=tuple(change(edit) for edit in plan.edits))  # type: ignore[arg-type]


def one_scale(plan: Plan, program: Program, name: str) -> Plan:
    """The plan with one scale for a whole weight, rounded to nearest."""
    weight = program.state[name].detach()
    per_axis = choose_weight_quantizer(weight, _format(plan, name), "min-max")
    quantizer = Quantizer(per_axis.format, PerTensor(), (max(per_axis.scale),), (0,))
    layer = name.removesuffix(".weight")
    kept = tuple(
        edit
        for edit in plan.edits
        if not (isinstance(edit, (QuantizeValue, RoundWeight)) and edit.value == name)
        and not (isinstance(edit, ShiftBias) and program.graph.by_name[edit.node].module == layer)
    )
    return replace(plan, edits=(*kept, QuantizeValue(name, quantizer)))


def _format(plan: Plan, name: str):
    return next(edit.quantizer.format for edit in plan.edits if isinstance(edit, QuantizeValue) and edit.value == name)


def big_bias() -> Net:
    """Biases that do not fit int32 at the scales that their weights need."""
    net = healthy()
    with torch.no_grad():
        net.pointwise.weight.mul_(1e-4)
        net.pointwise.bias.fill_(30.0)
    return net


def captured(net: nn.Module, x: Tensor) -> Program:
    return capture(net, x[:2])


def quantized(program: Program, plan: Plan) -> Program:
    return apply(program, plan)
