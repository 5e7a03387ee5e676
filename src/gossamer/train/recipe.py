"""The settings of a training run as frozen data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

from torch import Tensor

from gossamer.errors import ConfigError
from gossamer.train.penalty import Penalty

Loss = Callable[[Tensor, Tensor], Tensor]
_OPTIMIZERS = ("sgd", "adamw")
_PRECISIONS = ("no", "bf16", "fp16")


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """How to train. The defaults fine-tune a compressed network for a few epochs.

    learning_rate      highest rate; 0.01 suits "sgd", about 0.001 "adamw"
    optimizer          "sgd" (Nesterov momentum; Sutskever et al. 2013) or "adamw" (Loshchilov and Hutter 2019, arXiv:1711.05101)
    momentum           of "sgd"
    weight_decay       on weights of two and more axes only, not on biases and norms
    warmup             share of all updates during which the rate rises
    max_gradient_norm  gradients are scaled down to this norm
    batch_size         for arrays and Datasets; a loader has its own
    alpha              share of the teacher in the loss: (1 - alpha) * loss + alpha * T^2 * KL
    temperature        T of the distillation
    loss               function (outputs, target) -> scalar; None is cross-entropy on class numbers
    penalty            presses whole units towards zero: GroupLasso(...) or GrowingPenalty(plan), see train.penalty
    mixed_precision    "no", "bf16", or "fp16" (GPU only)
    quantizer_learning_rate  highest rate of the scales and zero points of a quantized network, about what a scale may change by in one
                       update, as a share: 0.01 suits 3 and 4 bits, less more bits; None leaves them as planned. See train.qat
    freeze_batch_norm_after  share of all updates after which batch norms use the statistics they have and keep them; 1 for never
    feature_weight     share of the teacher's intermediate values: the loss gains feature_weight * mean over `features` of their
                       squared error, divided by the teacher's mean square
    features           modules or values of the network whose results are compared, such as ("layer1", "layer2")

    Raises: ConfigError for a setting outside its rule.
    """

    learning_rate: float = 0.01
    optimizer: str = "sgd"
    momentum: float = 0.9
    weight_decay: float = 5e-4
    warmup: float = 0.05
    max_gradient_norm: float = 5.0
    batch_size: int = 64
    alpha: float = 0.8
    temperature: float = 4.0
    loss: Loss | None = None
    penalty: Penalty | None = None
    mixed_precision: str = "no"
    quantizer_learning_rate: float | None = None
    freeze_batch_norm_after: float = 1.0
    feature_weight: float = 0.0
    features: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("learning_rate", "max_gradient_norm", "temperature"):
            _check(name, getattr(self, name), lambda value: 0 < value < float("inf"), "a positive number")
        _check("momentum", self.momentum, lambda value: 0 <= value < 1, "a number in [0, 1)")
        _check("weight_decay", self.weight_decay, lambda value: 0 <= value < float("inf"), "0 or a positive number")
        _check("warmup", self.warmup, lambda value: 0 <= value < 1, "a share in [0, 1)")
        _check("alpha", self.alpha, lambda value: 0 <= value <= 1, "a share in [0, 1]")
        _check("freeze_batch_norm_after", self.freeze_batch_norm_after, lambda value: 0 <= value <= 1, "a share in [0, 1]")
        _check("feature_weight", self.feature_weight, lambda value: 0 <= value < float("inf"), "0 or a positive number")
        if self.quantizer_learning_rate is not None:
            _check("quantizer_learning_rate", self.quantizer_learning_rate, lambda value: 0 < value < float("inf"), "a positive number")
        self._check_choices()

    def _check_choices(self) -> None:
        if isinstance(self.batch_size, bool) or not isinstance(self.batch_size, int) or self.batch_size < 1:
            raise ConfigError("Recipe.batch_size", self.batch_size, "a whole number, at least 1")
        if self.optimizer not in _OPTIMIZERS:
            raise ConfigError("Recipe.optimizer", self.optimizer, f"one of {', '.join(_OPTIMIZERS)}")
        if self.mixed_precision not in _PRECISIONS:
            raise ConfigError("Recipe.mixed_precision", self.mixed_precision, f"one of {', '.join(_PRECISIONS)}")
        if self.penalty is not None and not (hasattr(self.penalty, "on") and hasattr(self.penalty, "to_json")):
            raise ConfigError("Recipe.penalty", self.penalty, "a penalty such as GroupLasso() or GrowingPenalty(plan), or None")
        if self.mixed_precision == "fp16" and self.quantizer_learning_rate is not None:
            raise ConfigError("Recipe.mixed_precision", "fp16", "'no' or 'bf16' where quantizers learn")
        if self.loss is not None and not callable(self.loss):
            raise ConfigError("Recipe.loss", self.loss, "a function (outputs, target) -> scalar, or None")
        if not isinstance(self.features, tuple) or not all(isinstance(name, str) for name in self.features):
            raise ConfigError("Recipe.features", self.features, "a tuple of names of modules or values")
        if bool(self.features) != (self.feature_weight > 0):
            raise ConfigError("Recipe.feature_weight", self.feature_weight, "positive together with features, 0 without them")

    def to_json(self) -> dict[str, Any]:
        """Plain data for JSON; a loss function goes by its name, a penalty by its settings."""
        plain = {field.name: getattr(self, field.name) for field in fields(self)} | {"features": list(self.features)}
        if self.loss is not None:
            kind = self.loss if hasattr(self.loss, "__qualname__") else type(self.loss)
            plain["loss"] = f"{kind.__module__}.{kind.__qualname__}"
        if self.penalty is not None:
            plain["penalty"] = self.penalty.to_json()
        return plain


def _check(name: str, value: object, holds: Callable[[float], bool], rule: str) -> None:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or not holds(value):  # type: ignore[arg-type]
        raise ConfigError(f"Recipe.{name}", value, rule)
