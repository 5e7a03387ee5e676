"""Running a .pte file with ExecuTorch's Python runtime."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from gossamer.errors import DataError, FileError
from gossamer.program.program import Program
from gossamer.targets.executorch.emit import to_pte
from gossamer.targets.executorch.loading import Loaded
from gossamer.targets.executorch.packages import RUNTIME, part, quiet
from gossamer.targets.seal import unsealed
from gossamer.targets.target import check_threads

Array = npt.NDArray[Any]
IDENTIFIER = b"ET12"


class ExecuTorchRunner:
    """An opened file. More samples than the file takes at once are run in parts."""

    def __init__(self, load: Callable[[], Loaded], threads: int, handed_out: Sequence[str]) -> None:
        self._load, self._threads, self._names = load, threads, tuple(handed_out)
        self._method: Loaded | None = None
        self._shapes = self.method().input_shapes

    def method(self) -> Loaded:
        """The loaded network, on as many threads as this runner was opened with."""
        use_threads(self._threads)
        if self._method is None:
            self._method = self._load()
            _runners.add(self)
        return self._method

    def release(self) -> None:
        """Let go of the loaded network; it is loaded again when it is next run."""
        self._method = None

    def run(self, *inputs: Array) -> Array:
        """The network's output; the first one where there are several. Raises DataError for inputs that do not fit."""
        return self._run(inputs)[0]

    def run_values(self, *inputs: Array) -> dict[str, Array]:
        """Outputs as output0, output1 ..., and the codes of every quantized value by its name where the file hands them out."""
        results = self._run(inputs)
        outputs = len(results) - len(self._names)
        return {f"output{k}": results[k] for k in range(outputs)} | dict(zip(self._names, results[outputs:], strict=True))

    def _run(self, inputs: tuple[Array, ...]) -> list[Array]:
        if len(inputs) != len(self._shapes):
            raise DataError(f"the file takes {len(self._shapes)} inputs; got {len(inputs)}.")
        most, number = self._shapes[0][0] if self._shapes[0] else 1, len(inputs[0]) if inputs[0].ndim else 1
        if number <= most:
            return self._run_part(inputs)
        parts = [self._run_part(tuple(array[start : start + most] for array in inputs)) for start in range(0, number, most)]
        return [np.concatenate(column) for column in zip(*parts, strict=True)]

    def _run_part(self, inputs: tuple[Array, ...]) -> list[Array]:
        tensors = [torch.from_numpy(np.require(array, requirements=["C", "W"])) for array in inputs]
        try:
            results = self.method().execute(tensors)
        except RuntimeError as error:
            raise DataError(f"ExecuTorch refuses these inputs ({_reason(error)}); give arrays of the file's shapes and types.") from error
        return [result.numpy() for result in results]


_runners: weakref.WeakSet[ExecuTorchRunner] = weakref.WeakSet()


def use_threads(threads: int) -> None:
    """Let the process's one pool have this many threads; networks loaded for another number are let go first.

    XNNPACK keeps a pointer to the pool that was there when a network was loaded, so none may outlive it.
    """
    pool = part(RUNTIME)
    if pool._threadpool_get_thread_count() != threads:
        for runner in list(_runners):
            runner.release()
        pool._unsafe_reset_threadpool(threads)


def open_file(path: Path, *, threads: int, values: bool = False) -> ExecuTorchRunner:
    """Open a file with this many threads. It hands out its outputs only: `open_values` writes one that hands out codes, too.

    Raises: MissingRuntime without executorch; FileError for a file that is missing, damaged, or none of ExecuTorch's; ConfigError for
    fewer than one thread.
    """
    check_threads(threads)
    part(RUNTIME)  # a missing package comes first
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise FileError(path, f"cannot be read ({error.strerror})", "give the path of an exported file") from error
    if data[4:8] != IDENTIFIER:
        raise FileError(path, "is not a .pte file of ExecuTorch", "export it again")
    return _open(unsealed(path, data), threads, (), Path(path))


def open_values(program: Program, *, threads: int) -> ExecuTorchRunner:
    """Write a program for the purpose, in memory, with codes among its outputs, and open that. Raises like emit and open_file."""
    written = to_pte(program, hand_out=True)
    return _open(written.data, threads, written.handed_out, Path("(in memory)"))


def _open(data: bytes, threads: int, handed_out: Sequence[str], path: Path) -> ExecuTorchRunner:
    with quiet():
        part("kernels.quantized")  # registers the portable kernels that code and decode

    def load() -> Loaded:
        try:
            return Loaded(data)
        except (RuntimeError, KeyError) as error:
            raise FileError(path, f"is not a .pte file that ExecuTorch can run ({_reason(error)})", "export it again") from error

    return ExecuTorchRunner(load, threads, handed_out)


def _reason(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__).rstrip(".")
