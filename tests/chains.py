"""Random networks with random formats, each from one number: chains of layers that branch, join and pool, on small images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random

import torch
import torch.nn.functional as F
from torch import Tensor, nn

INTEGERS = ("int2", "int3", "int4", "int5", "int6", "int7", "int8")
OTHERS = ("float", "fp16", "bf16", "fp8_e4m3", "fp8_e5m2")
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "relu6": F.relu6,
    "hardswish": F.hardswish,
    "hardtanh": lambda x: F.hardtanh(x, -0.7, 1.3),
    "leaky_relu": lambda x: F.leaky_relu(x, 0.1),
    "sigmoid": torch.sigmoid,
    "silu": F.silu,
    "gelu": F.gelu,
    "tanh": torch.tanh,
}


@dataclass
class Chain:
    """Steps of one network; each makes a value from earlier ones. `shapes`: (C, H, W) of each value."""

    random: Random
    shapes: list[tuple[int, int, int]]
    steps: list[tuple[str, tuple[int, ...], nn.Module | None, object]] = field(default_factory=list)

    def add(
        self, kind: str, sources: tuple[int, ...], shape: tuple[int, int, int], module: nn.Module | None = None, extra: object = None
    ) -> int:
        self.steps.append((kind, sources, module, extra))
        self.shapes.append(shape)
        return len(self.shapes) - 1


class ChainNetwork(nn.Module):
    """Runs the steps; the head is a linear layer over the last value."""

    def __init__(self, chain: Chain, head: str, classes: int) -> None:
        super().__init__()
        self.chain = chain
        self.layers = nn.ModuleDict({str(place): step[2] for place, step in enumerate(chain.steps) if step[2] is not None})
        channels, height, width = chain.shapes[-1]
        self.head_kind = head
        self.head = nn.Linear(channels * height * width if head == "flatten" else channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        values = [x]
        for place, (kind, sources, module, extra) in enumerate(self.chain.steps):
            values.append(
                _run(kind, [values[source] for source in sources], self.layers[str(place)] if module is not None else None, extra)
            )
        last = values[-1]
        if self.head_kind == "flatten":
            return self.head(last.flatten(1))
        if self.head_kind == "tokens":
            return self.head(last.flatten(2).transpose(1, 2)).mean(1)
        return self.head(last.mean((2, 3)) if self.head_kind == "mean" else F.adaptive_avg_pool2d(last, 1).flatten(1))


def _run(kind: str, values: list[Tensor], module: nn.Module | None, extra: object) -> Tensor:
    x = values[0]
    if module is not None:
        return module(x)
    match kind:
        case "add":
            return x + values[1]
        case "mul":
            return x * values[1]
        case "concat":
            return torch.cat(values, 1)
        case "max pool":
            return F.max_pool2d(x, *extra)
        case "average pool":
            return F.avg_pool2d(x, *extra)
        case "upsample":
            return F.interpolate(x, scale_factor=2, mode="nearest")
        case "pad":
            return F.pad(x, extra)
        case "slice":
            return x[:, :extra]
        case _:
            return ACTIVATIONS[kind](x)


def random_network(seed: int, *, more: bool = False) -> tuple[nn.Module, tuple[int, int, int]]:
    """A network in eval mode with statistics of its own, and the shape of one input.

    more  with transposed convolutions of every geometry and with PReLUs; the same number is another network then
    """
    random = Random(seed)
    torch.manual_seed(seed)
    shape = (random.choice([1, 3, 4, 8]), random.choice([5, 8, 9]), random.choice([6, 8, 11]))
    chain = Chain(random, [shape])
    _conv(chain, 0)
    kinds = [_conv, _conv, _conv, _depthwise, _activation, _activation, _join, _join, _pool, _other, _transposed]
    kinds += [_grown, _grown, _sloped] if more else []
    for _ in range(random.randint(2, 7)):
        random.choice(kinds)(chain, len(chain.shapes) - 1)
    net = ChainNetwork(chain, random.choice(["mean", "adaptive", "flatten", "tokens"]), random.choice([2, 5, 10])).eval()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=0.2)
            nn.init.uniform_(module.running_var, 0.3, 2)
            nn.init.uniform_(module.weight, 0.3, 2)
            nn.init.normal_(module.bias, std=0.3)
    return net, shape


def random_formats(seed: int, layers: list[str]) -> tuple[str, str, dict[str, str]]:
    """The formats of all weights and values, and rules for some layers."""
    random = Random(seed + 1)
    weights = random.choice([*INTEGERS, "int8", "int8", "int4"])
    chosen = [name for name in layers if random.random() < 0.4]
    rules = {name: random.choice(INTEGERS + OTHERS) for name in chosen}
    if len(rules) == len(layers) and not set(rules.values()) & set(INTEGERS):
        rules = {}
    return weights, random.choice(["uint8", "uint8", "uint8", "uint7", "uint6", "uint5", "uint4", "uint3", "uint2"]), rules


def _conv(chain: Chain, source: int) -> None:
    random, (channels, height, width) = chain.random, chain.shapes[source]
    kernel = random.choice([k for k in (1, 1, 3, 3, 5) if k <= min(height, width)])
    stride = random.choice([1, 1, 2]) if min(height, width) > 3 else 1
    dilation = 2 if kernel == 3 and random.random() < 0.2 and min(height, width) >= 5 else 1
    groups = random.choice([g for g in (1, 1, 1, 2, 4) if channels % g == 0])
    out = random.choice([4, 8, 12, 16, 20]) // groups * groups
    pad = random.choice([0, dilation * (kernel - 1) // 2, dilation * (kernel - 1) // 2])
    sizes = [(size + 2 * pad - dilation * (kernel - 1) - 1) // stride + 1 for size in (height, width)]
    if min(sizes) < 1:
        return
    layer = nn.Conv2d(channels, out, kernel, stride, pad, dilation, groups, bias=random.random() < 0.6)
    nn.init.normal_(layer.weight, std=random.choice([0.05, 0.2, 0.6]))
    modules: list[nn.Module] = [layer]
    if random.random() < 0.5:
        modules.append(nn.BatchNorm2d(out))
    if random.random() < 0.6:
        modules.append(random.choice([nn.ReLU(), nn.ReLU6(), nn.Hardswish(), nn.SiLU()]))
    chain.add("conv", (source,), (out, *sizes), nn.Sequential(*modules))


def _depthwise(chain: Chain, source: int) -> None:
    random, (channels, height, width) = chain.random, chain.shapes[source]
    if min(height, width) < 3:
        return
    stride = random.choice([1, 2])
    layer = nn.Conv2d(channels, channels, 3, stride, 1, groups=channels, bias=random.random() < 0.5)
    modules: list[nn.Module] = [layer, nn.BatchNorm2d(channels), random.choice([nn.ReLU6(), nn.ReLU(), nn.Identity()])]
    chain.add("depthwise", (source,), (channels, (height - 1) // stride + 1, (width - 1) // stride + 1), nn.Sequential(*modules))


def _transposed(chain: Chain, source: int) -> None:
    channels, height, width = chain.shapes[source]
    if max(height, width) > 12:
        return
    out = chain.random.choice([4, 8])
    chain.add("transposed", (source,), (out, height * 2, width * 2), nn.ConvTranspose2d(channels, out, 2, 2))


def _grown(chain: Chain, source: int) -> None:
    """A transposed convolution of any geometry, without groups."""
    random, (channels, height, width) = chain.random, chain.shapes[source]
    kernel, stride, dilation = random.choice([1, 2, 3, 4]), random.choice([1, 2, 2, 3]), random.choice([1, 1, 2])
    pad, more = random.choice([0, 1]), random.randrange(max(stride, dilation))
    sizes = [(size - 1) * stride - 2 * pad + dilation * (kernel - 1) + more + 1 for size in (height, width)]
    if min(sizes) < 1 or max(sizes) > 24:
        return
    out = random.choice([4, 6])
    layer = nn.ConvTranspose2d(channels, out, kernel, stride, pad, more, bias=random.random() < 0.7, dilation=dilation)
    modules = [layer, *([nn.BatchNorm2d(out)] if random.random() < 0.5 else []), random.choice([nn.ReLU(), nn.ReLU6(), nn.Identity()])]
    chain.add("transposed", (source,), (out, *sizes), nn.Sequential(*modules))


def _sloped(chain: Chain, source: int) -> None:
    channels = chain.shapes[source][0]
    layer = nn.PReLU(chain.random.choice([1, channels]))
    nn.init.uniform_(layer.weight, -0.3, 1.2)
    chain.add("sloped", (source,), chain.shapes[source], layer)


def _activation(chain: Chain, source: int) -> None:
    chain.add(chain.random.choice(sorted(ACTIVATIONS)), (source,), chain.shapes[source])


def _join(chain: Chain, source: int) -> None:
    random, (channels, height, width) = chain.random, chain.shapes[source]
    same = [place for place, shape in enumerate(chain.shapes[:-1]) if shape == chain.shapes[source]]
    near = [place for place, shape in enumerate(chain.shapes) if shape[1:] == (height, width)]
    if same and random.random() < 0.6:
        chain.add(random.choice(["add", "add", "mul"]), (source, random.choice(same)), chain.shapes[source])
    else:
        others = random.sample(near, min(len(near), random.choice([1, 2])))
        chain.add("concat", (source, *others), (channels + sum(chain.shapes[place][0] for place in others), height, width))


def _pool(chain: Chain, source: int) -> None:
    random, (channels, height, width) = chain.random, chain.shapes[source]
    if min(height, width) < 3:
        return
    kernel, stride, pad = random.choice([(2, 2, 0), (3, 1, 1), (3, 2, 1), (2, 1, 0)])
    sizes = [(size + 2 * pad - kernel) // stride + 1 for size in (height, width)]
    chain.add(random.choice(["max pool", "average pool"]), (source,), (channels, *sizes), None, (kernel, stride, pad))


def _other(chain: Chain, source: int) -> None:
    random, (channels, height, width) = chain.random, chain.shapes[source]
    kind = random.choice(["upsample", "pad", "slice"])
    if kind == "upsample" and max(height, width) <= 8:
        chain.add(kind, (source,), (channels, 2 * height, 2 * width))
    elif kind == "pad":
        chain.add(kind, (source,), (channels, height + 1, width + 2), None, (1, 1, 0, 1))
    elif channels > 4:
        chain.add("slice", (source,), (channels // 2, height, width), None, channels // 2)
