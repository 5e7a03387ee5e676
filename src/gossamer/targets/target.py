"""What a target is: a spec, an emitter that writes its file, a runner that runs it."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Protocol

import numpy as np

from gossamer.errors import ConfigError
from gossamer.numerics.affine import Quantizer
from gossamer.numerics.formats import IntFormat
from gossamer.plan.spec import TargetSpec, specs
from gossamer.program.program import Program
from gossamer.registry import Registry
from gossamer.targets.chip import ChipReport
from gossamer.targets.findings import Finding

INT8 = "int8"


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


def check_threads(threads: int, *, single: bool = False) -> None:
    """For a runner that opens. Raises ConfigError for fewer than one thread; where there is a `single` one, for more, too."""
    if threads < 1 or (single and threads > 1):
        raise ConfigError("threads", threads, "1, as microcontrollers have" if single else "at least 1")


class OpenValues(Protocol):
    """Opens a program written so that its runner hands out the codes of every quantized value."""

    def __call__(self, program: Program, *, threads: int) -> Runner: ...


@dataclass(frozen=True, slots=True)
class Target:
    """One runtime. `emit(program, path)` writes the file, and may tell its notes; `open` raises MissingRuntime when the runtime is absent.

    `emit_coded(program, path, io)` writes one whose inputs and outputs are "uint8" or "int8" codes, where the target has such.
    `own_ends` says in a few words what files take and give where there is no emit_coded, and what users do who have other codes.
    `open_values(program, threads=...)` opens a file written for the purpose that hands out codes, where an exported one cannot be made to.
    `count_zeros(path)` finds (zeros, numbers) of each weight in the file, where the target has it.
    `notes(program)` tells what users of the file must know, in sentences, where there is anything and `emit` has not told it.
    `beside(path)` names the files that were written with the one at `path`, such as a header.
    `size(path)` measures the bytes that a file takes where it runs, where that is not its own size, such as compiled C.
    `ram(path)` plans the bytes that values, inputs and outputs take on a chip; `inspect(path, arrays, board)` compiles the file for a chip's
    core and runs the first sample on its emulator; both where the target writes for chips. `board` may be "".
    `package` is the distribution that brings the runtime, where it is not called like the target; `install` the command.
    `lint(path)` checks a file against the runtime's documented rules, where such are known.
    `stands_in()` says in a sentence what runs the files where the runtime cannot, for parity and accuracy alone; "" where it can.
    `any_type`: its files hold numbers of any of torch's types, bfloat16, too.
    `exact_weights()` names the widest format of weights that the runtime's kernels compute exactly on this processor.
    `find_version()` tells the version of a runtime that is no distribution, None where it is missing.
    """

    spec: TargetSpec
    suffix: str
    emit: Callable[[Program, Path], tuple[str, ...] | None]
    open: Open
    count_zeros: Callable[[Path], Mapping[str, tuple[int, int]]] | None = None
    notes: Callable[[Program], tuple[str, ...]] | None = None
    emit_coded: Callable[[Program, Path, str], None] | None = None
    own_ends: str = "its files take and give floats here"
    beside: Callable[[Path], tuple[Path, ...]] | None = None
    size: Callable[[Path], int] | None = None
    ram: Callable[[Path], int] | None = None
    inspect: Callable[[Path, Sequence[np.ndarray], str], ChipReport] | None = None
    open_values: OpenValues | None = None
    package: str = ""
    install: str = ""
    find_version: Callable[[], str | None] | None = None
    lint: Callable[[Path], tuple[Finding, ...]] | None = None
    stands_in: Callable[[], str] | None = None
    any_type: bool = False
    exact_weights: Callable[[], str] = lambda: INT8

    @property
    def runtime(self) -> str:
        """The distribution that brings the runtime."""
        return self.package or self.spec.name

    @property
    def runtime_version(self) -> str | None:
        """Its installed version; None where it is missing."""
        if self.find_version is not None:
            return self.find_version()
        try:
            return version(self.runtime)
        except PackageNotFoundError:
            return None

    @property
    def stand_in(self) -> str:
        """What runs the files in place of the runtime, as a sentence; "" where the runtime does, or is needed."""
        return "" if self.stands_in is None else self.stands_in()

    @property
    def install_command(self) -> str:
        """What installs the runtime."""
        return self.install or f"pip install {self.runtime}"


IO_KINDS = ("float", "uint8", "int8")


def end_codes(quantizer: Quantizer, io: str) -> Quantizer:
    """The quantizer of a file's input or output of 8-bit codes: of a value's own codes, moved by 128 where signs differ."""
    signed = io == "int8"
    move = 128 * (int(quantizer.integers.signed) - int(signed))
    zero = tuple(zero + move for zero in quantizer.zero_point)
    fmt = quantizer.integers if not move else IntFormat(bits=8, signed=signed)
    return Quantizer(fmt, quantizer.granularity, quantizer.scale, zero)


targets: Registry[Target] = Registry("target", home="gossamer.targets")


def add_target(target: Target, *, source: str) -> Target:
    """Register a target under the name in its spec: planning finds its spec, exporting and running find the rest. Returns it.

    source  where the spec's facts come from, such as the runtime and its version
    Raises: ConfigError for a name that is registered already.
    """
    name = target.spec.name
    targets.add(name, source=source)(target)
    specs.add(name, source=source)(target.spec)
    return target


def remove_target(name: str) -> None:
    """Take a target out again. Raises ConfigError for a name that is not registered."""
    targets.remove(name)
    specs.remove(name)


@dataclass(frozen=True, slots=True)
class Artifact:
    """A written file and the program that it was written from.

    io    what its float inputs and outputs are: "float", or codes
    told  its notes, where writing it told them; None where they are to be found from the program
    """

    path: Path
    target: str
    program: Program
    io: str = "float"
    told: tuple[str, ...] | None = None

    @property
    def input_codes(self) -> Mapping[str, Quantizer]:
        """By name, what the codes stand for that the file takes: real = scale * (code - zero_point). Empty for floats."""
        names = [spec.name for spec in self.program.inputs if spec.name in self.program.quantizers]
        return {} if self.io == "float" else {name: end_codes(self.program.quantizers[name], self.io) for name in names}

    @property
    def output_codes(self) -> Mapping[str, Quantizer]:
        """Likewise for what it gives, by the name of the program's value."""
        names = () if self.io == "float" else self.program.graph.outputs
        return {name: end_codes(self.program.quantizers[name], self.io) for name in names}

    @property
    def size_bytes(self) -> int:
        """Bytes of the file; of what is compiled from it where it is a source. Raises MissingRuntime without the tools for that."""
        measure = targets[self.target].size
        return self.path.stat().st_size if measure is None else measure(self.path)

    @property
    def ram_bytes(self) -> int:
        """Bytes that values, inputs and outputs take on a chip; 0 where the target plans no chip's memory."""
        measure = targets[self.target].ram
        return 0 if measure is None else measure(self.path)

    @property
    def files(self) -> tuple[Path, ...]:
        """The file and those that were written with it."""
        others = targets[self.target].beside
        return (self.path, *(() if others is None else others(self.path)))

    @property
    def download_bytes(self) -> int:
        """Bytes of the file when it is packed for transport (deflate, as zip and gzip do), to within a header."""
        packer, total = zlib.compressobj(6), 0
        with open(self.path, "rb") as file:
            while part := file.read(2**20):
                total += len(packer.compress(part))
        return total + len(packer.flush())

    @property
    def notes(self) -> tuple[str, ...]:
        """What users of the file must know, such as processors on which it needs a setting; empty where there is nothing."""
        if self.told is not None:
            return self.told
        find = targets[self.target].notes
        return () if find is None else find(self.program)

    def sparsity(self) -> Mapping[str, float]:
        """Share of zeros of each weight in the file, and of all together under ""; empty where the target does not count them."""
        count = targets[self.target].count_zeros
        counts = {} if count is None else dict(count(self.path))
        if not counts:
            return {}
        zeros, numbers = (sum(column) for column in zip(*counts.values(), strict=True))
        return {"": zeros / numbers, **{name: found / size for name, (found, size) in counts.items()}}
