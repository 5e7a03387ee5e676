"""Networks of kinds that model zoos for classification do not have: a U-Net, and classifiers of sequences."""

import torch
from torch import Tensor, nn


def _twice(inputs: int, outputs: int) -> nn.Sequential:
    layers = [nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]
    return nn.Sequential(*layers, nn.Conv2d(outputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU())


class UNet(nn.Module):
    """An image to an image of class scores, with skips from the way down to the way up.

    Source: Ronneberger, Fischer, Brox 2015, arXiv:1505.04597; differs: padded, batch norm.
    """

    def __init__(self, width: int = 16, classes: int = 4) -> None:
        super().__init__()
        widths = [width, 2 * width, 4 * width]
        self.down = nn.ModuleList(_twice(before, after) for before, after in zip([3, *widths], widths, strict=False))
        self.bottom = _twice(widths[-1], 2 * widths[-1])
        self.grow = nn.ModuleList(nn.ConvTranspose2d(2 * size, size, 2, stride=2) for size in reversed(widths))
        self.up = nn.ModuleList(_twice(2 * size, size) for size in reversed(widths))
        self.pool, self.head = nn.MaxPool2d(2), nn.Conv2d(width, classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        skips = []
        for block in self.down:
            x = block(x)
            skips.append(x)
            x = self.pool(x)
        x = self.bottom(x)
        for grow, block, skip in zip(self.grow, self.up, reversed(skips), strict=True):
            x = block(torch.cat([skip, grow(x)], dim=1))
        return self.head(x)


class LstmClassifier(nn.Module):
    """Two LSTM layers over a sequence of embedded samples; the last step decides."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.embed, self.recurrent = nn.Linear(12, width), nn.LSTM(width, width, num_layers=2, batch_first=True)
        self.hidden, self.head = nn.Linear(width, width), nn.Linear(width, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.hidden(self.recurrent(self.embed(x).relu())[0][:, -1]).relu())


class GruClassifier(nn.Module):
    """A GRU in both directions over a sequence; the mean over time decides."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.embed, self.recurrent = nn.Linear(12, width), nn.GRU(width, width, batch_first=True, bidirectional=True)
        self.hidden, self.head = nn.Linear(2 * width, width), nn.Linear(width, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.hidden(self.recurrent(self.embed(x).relu())[0].mean(1)).relu())


class TextEncoder(nn.Module):
    """The structure of BERT: three embeddings added, positions in a buffer, norms behind the sums, a pooled first token.

    Source: Devlin, Chang, Lee, Toutanova 2018, arXiv:1810.04805.
    """

    def __init__(self, width: int = 16, heads: int = 2) -> None:
        super().__init__()
        self.heads = heads
        self.words, self.places, self.kinds = nn.Embedding(20, width), nn.Embedding(12, width), nn.Embedding(2, width)
        self.register_buffer("position_ids", torch.arange(12).expand(1, -1), persistent=False)
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))
        self.wide, self.narrow = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(3))
        self.pooler, self.head = nn.Linear(width, width), nn.Linear(width, 3)

    def forward(self, ids: Tensor) -> Tensor:
        count = ids.shape[1]
        x = self.words(ids) + self.places(self.position_ids[:, :count]) + self.kinds(torch.zeros_like(ids))
        x = self.norms[0](x)
        q, k, v = (layer(x).view(*x.shape[:-1], self.heads, -1).transpose(1, 2) for layer in (self.query, self.key, self.value))
        mixed = nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(x.shape[0], count, -1)
        x = self.norms[1](x + self.out(mixed))
        x = self.norms[2](x + self.narrow(nn.functional.gelu(self.wide(x))))
        return self.head(self.pooler(x[:, 0]).tanh())


class Decoder(nn.Module):
    """The structure of Llama: four query heads share two keys and values, rotary positions, root mean square norms, gated MLP.

    Sources: Touvron et al. 2023, arXiv:2302.13971; Ainslie et al. 2023, arXiv:2305.13245 (grouped queries).
    """

    def __init__(self, width: int = 16, heads: int = 4, shared: int = 2) -> None:
        super().__init__()
        self.heads, self.shared, self.size = heads, shared, width // heads
        self.words = nn.Embedding(20, width)
        self.query, self.out = nn.Linear(width, width, bias=False), nn.Linear(width, width, bias=False)
        self.key, self.value = (nn.Linear(width, shared * self.size, bias=False) for _ in range(2))
        self.gate, self.up, self.down = nn.Linear(width, 32, bias=False), nn.Linear(width, 32, bias=False), nn.Linear(32, width, bias=False)
        self.scales = nn.ParameterList(nn.Parameter(torch.rand(width) + 0.5) for _ in range(3))
        self.head = nn.Linear(width, 20, bias=False)
        self.register_buffer("frequencies", 1.0 / 100 ** (torch.arange(0, self.size, 2) / self.size), persistent=False)

    def _norm(self, x: Tensor, scale: Tensor) -> Tensor:
        return scale * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6))

    def _turned(self, x: Tensor) -> Tensor:
        angles = torch.outer(torch.arange(x.shape[2]).float(), self.frequencies)
        angles = torch.cat([angles, angles], -1)
        half = x.shape[-1] // 2
        return x * angles.cos() + torch.cat([-x[..., half:], x[..., :half]], -1) * angles.sin()

    def _repeated(self, x: Tensor) -> Tensor:
        batch, shared, length, size = x.shape
        return x[:, :, None].expand(batch, shared, self.heads // shared, length, size).reshape(batch, self.heads, length, size)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.words(ids)
        y = self._norm(x, self.scales[0])
        q, k, v = (layer(y).view(*y.shape[:2], -1, self.size).transpose(1, 2) for layer in (self.query, self.key, self.value))
        k, v = self._repeated(self._turned(k)), self._repeated(v)
        scores = self._turned(q) @ k.transpose(2, 3) / self.size**0.5
        later = torch.full((ids.shape[1], ids.shape[1]), float("-inf")).triu(1)
        mixed = ((scores + later).softmax(-1) @ v).transpose(1, 2).reshape(*ids.shape, -1)
        x = x + self.out(mixed)
        y = self._norm(x, self.scales[1])
        x = x + self.down(nn.functional.silu(self.gate(y)) * self.up(y))
        return self.head(self._norm(x, self.scales[2]))
