"""Running a bundle with torch.compile: the captured graph becomes C++ and is compiled when it is first run."""

from __future__ import annotations

import os
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FunctionType
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from gossamer.errors import DataError, FileError, MissingRuntime
from gossamer.numerics.affine import Quantizer, dequantize, quantize
from gossamer.program.bundle import load
from gossamer.program.fold import fold_batch_norms
from gossamer.program.program import Program
from gossamer.targets.target import check_threads

Array = npt.NDArray[Any]
INSTALL = "apt-get install g++"
QUANTIZED = (
    "torch computes codes as float32 numbers rounded to what codes can hold: the network is as accurate as with codes, and neither its "
    "file nor its latency gains from them."
)


def compiler() -> str | None:
    """The C++ compiler that torch.compile takes: $CXX, else g++; None where there is none."""
    return shutil.which(os.environ.get("CXX", "g++"))


def find_version() -> str | None:
    """PyTorch's version where it can compile, else None."""
    return torch.__version__ if compiler() else None


def notes(program: Program) -> tuple[str, ...]:
    """What readers of a report must know."""
    return (QUANTIZED,) if program.quantizers else ()


def open_bundle(path: Path, *, threads: int, values: bool = False) -> TorchRunner:
    """Open a bundle with this many threads; `values` also hands out the codes of every quantized value.

    Compiling starts with the first call and takes seconds; a batch of 1 and all other sizes are compiled apart.
    Raises: MissingRuntime without a C++ compiler; FileError for a file that is missing, damaged or no bundle; ConfigError for fewer
    than one thread. The first call raises FileError for a network that torch.compile refuses (in its words).
    """
    check_threads(threads)
    program = load(Path(path))
    if compiler() is None:
        raise MissingRuntime("g++", "compiling networks with torch.compile", INSTALL)
    return TorchRunner(program, Path(path), threads, values=values)


@dataclass
class TorchRunner:
    """An opened bundle. Outputs come back as arrays in the program's order; one output comes back bare."""

    program: Program
    path: Path
    threads: int
    values: bool = False
    _compiled: dict[bool, Callable[..., Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._ready, self._coders = prepared(self.program)
        self._coded = tuple(name for name in self._coders if self.values)

    def run(self, *inputs: Array) -> Array:
        """The network's output; the first one where there are several. Raises DataError for inputs that do not fit."""
        found: Array = self._run(inputs)[0][0].numpy()
        return found

    def run_values(self, *inputs: Array) -> dict[str, Array]:
        """Outputs by their names in the program, and the codes of every quantized value by value name."""
        outputs, seen = self._run(inputs)
        found = dict(zip(self.program.graph.outputs, (tensor.numpy() for tensor in outputs), strict=True))
        codes = {name: quantize(value, self._coders[name]).numpy() for name, value in zip(self._coded, seen, strict=True)}
        return {**{f"output {name}": array for name, array in found.items()}, **codes}

    def _run(self, inputs: tuple[Array, ...]) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        specs = self.program.inputs
        if len(inputs) != len(specs):
            raise DataError(f"the network takes {len(specs)} inputs ({', '.join(map(str, specs))}); got {len(inputs)}.")
        tensors = [spec.check(torch.from_numpy(np.ascontiguousarray(array))) for spec, array in zip(specs, inputs, strict=True)]
        single = all(tensor.shape[0] == 1 for spec, tensor in zip(specs, tensors, strict=True) if spec.shape and spec.shape[0] is None)
        with _threads(self.threads), torch.inference_mode():
            if single not in self._compiled:
                self._compiled[single] = self._compile()
            if not single:
                for spec, tensor in zip(specs, tensors, strict=True):
                    if spec.shape and spec.shape[0] is None:
                        torch._dynamo.maybe_mark_dynamic(tensor, 0)  # this axis alone: all other sizes are known
            results = self._call(self._compiled[single], tensors)
        count = len(self.program.graph.outputs)
        return results[:count], results[count:]

    def _call(self, compiled: Callable[..., Any], tensors: list[Tensor]) -> tuple[Tensor, ...]:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)  # of torch's own code, which it imports to compile
                found: tuple[Tensor, ...] = compiled(*tensors)
        except (torch._dynamo.exc.TorchDynamoException, torch._dynamo.exc.FailOnRecompileLimitHit) as error:
            lines = [line.strip() for line in str(error).splitlines() if line.strip()]
            reason = " ".join(lines[: 1 + lines[0].endswith(":")]).rstrip(".")
            raise FileError(
                self.path,
                f"cannot be compiled by torch.compile here ({reason})",
                "export the network for another target, such as onnxruntime",
            ) from error
        return found

    def _compile(self) -> Callable[..., Any]:
        """A function of tensors that gives outputs, then values. Compiled on its first call, without falling back to anything else."""
        program, coders, coded = self._ready, self._coders, self._coded
        _ = program.steps  # found now: looking ops up cannot be compiled

        def forward(*inputs: Tensor) -> tuple[Tensor, ...]:
            seen: dict[str, Tensor] = {}

            def observe(name: str, value: Any) -> Any:
                if name not in coders:
                    return None
                seen[name] = _rounded(value, coders[name])
                return seen[name]

            outputs = program.run(*inputs, observe=observe)
            outputs = outputs if isinstance(outputs, tuple) else (outputs,)
            return (*outputs, *(seen[name] for name in coded))

        # torch counts how often it compiled a code object, and gives up at 8: each function gets one of its own
        own = FunctionType(forward.__code__.replace(co_name=f"forward_{id(forward)}"), globals(), closure=forward.__closure__)
        compiled: Callable[..., Any] = torch.compile(own, fullgraph=True, options={"cpp.threads": self.threads})
        return compiled


def prepared(program: Program) -> tuple[Program, Mapping[str, Quantizer]]:
    """The network with rounded weights in its state, and what rounds values while it runs.

    Batch norms of a float network are folded. Networks that round by themselves while they run need nothing here.
    """
    program = program.copy().eval()
    if not program.quantizers:
        return fold_batch_norms(program), {}
    state = {
        name: _rounded(tensor.detach(), program.quantizers[name]) if name in program.quantizers else tensor.detach()
        for name, tensor in program.state.items()
    }
    coders = {name: quantizer for name, quantizer in program.quantizers.items() if name not in state}
    return program.with_graph(program.graph, state, quantizers={}, masks={}), coders


def _rounded(value: Tensor, quantizer: Quantizer) -> Tensor:
    """A value at exactly what its codes stand for."""
    return dequantize(quantize(value, quantizer), quantizer)


@contextmanager
def _threads(number: int) -> Iterator[None]:
    """Run with so many threads: torch has one number for the whole process."""
    before = torch.get_num_threads()
    if number == before:
        yield
        return
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)
