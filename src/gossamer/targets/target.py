"""What a target is: a spec, an emitter that writes its file, a runner that runs it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from gossamer.plan.spec import TargetSpec
from gossamer.program.program import Program
from gossamer.registry import Registry


class Runner(Protocol):
    """An opened artifact. Inputs are arrays in the program's order."""

    def run(self, *inputs: np.ndarray) -> np.ndarray:
        """The network's output."""
        ...

    def run_values(self, *inputs: np.ndarray) -> Mapping[str, np.ndarray]:
        """Integer codes of every quantized value by name (only where opened with values=True), and float outputs."""
        ...


class Open(Protocol):
    """Opens an artifact file with a stated number of threads."""

    def __call__(self, path: Path, *, threads: int, values: bool = False) -> Runner: ...


@dataclass(frozen=True, slots=True)
class Target:
    """One runtime. `emit(program, path)` writes the file; `open` raises MissingRuntime when the runtime is absent."""

    spec: TargetSpec
    suffix: str
    emit: Callable[[Program, Path], None]
    open: Open


targets: Registry[Target] = Registry("target")


@dataclass(frozen=True, slots=True)
class Artifact:
    """A written file and the program that it was written from."""

    path: Path
    target: str
    program: Program

    @property
    def size_bytes(self) -> int:
        """Bytes of the file."""
        return self.path.stat().st_size
