"""Real architectures for tests and benchmarks: timm and torchvision models with random weights."""

from __future__ import annotations

import torch
from torch import nn


def _declare_torchvision_ops() -> torch.library.Library:
    """The registry's torchvision is built for CUDA: with a CPU torch its ops must be declared before the import."""
    library = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    return library


_LIBRARY = None


def timm_model(name: str, **options: object) -> tuple[nn.Module, tuple[int, ...]]:
    """A timm model and the shape of one input."""
    _prepare()
    import timm

    model = timm.create_model(name, **options).eval()
    return model, tuple(model.default_cfg["input_size"])


def torchvision_model(name: str, **options: object) -> tuple[nn.Module, tuple[int, ...]]:
    """A torchvision classifier and the shape of one input."""
    _prepare()
    import torchvision

    return torchvision.models.get_model(name, weights=None, **options).eval(), (3, 224, 224)


def _prepare() -> None:
    global _LIBRARY
    if _LIBRARY is None and not hasattr(torch.ops.torchvision, "nms"):
        _LIBRARY = _declare_torchvision_ops()
