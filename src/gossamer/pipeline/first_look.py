"""What a run would stumble over after minutes of work is found before any: the runtime, the budget, the metric, all of the data."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from gossamer.batches import Batches, as_batches, check_labels
from gossamer.errors import DataError
from gossamer.pipeline.settings import Settings
from gossamer.pipeline.trial import Job, calibration, validation
from gossamer.plan.budget import Budget
from gossamer.program.shapes import infer_shapes, tensor_meta
from gossamer.progress import Progress
from gossamer.targets.coded_ends import open_artifact
from gossamer.targets.metrics import metric_name, metrics
from gossamer.targets.samples import checked_inputs
from gossamer.targets.verify import check_budget
from gossamer.train.randomness import seeded

CheckTarget = Callable[[Tensor | None], object]


def first_look(job: Job) -> None:
    """Open the original's file, and read each part of the data that the run will use, once.

    Raises: MissingRuntime, ConfigError and DataError, as the steps themselves would later.
    """
    settings = job.settings
    check_budget(settings.target, job.budget)
    open_artifact(job.original, threads=settings.threads)
    shape = _output_shape(job)
    _read(job, calibration(job.data), lambda target: None)
    _read(job, validation(job.data), _validation_check(job, shape))
    if job.data.train is not None and trains(job.budget, settings):
        _read(job, as_batches(job.data.train, what="training"), _training_check(settings, shape))


def trains(budget: Budget, settings: Settings) -> bool:
    """Whether a run may use its training data: without a budget it only quantizes."""
    return budget != Budget() or settings.qat.when == "always"


def _output_shape(job: Job) -> tuple[int, ...]:
    """Of one call with two samples; () for a network of several outputs."""
    outputs = job.program.graph.outputs
    return tuple(tensor_meta(infer_shapes(job.program, 2), outputs[0]).shape) if len(outputs) == 1 else ()


def _read(job: Job, batches: Batches, check: CheckTarget) -> None:
    """Look at every batch. The order of later epochs is as if nobody had looked."""
    total = len(batches)
    with seeded(job.settings.seed, 0, device=torch.device("cpu"), data=batches.source):
        for done, (inputs, target) in enumerate(batches):
            job.on_progress(Progress("check data", done, total, batches.what))
            checked_inputs(job.program, inputs, batches.what)
            check(target)
    job.on_progress(Progress("check data", total, total, batches.what))


def _validation_check(job: Job, shape: tuple[int, ...]) -> CheckTarget:
    metric_name(job.metric)
    if not isinstance(job.metric, str):
        return lambda target: _present(target, "validation")
    if len(shape) != 2 or shape[1] < 2:
        raise DataError(
            f"the network's outputs have shape {_shown(shape)}, the metric {job.metric!r} needs "
            "(batch, classes) with at least 2 classes; pass metric= (--metric) a function (outputs, targets) -> float."
        )
    metrics[job.metric](torch.zeros(1, shape[1]), torch.zeros(1, dtype=torch.long))  # some need more classes
    return lambda target: check_labels(target, shape[1], "validation")


def _training_check(settings: Settings, shape: tuple[int, ...]) -> CheckTarget:
    """Class numbers, unless the user's own loss says what targets are; or none, where the original alone can teach."""
    if settings.recipe is not None and settings.recipe.loss is not None:
        return lambda target: _present(target, "training")
    several = len(shape) > 1 and shape[1] > 1
    ways = ["pass Settings(recipe=Recipe(loss=..., alpha=0)) (--loss)"]
    ways += ["training data without targets (the original alone teaches then)"] if several else []
    way_out = f"{', '.join([*ways, 'or no training data (weights are refitted on calibration data then)'])}"

    def check(target: Tensor | None) -> None:
        if (target is None and not several) or (target is not None and len(shape) != 2):
            loss = "the original cannot teach by its class scores" if target is None else "cross-entropy cannot be the loss"
            raise DataError(f"the network's outputs have shape {_shown(shape)}, so that {loss}; {way_out}.")
        if target is None:
            return
        if target.is_floating_point() or target.dim() != 1:
            found = f"the training targets are {target.dtype} of shape {tuple(target.shape)}, no class numbers of shape (batch,)"
            raise DataError(f"{found}; {way_out}.")
        check_labels(target, shape[1], "training")

    return check


def _shown(shape: tuple[int, ...]) -> str:
    return f"(batch{''.join(f', {size}' for size in shape[1:])})"


def _present(target: Tensor | None, what: str) -> None:
    if target is None:
        raise DataError(f"the {what} data has no targets; give batches of (inputs, target).")
