"""Loss functions: pure functions of outputs, teacher's outputs and targets."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from gossamer.batches import check_labels
from gossamer.errors import DataError


def cross_entropy(outputs: Tensor, target: Tensor | None) -> Tensor:
    """Mean cross-entropy of class scores against class numbers.

    Shapes: outputs (N, C), target (N,).
    Raises: DataError for a missing target, or a label that is no class of the network.
    """
    if outputs.dim() != 2:
        raise DataError(
            f"cross-entropy needs outputs of shape (batch, classes); the network gives {tuple(outputs.shape)}: pass Recipe(loss=...)."
        )
    return F.cross_entropy(outputs, check_labels(target, outputs.shape[1], "training"))


def distillation(outputs: Tensor, teacher_outputs: Tensor, temperature: float) -> Tensor:
    """T^2 * KL(softmax(teacher / T) || softmax(outputs / T)), so that its gradient keeps its size when T changes.

    Shapes: both (N, C, *); classes along axis 1; the mean is over all other positions.
    Raises: DataError when the shapes differ or there is no class axis.
    Source: Hinton et al. 2015, arXiv:1503.02531.
    """
    if outputs.shape != teacher_outputs.shape:
        raise DataError(
            f"the network gives {tuple(outputs.shape)} and its teacher {tuple(teacher_outputs.shape)}; "
            "distillation needs a teacher with outputs of the same shape."
        )
    if outputs.dim() < 2 or outputs.shape[1] < 2:
        raise DataError(
            f"distillation needs outputs of shape (batch, classes, ...) with at least 2 classes; the network gives {tuple(outputs.shape)}: "
            "train by a loss alone, Recipe(loss=..., alpha=0)."
        )
    student = F.log_softmax(outputs / temperature, dim=1)
    teacher = F.log_softmax(teacher_outputs / temperature, dim=1)
    divergence = F.kl_div(student, teacher, reduction="sum", log_target=True)
    return divergence * (temperature**2 * outputs.shape[1] / outputs.numel())
