"""How good outputs are: per-sample metrics by name, any other as a callable. Higher is better everywhere."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from gossamer.batches import check_labels
from gossamer.errors import ConfigError, DataError
from gossamer.numerics.intervals import Interval, bootstrap, newcombe, wilson
from gossamer.registry import Registry

PerSample = Callable[[Tensor, Tensor], Tensor]  # outputs (N, classes), labels (N,) -> right or wrong (N,) bool
Metric = Callable[[Tensor, Tensor], float]  # outputs and targets of all samples -> share in [0, 1], or any score
Outputs = tuple[Tensor, Tensor, Tensor | None]  # of the original, of the compressed, targets; axis 0 is the sample

metrics: Registry[PerSample] = Registry("metric")


@dataclass(frozen=True, slots=True)
class Comparison:
    """Accuracy of the original and the compressed network on the same samples.

    drop_points is original - compressed in percentage points (100 times the difference of the metric).
    """

    original: float
    original_interval: Interval
    compressed: float
    compressed_interval: Interval
    drop_points: float
    drop_interval: Interval
    samples: int


@metrics.add("top1")
def top1(outputs: Tensor, labels: Tensor) -> Tensor:
    """Right where the label has the highest output; of equal outputs the first wins, as in argmax."""
    return _rank(outputs, labels) < 1


@metrics.add("top5")
def top5(outputs: Tensor, labels: Tensor) -> Tensor:
    """Right where the label is among the five highest outputs. Raises ConfigError with five classes or fewer."""
    if outputs.shape[1] <= 5:
        raise ConfigError("metric", "top5", f"one that can be wrong: the network has only {outputs.shape[1]} outputs; use 'top1'")
    return _rank(outputs, labels) < 5


def metric_name(metric: str | Metric) -> str:
    """The name that reports show. Raises ConfigError for an unknown name or what is no metric."""
    if isinstance(metric, str):
        return metrics.entry(metric).name
    if not callable(metric):
        raise ConfigError("metric", metric, f"a name ({', '.join(metrics.names())}) or a function (outputs, targets) -> float")
    return str(getattr(metric, "__name__", type(metric).__name__))


def compare_accuracy(metric: str | Metric, outputs: Iterable[Outputs], *, what: str, seed: int = 0) -> Comparison:
    """Measure both networks with one metric, batch by batch.

    A name gives Wilson intervals and Newcombe's paired interval of the drop; a callable gets all outputs and
    targets at once and gives bootstrap intervals (1000 draws from `seed`, paired for the drop).
    Raises: DataError for missing targets, labels out of range, outputs that are not finite or not (N, classes),
    or a callable that gives no finite number; ConfigError for an unknown name.
    """
    metric_name(metric)
    checked = (_check_finite(batch, what) for batch in outputs)
    if isinstance(metric, str):
        return _compare_per_sample(metrics[metric], checked, what)
    return _compare_callable(metric, checked, what, seed)


def _compare_per_sample(metric: PerSample, outputs: Iterable[Outputs], what: str) -> Comparison:
    both = only_first = only_second = neither = 0
    for before, after, target in outputs:
        first, second = (_right(metric, result, target, what) for result in (before, after))
        both += int((first & second).sum())
        only_first += int((first & ~second).sum())
        only_second += int((~first & second).sum())
        neither += int((~first & ~second).sum())
    samples = both + only_first + only_second + neither
    low, high = newcombe(both, only_first, only_second, neither)
    return Comparison(
        original=(both + only_first) / samples,
        original_interval=wilson(both + only_first, samples),
        compressed=(both + only_second) / samples,
        compressed_interval=wilson(both + only_second, samples),
        drop_points=100 * (only_first - only_second) / samples,  # from counts, so that 5 of 1000 is 0.5 to the bit
        drop_interval=(100 * low, 100 * high),
        samples=samples,
    )


def _compare_callable(metric: Metric, outputs: Iterable[Outputs], what: str, seed: int) -> Comparison:
    parts = list(outputs)
    target_parts = [target for _, _, target in parts if target is not None]
    if len(target_parts) != len(parts):
        raise DataError(f"the {what} data has no targets; give batches of (inputs, target).")
    before, after = torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts])
    targets = torch.cat(target_parts)

    def values(drawn: Tensor | slice) -> tuple[float, float, float]:
        first, second = (_number(metric(result[drawn], targets[drawn]), metric) for result in (before, after))
        return first, second, 100 * (first - second)

    original, compressed, drop_points = values(slice(None))
    if not (math.isfinite(original) and math.isfinite(compressed)):
        raise DataError(f"the metric {metric_name(metric)!r} gives {original} and {compressed} on the {what} data; it must be finite.")
    samples = len(targets)
    first, second, drop = bootstrap(values, samples, seed=seed)
    return Comparison(original, first, compressed, second, drop_points, drop, samples)


def _right(metric: PerSample, outputs: Tensor, target: Tensor | None, what: str) -> Tensor:
    if outputs.dim() != 2 or outputs.shape[1] < 2:
        raise DataError(
            f"the network's outputs have shape {tuple(outputs.shape)}, a named metric needs (batch, classes) with at least 2 classes; "
            "pass metric= a function (outputs, targets) -> float."
        )
    return metric(outputs, check_labels(target, outputs.shape[1], what))


def _check_finite(batch: Outputs, what: str) -> Outputs:
    for whose, result in zip(("original", "compressed"), batch, strict=False):
        if result is not None and not bool(torch.isfinite(result).all()):
            raise DataError(f"the {whose} network gives NaN or infinite outputs on the {what} data; its accuracy cannot be measured.")
    return batch


def _number(value: object, metric: Metric) -> float:
    if isinstance(value, Tensor) and value.numel() == 1:
        return float(value)
    try:
        return float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError) as error:
        raise DataError(f"the metric {metric_name(metric)!r} returns a {type(value).__name__}; it must return one number.") from error


def _rank(outputs: Tensor, labels: Tensor) -> Tensor:
    """How many classes come before the label: those with a higher output, and equal ones of a lower number."""
    own = outputs.gather(1, labels[:, None])
    position = torch.arange(outputs.shape[1], device=outputs.device)
    before = (outputs > own) | ((outputs == own) & (position < labels[:, None]))
    return before.sum(1)
