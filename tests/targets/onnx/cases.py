"""One small network per ONNX lowering, and what the tests share to compare it with torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Inputs = tuple[tuple[int, ...], ...]


class Lambda(nn.Module):
    """A function as a network, with parameters of its own where it takes some."""

    def __init__(self, function: Callable[..., Tensor], *parameters: tuple[int, ...]) -> None:
        super().__init__()
        self.function = function
        generator = torch.Generator().manual_seed(1)
        self.weights = nn.ParameterList([nn.Parameter(torch.randn(shape, generator=generator)) for shape in parameters])

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.function(*inputs, *self.weights)


class Picked(nn.Module):
    """A recurrent layer reduced to its sequence or to its first last state."""

    def __init__(self, layer: nn.Module, which: int = 0, swap: bool = False) -> None:
        super().__init__()
        self.layer, self.which, self.swap = layer, which, swap

    def forward(self, x: Tensor) -> Tensor:
        result = self.layer(x.transpose(0, 1) if self.swap else x)
        state = result[1][0] if isinstance(result[1], tuple) else result[1]
        return state.transpose(0, 1) if self.which else result[0].transpose(0, 1) if self.swap else result[0]


IMAGE: Inputs = ((3, 8, 8),)
TOKENS: Inputs = ((6, 8),)
VECTOR: Inputs = ((8,),)
PAIR: Inputs = ((6, 8), (6, 8))
HEADS: Inputs = ((4, 6, 8), (4, 5, 8), (4, 5, 8))

# name -> (network, shapes of its inputs without the batch axis)
MODULES: dict[str, tuple[nn.Module, Inputs]] = {
    "conv1d": (nn.Conv1d(6, 4, 3, stride=2, padding=1), TOKENS),
    "conv2d": (nn.Conv2d(3, 6, (3, 5), stride=(2, 1), padding=(1, 2), dilation=(1, 2)), ((3, 12, 12),)),
    "conv2d grouped": (nn.Conv2d(6, 8, 3, groups=2, bias=False), ((6, 8, 8),)),
    "conv2d depthwise": (nn.Conv2d(6, 6, 3, groups=6, padding=1), ((6, 8, 8),)),
    "conv2d same": (nn.Conv2d(3, 6, (3, 5), dilation=2, padding="same"), IMAGE),
    "conv2d valid": (nn.Conv2d(3, 6, 4, padding="valid"), IMAGE),
    "conv3d": (nn.Conv3d(2, 3, 3, padding=1), ((2, 4, 5, 6),)),
    "conv_transpose1d": (nn.ConvTranspose1d(6, 4, 3, stride=2), TOKENS),
    "conv_transpose2d": (nn.ConvTranspose2d(6, 4, 3, stride=2, padding=1, output_padding=1, groups=2), ((6, 5, 5),)),
    "linear": (nn.Linear(8, 5), VECTOR),
    "linear 3d": (nn.Linear(8, 5), TOKENS),
    "linear no bias": (nn.Linear(8, 5, bias=False), TOKENS),
    "bilinear weights": (Lambda(lambda x, w, v: F.linear(x, w @ v), (5, 7), (7, 8)), TOKENS),
    "batch_norm": (nn.Sequential(nn.ReLU(), nn.BatchNorm2d(3)), IMAGE),
    "batch_norm 1d": (nn.Sequential(nn.ReLU(), nn.BatchNorm1d(8)), VECTOR),
    "batch_norm of the batch": (nn.BatchNorm2d(3, track_running_stats=False), IMAGE),
    "layer_norm": (nn.LayerNorm(8), TOKENS),
    "layer_norm 2 axes": (nn.LayerNorm((6, 8), elementwise_affine=False), TOKENS),
    "group_norm": (nn.GroupNorm(2, 6), ((6, 5, 5),)),
    "group_norm 1": (nn.GroupNorm(1, 6, affine=False), TOKENS),
    "instance_norm": (nn.InstanceNorm2d(3, affine=True), IMAGE),
    "instance_norm running": (nn.InstanceNorm2d(3, track_running_stats=True), IMAGE),
    "rms_norm": (nn.RMSNorm(8), TOKENS),
    "max_pool": (nn.MaxPool2d(3, 2, 1), IMAGE),
    "max_pool ceil": (nn.MaxPool2d(3, 2, ceil_mode=True), IMAGE),
    "max_pool dilated": (nn.MaxPool2d(2, 1, dilation=2), IMAGE),
    "max_pool1d": (nn.MaxPool1d(3), TOKENS),
    "avg_pool": (nn.AvgPool2d(3, 2, 1), IMAGE),
    "avg_pool ceil": (nn.AvgPool2d(3, 2, 1, ceil_mode=True), IMAGE),
    "avg_pool uncounted": (nn.AvgPool2d(3, 2, 1, ceil_mode=True, count_include_pad=False), ((3, 9, 9),)),
    "avg_pool ceil counted": (nn.AvgPool2d(3, 2, 1, ceil_mode=True), ((3, 7, 10),)),
    "avg_pool divisor": (nn.AvgPool2d(2, divisor_override=3), IMAGE),
    "avg_pool1d": (nn.AvgPool1d(2), TOKENS),
    "adaptive_avg_pool 1": (nn.AdaptiveAvgPool2d(1), IMAGE),
    "adaptive_avg_pool 4": (nn.AdaptiveAvgPool2d((4, 2)), IMAGE),
    "adaptive_avg_pool 3": (nn.AdaptiveAvgPool2d((3, 5)), IMAGE),
    "adaptive_avg_pool 1d": (nn.AdaptiveAvgPool1d(1), TOKENS),
    "adaptive_max_pool": (nn.AdaptiveMaxPool2d(4), IMAGE),
    "embedding": (nn.Sequential(Lambda(lambda x: (x.abs() * 3).long()), nn.Embedding(50, 4)), VECTOR),
    "prelu": (nn.PReLU(3, init=0.1), IMAGE),
    "prelu 1": (nn.PReLU(), VECTOR),
    "dropout": (nn.Sequential(nn.Dropout(), nn.Linear(8, 3), nn.Dropout(), nn.AlphaDropout()), VECTOR),
    "multi-head attention": (
        Lambda(
            lambda x, w, b, o: F.multi_head_attention_forward(
                x, x, x, 8, 2, w, b, None, None, False, 0.0, o, None, False, need_weights=False
            )[0],
            (24, 8),
            (24,),
            (8, 8),
        ),
        TOKENS,
    ),
    "weight_norm": (nn.utils.parametrizations.weight_norm(nn.Conv1d(6, 4, 3)), TOKENS),
    "lstm": (Picked(nn.LSTM(8, 5, num_layers=2, bidirectional=True, batch_first=True)), TOKENS),
    "lstm states": (Picked(nn.LSTM(8, 5, bias=False, batch_first=True), 1), TOKENS),
    "gru": (Picked(nn.GRU(8, 5, num_layers=2, batch_first=True)), TOKENS),
    "gru time first": (Picked(nn.GRU(8, 5, bidirectional=True), swap=True), TOKENS),
    "rnn": (Picked(nn.RNN(8, 5, nonlinearity="relu", batch_first=True)), TOKENS),
    "rnn tanh": (Picked(nn.RNN(8, 5, batch_first=True)), TOKENS),
    "sdpa": (Lambda(lambda q, k, v: F.scaled_dot_product_attention(q, k, v)), HEADS),
    "sdpa causal": (Lambda(lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=0.3)), HEADS),
    "sdpa float mask": (Lambda(lambda q, k, v, m: F.scaled_dot_product_attention(q, k, v, attn_mask=m), (6, 5)), HEADS),
    "sdpa bool mask": (
        Lambda(lambda q, k, v: F.scaled_dot_product_attention(q, k, v, attn_mask=(q[..., :5] > 0) & (q[..., :1] > -0.5))),
        HEADS,
    ),
    "sdpa shared heads": (
        Lambda(lambda q, k, v: F.scaled_dot_product_attention(q, k, v, enable_gqa=True)),
        ((4, 6, 8), (2, 5, 8), (2, 5, 8)),
    ),
}


def _of_positive(function: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    return lambda x: function(x.abs() + 0.1)


def _write_into(x: Tensor, y: Tensor) -> Tensor:
    x = x.clone()
    x[:, :2] *= 0.5
    x[:, 3] = y[:, 0]
    x[..., 5:] = 2.0
    return x


def _whole(x: Tensor) -> Tensor:
    return (x * 10).to(torch.int64)


# one function of torch each; all take the inputs named in FUNCTIONS_OF
FUNCTIONS: dict[str, tuple[Callable[..., Any], Inputs]] = {
    **{name: (getattr(torch, name), TOKENS) for name in "relu sigmoid tanh exp abs neg erf sin cos floor ceil round sign tan atan square expm1".split()},
    **{name: (getattr(F, name), TOKENS) for name in "relu6 hardtanh mish selu silu hardswish hardsigmoid softplus softsign logsigmoid celu softshrink hardshrink glu leaky_relu elu gelu".split()},
    **{name: (_of_positive(getattr(torch, name)), TOKENS) for name in "log sqrt rsqrt reciprocal log1p log2".split()},
    "logit": (lambda x: torch.logit(x.sigmoid(), eps=0.1), TOKENS),
    "elu 0.5": (lambda x: F.elu(x, 0.5), TOKENS),
    "gelu tanh": (lambda x: F.gelu(x, approximate="tanh"), TOKENS),
    "softplus 2": (lambda x: F.softplus(x, beta=2), TOKENS),
    "threshold": (lambda x: F.threshold(x, 0.1, 0.3), TOKENS),
    "logical": (lambda x: (~((x > 0) & (x < 1) | (x >= 2) | (x <= -2)) ^ (x == 0)).logical_xor(x != 1).float(), TOKENS),
    "logical ops": (lambda x: torch.logical_not(torch.logical_or(torch.logical_and(x > 0, x < 1), x)).to(torch.int64), TOKENS),
    "arithmetic": (lambda x, y: 2 * x + y / 3 - 1 + (1 - x) * y + torch.rsub(x, y, alpha=2), PAIR),
    "alpha": (lambda x, y: torch.add(x, y, alpha=2) - torch.sub(x, y, alpha=0.5), PAIR),
    "add ints": (lambda x: (x > 0).long() + 1 + x, TOKENS),
    "div ints": (lambda x: (x * 10).long() / 4, TOKENS),
    "max min": (lambda x, y: torch.maximum(x, y) * torch.minimum(x, y) + torch.max(x, y), PAIR),
    "pow": (lambda x: x.abs() ** 1.5 + 2**x + x**2, TOKENS),
    "pow tensors": (lambda x, y: (x.abs() + 1) ** y, PAIR),
    "clamp": (lambda x: x.clamp(-0.5, 0.7) + x.clamp(min=0) + x.clamp(max=0.2) + torch.clamp_min(x, 0.1), TOKENS),
    "clamp tensors": (lambda x, y: torch.clamp(x, y, y + 1), PAIR),
    "where": (lambda x, y: torch.where(x > 0, x, y) + torch.where(x > y, x, 0.5), PAIR),
    "masked_fill": (lambda x: x.masked_fill(x > 0, -1.0), TOKENS),
    "isnan": (lambda x: (x.isnan() | x.isinf() | (x.abs() < 1)).float(), TOKENS),
    "addcmul": (lambda x, y: torch.addcmul(x, x, y, value=0.3) + torch.addcdiv(x, x, y.abs() + 1), PAIR),
    "lerp": (lambda x, y: torch.lerp(x, y, 0.3) + torch.lerp(x, y, x.sigmoid()), PAIR),
    "rounding": (
        lambda x: torch.floor_divide(x, 0.3) + torch.div(x, 0.7, rounding_mode="trunc") + x % 0.4 + torch.fmod(x, 0.4), TOKENS
    ),
    "rounding ints": (lambda x: _whole(x) // 3 + torch.div(_whole(x), 3, rounding_mode="trunc") + _whole(x) % 5 + _whole(x) % -5, TOKENS),
    "matmul": (lambda x, y: x @ y.transpose(-1, -2), PAIR),
    "bmm": (lambda x, y: torch.bmm(x, y.transpose(1, 2)), PAIR),
    "baddbmm": (lambda x, y: torch.baddbmm(x, y, x.transpose(1, 2) @ x, beta=0.5, alpha=2), PAIR),
    "einsum": (lambda x, y: torch.einsum("bik,bjk->bij", x, y), PAIR),
    "softmax": (lambda x: x.softmax(-1) + F.log_softmax(x, 1), TOKENS),
    "mean": (lambda x: x.mean(1) + x.mean((1,), keepdim=True).squeeze(1), TOKENS),
    "mean of an image": (lambda x: x.mean((2, 3)), IMAGE),
    "mean of an image kept": (lambda x: x.mean((-1, -2), keepdim=True), IMAGE),
    "reductions": (lambda x: x.sum(-1) + x.amax(1, keepdim=True).mean(-1) + x.amin((-1,)) + x.prod(-1), TOKENS),
    "max with positions": (lambda x: x.max(1)[0] + x.min(1)[0] + x.max(1)[1], TOKENS),
    "sum of all": (lambda x: x + x[:, :1].sum() * 0 + (x > 0).sum(1, keepdim=True), TOKENS),
    "argmax": (lambda x: x.argmax(-1) + x.argmin(1, keepdim=True).sum(-1), TOKENS),
    "any": (lambda x: ((x > 1).any(-1) | (x > -1).all(1).any(-1, keepdim=True)).float(), TOKENS),
    "logsumexp": (lambda x: x.logsumexp(-1), TOKENS),
    "cumsum": (lambda x: x.cumsum(1), TOKENS),
    "one_hot": (lambda x: F.one_hot(x.argmax(-1), 8).float() - x, TOKENS),
    "meshgrid": (lambda x: x[:, :1] + sum(torch.meshgrid(x[0, 0], x[0, 1], indexing="ij")), TOKENS),
    "variance": (lambda x: x.var(-1) + x.std(-1, unbiased=False) + torch.var_mean(x, -1)[1], TOKENS),
    "norms": (lambda x: x.norm(dim=-1) + torch.linalg.vector_norm(x, 1, -1) + torch.linalg.vector_norm(x, float("inf"), -1), TOKENS),
    "norm 3": (lambda x: F.normalize(x, p=3, dim=1), TOKENS),
    "topk": (lambda x: x.topk(3, 1)[0] + x.topk(3, 1, largest=False)[1], TOKENS),
    "shapes": (lambda x: x.view(x.shape[0], 2, 3, 8).flatten(1, 2).unflatten(2, (2, 4)).unsqueeze(1).squeeze(1).flatten(1), TOKENS),
    "shape of the batch": (lambda x: x.reshape(-1, 2, 8).reshape(x.shape[0], -1, 4).reshape_as(x[:, :, :].reshape(x.shape[0], 12, 4)), TOKENS),
    "windows of the batch": (lambda x: x.view(x.shape[0], 3, 2, 4, 2, 4).permute(0, 2, 4, 1, 3, 5).reshape(-1, 3, 4, 4).mean(1), IMAGE),
    "expand": (lambda x: x[:, :1].expand(-1, 4, -1) + x[:, :4] + x[:, :1].expand_as(x[:, 2:]), TOKENS),
    "transpose": (lambda x: x.permute(0, 2, 3, 1).transpose(1, 2).swapaxes(1, 2).transpose(1, 2).movedim(1, -1).movedim((1, 2), (2, 1)), IMAGE),
    "t": (lambda x: F.linear(x, torch.ones(8, 5).t()), VECTOR),
    "cat": (lambda x, y: torch.cat([x, y, x], 1), PAIR),
    "stack": (lambda x, y: torch.stack([x, y], 1) + torch.stack([y, x], -1).movedim(-1, 1), PAIR),
    "split": (lambda x: x.split(4, 1)[0] + x.split([2, 4], 1)[1] + x.chunk(2, -1)[0].repeat(1, 1, 2)[:, :4], TOKENS),
    "tensor_split": (lambda x: x.tensor_split((2, 4), 1)[1] + x.tensor_split(3, 1)[2], TOKENS),
    "unbind": (lambda x: x.unbind(1)[0] + x.unbind(1)[-1], TOKENS),
    "slice": (lambda x: x[:, 1:5:2] + x[:, -2:] + x.narrow(1, 2, 2) + x[:, 3:5, :], TOKENS),
    "slice steps": (lambda x: x[:, ::2, 1:7:3] + x[:, :3, 0, None], TOKENS),
    "select": (lambda x: x[:, 0] + x.select(1, -1), TOKENS),
    "index_select": (lambda x: x.index_select(1, torch.tensor([0, 2, 2])), TOKENS),
    "index": (lambda x: x[:, torch.tensor([[0, 2], [1, -1]])], TOKENS),
    "index pairs": (lambda x: x[:, torch.tensor([0, 2]), torch.tensor([1, 3])], IMAGE),
    "index pairs apart": (lambda x: x[:, torch.tensor([0, 2]), :, torch.tensor([1, 3])], IMAGE),
    "index broadcast": (lambda x: x[:, torch.tensor([[0], [2]]), torch.tensor([1, 3, 5])], IMAGE),
    "gather": (lambda x: x.gather(1, (x > 0).long()), TOKENS),
    "roll": (lambda x: x.roll((1, -2), (1, 2)) + x.roll(3, 1), IMAGE),
    "insert in all samples": (_write_into, PAIR),
    "insert": (lambda x, y: torch.slice_scatter(x, y[:, 1:4], 1, 2, 5) + torch.select_scatter(x, y[..., 0], -1, -2), PAIR),
    "copy": (lambda x, y: torch.ops.aten.copy.default(x, y[:, :1]) + torch.ops.aten.fill.Scalar(x, 2) + torch.ops.aten.zero.default(y), PAIR),
    "diff": (lambda x: x.diff(dim=1, prepend=x[:, :1]) + x.diff(n=2, append=x[..., :2]), TOKENS),
    "flip": (lambda x: x.flip((1, 2)), TOKENS),
    "pad": (lambda x: F.pad(x, (1, 2, 0, 1), value=0.5) + F.pad(x, (1, 2, 0, 1), mode="reflect"), IMAGE),
    "pad modes": (lambda x: F.pad(x, (1, 2, 3, 1), mode="replicate") + F.pad(x, (1, 2, 3, 1), mode="circular"), IMAGE),
    "crop": (lambda x: F.pad(x, (-1, 2)), TOKENS),
    "repeat": (lambda x: x.repeat(1, 2, 1) + x.tile((2, 1)) + x.repeat_interleave(2, 1), TOKENS),
    "repeat wider": (lambda x: x.unsqueeze(0).repeat(2, 1, 1, 1).sum(0), TOKENS),
    "pixel_shuffle": (lambda x: F.pixel_shuffle(x, 2), ((8, 3, 4),)),
    "pixel_unshuffle": (lambda x: F.pixel_unshuffle(x, 2), IMAGE),
    "channel_shuffle": (lambda x: F.channel_shuffle(x, 2), ((6, 2, 3),)),
    "im2col": (lambda x: F.unfold(x, 3, padding=1, stride=2), IMAGE),
    "col2im": (lambda x: F.fold(x, (4, 4), 2, stride=2), ((8, 4),)),
    "unfold": (lambda x: x.unfold(1, 3, 2) + x.unfold(1, 2, 2)[:, :2, :, :1], TOKENS),
    "triangles": (lambda x: x.triu(1) + x.tril(), TOKENS),
    "grid_sample": (lambda x: F.grid_sample(x, x[:, :2].permute(0, 2, 3, 1).tanh(), align_corners=False), IMAGE),
    "grid_sample border": (lambda x: F.grid_sample(x, x[:, :2].permute(0, 2, 3, 1), padding_mode="border", align_corners=True), IMAGE),
    "nearest": (lambda x: F.interpolate(x, scale_factor=2) + F.interpolate(x, size=(16, 16)), IMAGE),
    "nearest down": (lambda x: F.interpolate(x, size=(5, 11)) + F.interpolate(x, size=(5, 11), mode="nearest-exact"), IMAGE),
    "bilinear": (lambda x: F.interpolate(x, size=(5, 11), mode="bilinear"), IMAGE),
    "bilinear factor": (lambda x: F.interpolate(x, scale_factor=1.7, mode="bilinear"), IMAGE),
    "bilinear aligned": (lambda x: F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=True), IMAGE),
    "bicubic": (lambda x: F.interpolate(x, size=(13, 11), mode="bicubic"), IMAGE),
    "bilinear antialiased": (lambda x: F.interpolate(x, size=(5, 11), mode="bilinear", antialias=True), IMAGE),
    "bicubic antialiased": (lambda x: F.interpolate(x, scale_factor=(0.6, 1.3), mode="bicubic", antialias=True), IMAGE),
    "bicubic aligned": (lambda x: F.interpolate(x, size=(5, 11), mode="bicubic", antialias=True, align_corners=True), IMAGE),
    "bicubic factor": (lambda x: F.interpolate(x, scale_factor=0.7, mode="bicubic"), IMAGE),
    "trilinear": (lambda x: F.interpolate(x, scale_factor=2, mode="trilinear"), ((2, 3, 4, 5),)),
    "nearest 3d": (lambda x: F.interpolate(x, scale_factor=2), ((2, 3, 4, 5),)),
    "linear 1d": (lambda x: F.interpolate(x, size=11, mode="linear"), TOKENS),
    "factories": (lambda x: x + torch.arange(8) + torch.arange(1, 17, 2) + torch.zeros(8) + x.new_ones(8) + torch.ones_like(x) + torch.eye(8)[:6], TOKENS),
    "factories of the batch": (lambda x: x + torch.full((x.shape[0], 6, 1), 0.5) + torch.linspace(0, 1, 8) + torch.arange(x.shape[0])[:, None, None], TOKENS),
    "size as a number": (lambda x: x * x.shape[0] + x.shape[1], TOKENS),
    "casts": (lambda x: x.double().to(torch.float32) + x.to(torch.int32).type_as(x), TOKENS),
}  # fmt: skip


CASES: dict[str, tuple[nn.Module, Inputs]] = MODULES | {name: (Lambda(function), inputs) for name, (function, inputs) in FUNCTIONS.items()}


def inputs_of(shapes: Inputs, batch: int, seed: int = 0) -> tuple[Tensor, ...]:
    """Random inputs of these shapes with a batch axis in front."""
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(batch, *shape, generator=generator) for shape in shapes)
