"""Artifacts whose inputs and outputs are codes: which, and running them with real numbers all the same."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

from gossamer.errors import ConfigError, PlanError
from gossamer.numerics.affine import Quantizer, dequantize, quantize
from gossamer.numerics.formats import IntFormat
from gossamer.program.program import Program
from gossamer.targets.target import IO_KINDS, Artifact, Runner, targets

_DTYPES = {"uint8": np.uint8, "int8": np.int8}


def check_ends(program: Program, io: str) -> None:
    """Raise ConfigError for an unknown kind, PlanError for a program whose float inputs and outputs have no 8-bit codes."""
    if io not in IO_KINDS:
        raise ConfigError("io", io, f"one of {', '.join(IO_KINDS)}")
    if io == "float":
        return
    wanted = [*(spec.name for spec in program.inputs if spec.dtype == torch.float32), *program.graph.outputs]
    for name in wanted:
        quantizer = program.quantizers.get(name)
        if quantizer is None:
            raise PlanError(f"io={io!r} needs codes for {name!r}, which has none; plan with scheme=Scheme(code_ends=True).")
        if not isinstance(quantizer.format, IntFormat) or quantizer.format.bits > 8:
            raise PlanError(f"io={io!r} needs codes of at most 8 bits for {name!r}, which has {quantizer.format.name}.")


def open_artifact(artifact: Artifact, *, threads: int, values: bool = False) -> Runner:
    """Open a file so that it takes and gives real numbers, whatever it takes and gives by itself. Raises like Target.open."""
    target = targets[artifact.target]
    if values and target.open_values is not None:
        runner = target.open_values(artifact.program, threads=threads)
    else:
        runner = target.open(artifact.path, threads=threads, values=values)
    return runner if artifact.io == "float" else CodedRunner(runner, artifact)


class CodedRunner:
    """Codes what goes in, decodes what comes out."""

    def __init__(self, runner: Runner, artifact: Artifact) -> None:
        self.runner = runner
        self._dtype = _DTYPES[artifact.io]
        self._inputs = [artifact.input_codes.get(spec.name) for spec in artifact.program.inputs]
        self._output = next(iter(artifact.output_codes.values()))

    def codes(self, *inputs: np.ndarray) -> list[np.ndarray]:
        """What the file itself takes."""
        return [array if q is None else self._code(array, q) for array, q in zip(inputs, self._inputs, strict=True)]

    def run(self, *inputs: np.ndarray) -> np.ndarray:
        """The network's output in real numbers."""
        return self._real(self.runner.run(*self.codes(*inputs)))

    def run_values(self, *inputs: np.ndarray) -> Mapping[str, np.ndarray]:
        """Codes of every quantized value by name, and the file's outputs as they are."""
        return self.runner.run_values(*self.codes(*inputs))

    def fed(self, *inputs: np.ndarray) -> Runner:
        """The file with these inputs coded beforehand, so that timing it times nothing else."""
        return _Fed(self.runner, self.codes(*inputs))

    def _code(self, array: np.ndarray, quantizer: Quantizer) -> np.ndarray:
        return quantize(torch.from_numpy(np.ascontiguousarray(array)), quantizer).numpy().astype(self._dtype)

    def _real(self, codes: np.ndarray) -> np.ndarray:
        real: np.ndarray = dequantize(torch.from_numpy(np.ascontiguousarray(codes)), self._output).numpy()
        return real


class _Fed:
    def __init__(self, runner: Runner, codes: list[np.ndarray]) -> None:
        self._runner, self._codes = runner, codes

    def run(self, *_: np.ndarray) -> np.ndarray:
        return self._runner.run(*self._codes)

    def run_values(self, *_: np.ndarray) -> Mapping[str, np.ndarray]:
        return self._runner.run_values(*self._codes)


def as_bare(runner: Runner, *inputs: np.ndarray) -> Runner:
    """A runner that does nothing but run the file on these inputs."""
    return runner.fed(*inputs) if isinstance(runner, CodedRunner) else runner
