"""Factors by which channels are scaled, so that what makes them and what reads them lose least when rounded."""

from __future__ import annotations

import torch
from torch import Tensor

_FLOOR = 2.0**-16  # ranges below this share of the largest count as this share: such channels hold next to nothing
LARGEST = 2.0**10  # factors stay within [1 / LARGEST, LARGEST]


def cross_layer_factors(made: Tensor, read: Tensor) -> Tensor:
    """Factors with which the ranges of weights that make a channel and of those that read it become equal: sqrt(read / made).

    Shapes: made, read (C,), largest |w| of each channel; (C,). 1 for channels that one side does not use.
    Source: Nagel et al. 2019, arXiv:1906.04721, section 4.1 (with the factor on the side of what makes the channel).
    """
    used = (made > 0) & (read > 0)
    factors = torch.sqrt(torch.where(used, read, 1.0) / torch.where(used, made, 1.0))
    return factors.clamp(1 / LARGEST, LARGEST)


def smoothing_factors(values: Tensor, weights: Tensor, alpha: float) -> Tensor:
    """Factors that move a share `alpha` of the spread of values into the weights that read them: max|W|^(1 - alpha) / max|X|^alpha.

    Shapes: values, weights (C,), the largest size of each channel; (C,). alpha 0 makes weights even, 1 values.
    Source: Xiao et al. 2022 (SmoothQuant), arXiv:2211.10438, equation 4 (there s_j = 1 / factor).
    """
    return (_floored(weights) ** (1 - alpha) / _floored(values) ** alpha).clamp(1 / LARGEST, LARGEST)


def aware_factors(values: Tensor, alpha: float) -> Tensor:
    """Factors that make weights larger where values are: 1 / mean|X|^alpha, with 1 in the middle of their range.

    Shapes: values (C,), the mean size of each channel; (C,). alpha 0 changes nothing.
    Source: Lin et al. 2023 (AWQ), arXiv:2306.00978, equation 5 (there s = 1 / factor), with its authors' normalisation.
    """
    scale = _floored(values) ** alpha
    scale = scale / torch.sqrt(scale.max() * scale.min())
    return (1 / scale).clamp(1 / LARGEST, LARGEST)


def even_channels(low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """Factor and shift of each channel with which all have the same range, so that one quantizer serves them like one for each.

    Shapes: low, high (C,); two of (C,). The common range has the mean width of the channels and their mean zero point.
    Source: Li et al. 2022 (RepQ-ViT), arXiv:2212.08254, equations 7 to 10.
    """
    width = high - low
    width = torch.maximum(width, width.max() * _FLOOR).clamp_min(torch.finfo(width.dtype).tiny)
    common = width.mean()
    zero = (-low / width).mean()
    factor = (common / width).clamp(1 / LARGEST, LARGEST)
    return factor, -zero * common - factor * low


def _floored(sizes: Tensor) -> Tensor:
    top = sizes.max()
    return sizes.clamp_min(float(top) * _FLOOR if top > 0 else 1.0)
