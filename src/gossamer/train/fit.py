"""The training loop: one program in, a trained copy out."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gossamer.batches import Batch, Batches, as_batches
from gossamer.errors import ConfigError, DataError, TrainingError
from gossamer.program.masks import hold_zeros, masks_digest
from gossamer.program.ops import op_of
from gossamer.program.ops.kinds import BatchNorm
from gossamer.program.program import Program
from gossamer.program.shapes import infer_shapes, tensor_meta
from gossamer.progress import OnProgress, Progress, silent
from gossamer.train.checkpoint import Checkpoint, optimizer_tensors, weights_digest
from gossamer.train.features import Watcher, feature_error
from gossamer.train.losses import cross_entropy, distillation
from gossamer.train.norms import freeze_batch_norms
from gossamer.train.penalty import ActivePenalty
from gossamer.train.qat import LearnedQuantizers, weights_on_codes
from gossamer.train.randomness import seeded
from gossamer.train.recipe import Recipe
from gossamer.train.schedule import learning_rate_at

_DEFAULT = Recipe()


def fit(
    program: Program,
    train_data: Any,
    *,
    teacher: nn.Module | None = None,
    epochs: int = 2,
    recipe: Recipe = _DEFAULT,
    checkpoint: str | Path | None = None,
    seed: int = 0,
    on_progress: OnProgress = silent,
) -> Program:
    """Train a copy of a program; the argument and the caller's random state stay as they are.

    train_data  an iterable of (inputs, target) batches, a Dataset, or arrays (inputs, target); with a teacher,
                targets may be left out: then only the teacher teaches
    teacher     a module with outputs of the same shape, such as the program before compression
    checkpoint  a file written after each epoch. When it exists and belongs to the same run (network, teacher, recipe, epochs,
                number of batches, seed), training goes on from there, and ends with the same bits as without the interruption.

    A quantized program trains through its rounding, and comes back with its weights on their codes; with
    Recipe(quantizer_learning_rate=...) scales and zero points learn, too, within what the target runs.

    The network is in training mode: batch norm learns its statistics, dropout drops. It trains on the GPU where accelerate
    finds one, and comes back to the device it was on. A last batch of a single sample is left out when a batch norm would see
    one value per channel. Order of arrays, Datasets and DataLoaders, and dropout, are functions of seed and epoch.

    Raises: DataError for data that is empty, not finite, of the wrong shape, or has labels out of range; ConfigError for a
    setting outside its rule; TrainingError when the loss becomes NaN or infinite (with epoch and batch), or nothing can be
    trained; FileError for a checkpoint that is damaged, cannot be written, or belongs to another run.
    """
    _check_arguments(epochs, seed)
    batches = as_batches(train_data, what="training", batch_size=recipe.batch_size, shuffle=True)
    with torch.inference_mode(False), torch.enable_grad(), _accelerator(recipe.mixed_precision) as accelerator:
        student = program.copy().train().to(accelerator.device)
        learned = None if recipe.quantizer_learning_rate is None else LearnedQuantizers(student)
        names, optimizer = _make_optimizer(student, recipe)
        guide = None if teacher is None else copy.deepcopy(teacher).requires_grad_(False).eval().to(accelerator.device)
        watchers = _watchers(student, guide, recipe)
        if accelerator.scaler is not None:  # else the wrapper only costs time: it looks for packages at each update
            optimizer = accelerator.prepare(optimizer)
        penalty = None if recipe.penalty is None else recipe.penalty.on(student)
        loop = _Loop(student, watchers, accelerator, optimizer, names, recipe, penalty, learned)
        with seeded(seed, 0, device=accelerator.device, data=batches.source):
            steps = len(batches) or sum(1 for _ in batches)
        path = None if checkpoint is None else Path(checkpoint)
        run = {} if path is None else _identify(program, teacher, recipe, epochs=epochs, seed=seed, batches=steps)
        first = loop.restore(path, run) if path is not None and path.exists() else 0
        for epoch in range(first, epochs):
            with seeded(seed, epoch, device=accelerator.device, data=batches.source):
                loop.train_epoch(batches, _Position(epoch, epochs, steps), on_progress)
            if path is not None:
                loop.save(path, run, epoch + 1)
    student.zero_grad(set_to_none=True)
    trained = student.with_graph(student.graph, quantizers=None if learned is None else learned.finished())
    weights_on_codes(trained)
    return trained.to(program.device).train(program.training)


@dataclass(frozen=True, slots=True)
class _Position:
    """Which epoch of how many, and how many batches each has."""

    epoch: int
    epochs: int
    batches: int

    def at(self, batch: int) -> str:
        return f"epoch {self.epoch + 1} of {self.epochs}, batch {batch + 1}"


@dataclass(frozen=True, slots=True)
class _Loop:
    """What one run works with. `names` are the parameters' names in the optimizer's order; watchers run student and teacher."""

    student: Program
    watchers: tuple[Watcher, Watcher | None]
    accelerator: Any
    optimizer: Any
    names: list[str]
    recipe: Recipe
    penalty: ActivePenalty | None
    learned: LearnedQuantizers | None

    def train_epoch(self, batches: Batches, position: _Position, on_progress: OnProgress) -> None:
        total = position.epochs * position.batches
        freeze_at = round(self.recipe.freeze_batch_norm_after * total)
        mean, done, frozen = 0.0, 0, False
        for number, batch in enumerate(batches):
            step = position.epoch * position.batches + number
            if not frozen and step >= freeze_at:
                freeze_batch_norms(self.student)
                frozen = True
            rate = self._set_rates(step, total)
            if not self._is_lone_sample(batch, last=number + 1 == position.batches and done > 0):
                loss = self._train_batch(batch, step)
                if not abs(loss) < float("inf"):
                    raise TrainingError(
                        f"the loss became {loss} at {position.at(number)} (learning rate {rate:.3g}); train with a smaller "
                        f"learning_rate than {self.recipe.learning_rate:g}."
                    )
                mean, done = mean + loss, done + 1
            note = f"epoch {position.epoch + 1} of {position.epochs}, loss {mean / done:.4f}" if done else ""
            on_progress(Progress("train", step + 1, total, note))
        for name, tensor in self._weights().items():
            if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
                raise TrainingError(
                    f"{name!r} became NaN or infinite in epoch {position.epoch + 1} of {position.epochs}; train with a smaller "
                    f"learning_rate than {self.recipe.learning_rate:g}."
                )

    def _set_rates(self, step: int, total: int) -> float:
        """Returns that of the weights."""
        peaks = {self.optimizer: self.recipe.learning_rate}
        if self.learned is not None:
            peaks[self.learned.optimizer] = self.recipe.quantizer_learning_rate or 0.0
        for optimizer, peak in peaks.items():
            for group in optimizer.param_groups:
                group["lr"] = learning_rate_at(step, total, peak=peak, warmup=self.recipe.warmup)
        return float(self.optimizer.param_groups[0]["lr"])

    def _train_batch(self, batch: Batch, step: int) -> float:
        """One update. Returns the loss without the penalty."""
        device, (student, guide) = self.accelerator.device, self.watchers
        inputs = tuple(tensor.to(device, non_blocking=True) for tensor in batch[0])
        with self.accelerator.autocast():
            outputs, features = student(*inputs, coder=None if self.learned is None else self.learned.code)
            if guide is not None:
                with torch.no_grad():
                    taught, wanted = guide(*inputs)
        loss = self._loss(_single(outputs, "network"), None if guide is None else _single(taught, "teacher"), batch[1])
        if features:
            loss = loss + self.recipe.feature_weight * feature_error(features, wanted)
        self.optimizer.zero_grad()
        self.accelerator.backward(loss)
        self.accelerator.clip_grad_norm_(self.student.parameters(), self.recipe.max_gradient_norm)
        if self.penalty is not None:  # after clipping and unscaling, so that its strength is what was asked for
            self.penalty.add_gradients(step)
        self.optimizer.step()
        hold_zeros(self.student)
        if self.learned is not None:
            self.learned.step()
        return float(loss.detach())

    def _loss(self, outputs: Tensor, taught: Tensor | None, target: Tensor | None) -> Tensor:
        """(1 - alpha) * loss + alpha * T^2 * KL, whichever of the two there are."""
        learn: Callable[[Tensor, Any], Tensor] = self.recipe.loss or cross_entropy
        alpha = self.recipe.alpha
        if taught is None or (target is not None and alpha < 1):
            if target is None:
                raise DataError("the training data has no targets; give batches of (inputs, target), or a teacher.")
            own = learn(outputs, target.to(outputs.device))
            if not isinstance(own, Tensor) or own.dim():
                raise ConfigError("Recipe.loss", self.recipe.loss, "a function that returns one number as a tensor of shape ()")
            if taught is None:
                return own
            return own if alpha == 0 else (1 - alpha) * own + alpha * distillation(outputs, taught, self.recipe.temperature)
        return distillation(outputs, taught, self.recipe.temperature)

    def _is_lone_sample(self, batch: Batch, *, last: bool) -> bool:
        """Whether the batch must be left out. Raises DataError where that is not a mere remainder."""
        if batch[0][0].dim() == 0 or batch[0][0].shape[0] != 1 or not _norms_single_values(self.student):
            return False
        if not last:
            raise DataError("the training data has batches of one sample, which batch norm cannot learn from; use larger batches.")
        return True

    def _weights(self) -> dict[str, Tensor]:
        student = self.student
        weights = dict(student.named_parameters(remove_duplicate=False)) | dict(student.named_buffers(remove_duplicate=False))
        return weights if self.learned is None else {**weights, **self.learned.parameters}

    def save(self, path: Path, run: Mapping[str, Any], epoch: int) -> None:
        scaler = None if self.accelerator.scaler is None else self.accelerator.scaler.state_dict()
        kept = optimizer_tensors(self.optimizer, self.names)
        if self.learned is not None:
            kept |= optimizer_tensors(self.learned.optimizer, list(self.learned.parameters))
        Checkpoint(run, epoch, self._weights(), kept, scaler).save(path)

    def restore(self, path: Path, run: Mapping[str, Any]) -> int:
        """Continue from a checkpoint of this run. Returns the number of finished epochs."""
        found = Checkpoint.load(path, run)
        found.restore(path, self._weights(), self.optimizer, self.names)
        if self.learned is not None:
            found.restore(path, self.learned.parameters, self.learned.optimizer, list(self.learned.parameters))
        if self.accelerator.scaler is not None and found.scaler is not None:
            self.accelerator.scaler.load_state_dict(dict(found.scaler))
        return found.epoch


def _check_arguments(epochs: object, seed: object) -> None:
    if isinstance(epochs, bool) or not isinstance(epochs, int) or epochs < 1:
        raise ConfigError("epochs", epochs, "a whole number, at least 1")
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise ConfigError("seed", seed, "a whole number, at least 0")


@contextmanager
def _accelerator(mixed_precision: str) -> Iterator[Any]:
    """An Accelerator. Its process-wide state is cleared afterwards, unless the caller uses accelerate, too."""
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    ours = not AcceleratorState._shared_state
    try:
        try:
            accelerator = Accelerator(mixed_precision=mixed_precision)
        except ValueError as error:
            raise ConfigError("Recipe.mixed_precision", mixed_precision, f"one that can be used here ({error})") from error
        if accelerator.num_processes > 1:
            raise TrainingError("fit runs in a single process; start the program without a multi-process launcher.")
        if mixed_precision == "fp16" and accelerator.device.type == "cpu":  # accelerate would compute in float32
            raise ConfigError("Recipe.mixed_precision", mixed_precision, "'no' or 'bf16' on a CPU")
        yield accelerator
    finally:
        if ours:
            AcceleratorState._reset_state()


def _watchers(student: Program, guide: nn.Module | None, recipe: Recipe) -> tuple[Watcher, Watcher | None]:
    if guide is None and recipe.features:
        raise ConfigError("Recipe.features", recipe.features, "empty without a teacher")
    return Watcher(student, recipe.features, "network"), None if guide is None else Watcher(guide, recipe.features, "teacher")


def _make_optimizer(student: Program, recipe: Recipe) -> tuple[list[str], torch.optim.Optimizer]:
    """The optimizer, and the names of its parameters in its order."""
    trained = {name: parameter for name, parameter in student.named_parameters() if parameter.requires_grad}
    if not trained:
        raise TrainingError("the network has no weight to train; set requires_grad on the parameters before capturing it.")
    decayed = [name for name, parameter in trained.items() if parameter.dim() > 1]
    others = [name for name in trained if name not in decayed]
    groups = [
        {"params": [trained[name] for name in names], "weight_decay": decay}
        for names, decay in ((decayed, recipe.weight_decay), (others, 0.0))
        if names
    ]
    if recipe.optimizer == "adamw":
        return decayed + others, torch.optim.AdamW(groups, lr=recipe.learning_rate)
    nesterov = recipe.momentum > 0
    return decayed + others, torch.optim.SGD(groups, lr=recipe.learning_rate, momentum=recipe.momentum, nesterov=nesterov)


def _identify(program: Program, teacher: nn.Module | None, recipe: Recipe, **others: int) -> dict[str, Any]:
    """What makes two runs the same run, as plain data."""
    settings = {f"recipe.{key}": value for key, value in recipe.to_json().items()}
    digests = {"network": program.digest, "weights": weights_digest(program)} | ({"masks": masks_digest(program)} if program.masks else {})
    if program.quantizers:
        text = json.dumps({name: quantizer.to_json() for name, quantizer in sorted(program.quantizers.items())})
        digests["quantizers"] = hashlib.sha256(text.encode()).hexdigest()
    return {**digests, "teacher": None if teacher is None else weights_digest(teacher), **others, **settings}


def _single(outputs: object, whose: str) -> Tensor:
    if not isinstance(outputs, Tensor):
        raise DataError(f"the {whose} returns a {type(outputs).__name__}; training needs one tensor: capture it with output=.")
    return outputs.float() if outputs.dtype in (torch.float16, torch.bfloat16) else outputs


def _norms_single_values(program: Program) -> bool:
    """Whether some batch norm sees one value per channel when the batch holds one sample."""
    norms = [node for node in program.graph.nodes if isinstance(op_of(node).kind, BatchNorm)]
    if not norms:
        return False
    metas = infer_shapes(program, batch=1)
    shapes = [tensor_meta(metas, node.name).shape for node in norms]
    return any(torch.Size(shape).numel() == shape[1] for shape in shapes)
