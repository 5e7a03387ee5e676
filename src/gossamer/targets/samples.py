"""Validation data for files: checked against what the network takes, in batches that the file takes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from gossamer.batches import Batches
from gossamer.errors import DataError
from gossamer.program.program import Program
from gossamer.progress import OnProgress, Progress
from gossamer.targets.metrics import Outputs
from gossamer.targets.target import Runner

Array = npt.NDArray[Any]


def first_samples(program: Program, batches: Batches, number: int) -> tuple[Tensor, ...]:
    """The first `number` samples, from the start again where the data has fewer."""
    parts: list[tuple[Tensor, ...]] = []
    found = 0
    for inputs, _ in batches:
        parts.append(checked_inputs(program, inputs, batches.what))
        found += len(inputs[0])
        if found >= number:
            break
    position = torch.arange(number) % found
    return tuple(torch.cat(column)[position].contiguous() for column in zip(*parts, strict=True))


def checked_inputs(program: Program, inputs: tuple[Tensor, ...], what: str) -> tuple[Tensor, ...]:
    """Inputs on the CPU if they fit in all but the batch axis. Raises DataError, which names the data as `what`."""
    if len(inputs) != len(program.inputs):
        wanted = ", ".join(map(str, program.inputs))
        raise DataError(f"the network takes {len(program.inputs)} inputs ({wanted}); the {what} data gives {len(inputs)}.")
    for spec, tensor in zip(program.inputs, inputs, strict=True):
        try:
            replace(spec, shape=(None, *spec.shape[1:])).check(tensor)
        except DataError as error:
            if (
                spec.dtype == torch.float64 and tensor.is_floating_point()
            ):  # what data is read as does not depend on what the user can change
                raise DataError(f"the network takes float64, and data is read as {tensor.dtype}; capture model.float() instead.") from error
            raise DataError(f"the {what} data does not fit: {error}") from error
    return tuple(tensor.detach().cpu() for tensor in inputs)


def outputs(program: Program, batches: Batches, runners: Iterable[Runner], on_progress: OnProgress) -> Iterator[Outputs]:
    """Outputs of two files, in order, and the target, batch by batch."""
    fixed = program.inputs[0].shape[0]
    total, both = len(batches), tuple(runners)
    for done, (inputs, target) in enumerate(batches):
        on_progress(Progress("verify", done, total, "accuracy"))
        arrays = [tensor.numpy() for tensor in checked_inputs(program, inputs, batches.what)]
        before, after = (run_batch(runner, arrays, fixed) for runner in both)
        yield before, after, None if target is None else target.detach().cpu()
    on_progress(Progress("verify", total, total, "accuracy"))


def run_batch(runner: Runner, arrays: list[Array], fixed_batch: int | None) -> Tensor:
    """The output for any number of samples; a runner of a fixed batch gets chunks, the last one filled up."""
    number = len(arrays[0])
    if fixed_batch is None or fixed_batch == number:
        return torch.from_numpy(np.ascontiguousarray(runner.run(*arrays)))
    position = np.arange(-(-number // fixed_batch) * fixed_batch) % number
    chunks = position.reshape(-1, fixed_batch)
    return torch.from_numpy(np.concatenate([runner.run(*(array[chunk] for array in arrays)) for chunk in chunks])[:number])
