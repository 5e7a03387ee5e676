"""Compiling a written network for a chip and running it on an emulated board."""

from __future__ import annotations

import hashlib
import re
import shutil
import subprocess
import tempfile
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from gossamer.errors import DataError, FileError, MissingRuntime
from gossamer.numerics.affine import Quantizer, dequantize
from gossamer.numerics.formats import IntFormat, PerTensor
from gossamer.plan.chips import chips
from gossamer.program.program import Program
from gossamer.targets.chip import MOST_NAMED, ChipLayer, ChipReport
from gossamer.targets.cortex_m.boards import Board, boards, linker_script
from gossamer.targets.cortex_m.emit import c_name, read_note
from gossamer.targets.cortex_m.kernels import runtime_file
from gossamer.targets.gemmlowp_kernels import quantize
from gossamer.targets.target import check_threads

Array = npt.NDArray[Any]
COMPILER, EMULATOR, SIZE = "arm-none-eabi-gcc", "qemu-system-arm", "arm-none-eabi-size"
INSTALL = "apt-get install --no-install-recommends gcc-arm-none-eabi libnewlib-arm-none-eabi qemu-system-arm"
OPTIONS = ("-std=gnu99", "-O3", "-ffunction-sections", "-fdata-sections")
STRICT = ("-Wall", "-Werror")
SECONDS = 600  # an emulated run that takes longer is stopped
CORE = "cortex-m4"
_cache: tempfile.TemporaryDirectory[str] | None = None  # compiled kernels
_INSTRUCTION_SHIFT = 6  # of the emulator's clock: 2^6 ns for each instruction


@dataclass(frozen=True, slots=True)
class Memory:
    """What a network takes of a chip, in bytes: code, constants, and static memory without the stack."""

    flash_bytes: int
    ram_bytes: int


class CortexRunner:
    """An opened network. Arrays go in and come out with the axes that the network has, floats where it takes codes, too."""

    def __init__(self, path: Path, note: Mapping[str, Any], core: str, values: bool) -> None:
        self._note, self._values = note, values
        self._folder = Path(tempfile.mkdtemp(prefix="gossamer-cortex-m-"))
        weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)
        self._board = boards[core]
        self._path = path
        self._built: dict[str, Path] = {}

    def run(self, *inputs: Array) -> Array:
        """The network's output; the first one where there are several. Raises DataError for inputs that do not fit."""
        return self._run(inputs, "")[0]["output0"]

    def run_values(self, *inputs: Array) -> dict[str, Array]:
        """Outputs as output0, output1 ..., and the codes of every quantized value by its name, with the network's axes."""
        outputs, traced = self._run(inputs, "GS_TRACE_FILE" if self._values else "")
        return outputs | (_values(self._note["values"], traced, inputs[0].shape[0]) if self._values else {})

    def instructions(self, *inputs: Array) -> dict[str, int]:
        """Instructions of each step for the first sample, counted by the emulator. They are no cycles of a chip."""
        self._run(tuple(array[:1] for array in inputs), "GS_COUNT")
        ticks = np.fromfile(self._folder / "ticks.bin", np.uint64).astype(np.int64)
        counts = np.diff(ticks) * 1000 // (self._board.clock_mhz << _INSTRUCTION_SHIFT)
        steps = self._note["steps"]
        return {f"{position} {step['name']}": int(count) for position, (step, count) in enumerate(zip(steps, counts, strict=True))}

    def _run(self, inputs: Sequence[Array], mode: str) -> tuple[dict[str, Array], bytes]:
        program = self._built.get(mode) or self._built.setdefault(mode, _build(self._path, self._board, self._folder, mode))
        folder = self._folder
        samples = _pack(inputs, self._note["inputs"])
        (folder / "in.bin").write_bytes(samples)
        (folder / "out.bin").unlink(missing_ok=True)
        clock = ("-icount", f"shift={_INSTRUCTION_SHIFT}") if mode == "GS_COUNT" else ()
        _emulate(program, self._board, folder, clock)
        outputs = _unpack((folder / "out.bin").read_bytes(), self._note["outputs"], inputs[0].shape[0])
        return outputs, (folder / "trace.bin").read_bytes() if mode == "GS_TRACE_FILE" else b""


def open_file(path: Path, *, threads: int, values: bool = False) -> CortexRunner:
    """Open a written network for the emulated Cortex-M4; `values` also hands out the codes of every quantized value.

    Raises: MissingRuntime without compiler or emulator; FileError for a file that is missing or not written by this package, or that does
    not compile or fit; ConfigError for another number of threads than 1.
    """
    return open_on(path, CORE, threads=threads, values=values)


def open_on(path: Path, core: str, *, threads: int = 1, values: bool = False) -> CortexRunner:
    """Like open_file, for a core named in targets.cortex_m.boards."""
    check_threads(threads, single=True)
    boards.entry(core)
    for tool in (COMPILER, EMULATOR):
        _tool(tool)
    return CortexRunner(Path(path), read_note(Path(path)), core, values)


def toolchain_version() -> str | None:
    """The compiler's version; None where it or the emulator is missing."""
    if not (shutil.which(COMPILER) and shutil.which(EMULATOR)):
        return None
    return subprocess.run([COMPILER, "-dumpversion"], capture_output=True, text=True).stdout.strip() or None


def measure_memory(path: Path, core: str = CORE) -> Memory:
    """Flash and RAM of the network alone, without startup code or a C library's: what it adds to a firmware that is linked as usual."""
    _tool(SIZE)
    with tempfile.TemporaryDirectory(prefix="gossamer-size-") as folder:
        objects = _compile(path, boards[core], Path(folder), ())
        linked, start = str(Path(folder) / "all.o"), f"{c_name(path)}_invoke"
        _check(
            [
                COMPILER,
                *boards[core].flags,
                "-nostdlib",
                "-r",
                "-Wl,--gc-sections",
                f"-Wl,-u,{start}",
                f"-Wl,-e,{start}",
                *objects,
                "-o",
                linked,
            ],
            path,
        )
        text, data, bss = map(int, _check([SIZE, linked], path).splitlines()[1].split()[:3])
    return Memory(text + data, data + bss)


def flash_bytes(path: Path) -> int:
    """Code and constants of the network for a Cortex-M4."""
    return measure_memory(path).flash_bytes


def io_bytes(path: Path) -> int:
    """Of the inputs and outputs, which callers hold."""
    note = read_note(path)
    return sum(prod(port["shape"]) * np.dtype(port["dtype"]).itemsize for port in (*note["inputs"], *note["outputs"]))


def ram_bytes(path: Path) -> int:
    """Of values, inputs and outputs."""
    return int(read_note(path)["arena_bytes"]) + io_bytes(path)


def inspect(path: Path, arrays: Sequence[Array], board: str = "") -> ChipReport:
    """What the core of a named board, or a Cortex-M4, makes of the network: sizes, and instructions of each step for the first sample.

    Raises: ConfigError for an unknown board; otherwise as open_file.
    """
    core = chips[board].core if board else CORE
    note, memory = read_note(path), measure_memory(path, core)
    counts = open_on(path, core).instructions(*arrays)
    layers = [
        ChipLayer(
            name=step["name"], op=step["op"], instructions=count, constant_bytes=step["constant_bytes"], arena_bytes=step["arena_bytes"]
        )
        for step, count in zip(note["steps"], counts.values(), strict=True)
    ]
    return ChipReport(
        core=core,
        kernels=note["kernels"],
        flash_bytes=memory.flash_bytes,
        arena_bytes=memory.ram_bytes,
        io_bytes=io_bytes(path),
        layers=tuple(layers),
        board=board,
    )


def notes(program: Program) -> tuple[str, ...]:
    """What readers of a report must know."""
    return ("Sizes are those of code and constants compiled for a Cortex-M4; latencies are an emulator's on this machine, not a chip's.",)


def _tool(name: str) -> None:
    if shutil.which(name) is None:
        raise MissingRuntime("cortex_m", f"compiling and running networks for microcontrollers ({name} is missing)", INSTALL)


def _compile(path: Path, board: Board, folder: Path, defines: Sequence[str]) -> list[str]:
    """Object files of the network and of its kernels, which are compiled once in a process. Warnings are errors in our own code only."""
    note, objects = read_note(path), [str(folder / "network.o")]
    headers = [f"-I{path.parent}", *([f"-isystem{path.parent / note['headers']}"] if note["headers"] else [])]
    _check([COMPILER, *board.flags, *OPTIONS, *STRICT, *headers, *defines, "-c", str(path), "-o", objects[0]], path)
    for name in note["sources"]:
        strict = () if note["headers"] and name.startswith(note["headers"]) else STRICT
        flags = (*board.flags, *OPTIONS, *strict)
        objects.append(str(_kernel_object(path.parent / name, flags, headers)))
    return objects


def _kernel_object(source: Path, flags: tuple[str, ...], headers: Sequence[str]) -> Path:
    global _cache
    try:
        key = hashlib.sha256("\0".join((*flags, source.read_text())).encode()).hexdigest()
    except (OSError, UnicodeDecodeError) as error:
        raise FileError(source, f"cannot be read ({error})", "export the network again") from error
    _cache = _cache or tempfile.TemporaryDirectory(prefix="gossamer-kernels-")
    found = Path(_cache.name) / f"{key}.o"
    if not found.exists():
        _check([COMPILER, *flags, *headers, "-c", str(source), "-o", f"{found}.new"], source)
        Path(f"{found}.new").rename(found)
    return found


def _build(path: Path, board: Board, folder: Path, mode: str) -> Path:
    """Compile the network with the harness for a board."""
    built = folder / f"network{mode}.elf"
    for name in ("harness.c", "startup.c"):
        (folder / name).write_bytes(runtime_file(name))
    (folder / "board.ld").write_text(linker_script(board))
    defines = ["-DGS_HARNESS", f'-DGS_HEADER="{path.stem}.h"', *([f"-D{mode}"] if mode else [])]
    parts = [*_compile(path, board, folder, defines), str(folder / "harness.c"), str(folder / "startup.c")]
    flags = [*board.flags, *OPTIONS, *STRICT, *defines, f"-I{path.parent}", "--specs=rdimon.specs", "-nostartfiles", "-Wl,--gc-sections"]
    _check([COMPILER, *flags, "-T", str(folder / "board.ld"), *parts, "-lm", "-o", str(built)], path)
    return built


def _check(command: Sequence[str], path: Path) -> str:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode == 0:
        return done.stdout
    over = re.search(r"region `(\w+)' overflowed by (\d+) bytes", done.stderr)
    if over:
        held = "arena_bytes" if over[1] == "RAM" else "constant_bytes"
        steps = sorted(read_note(path)["steps"], key=lambda step: -step[held])[:MOST_NAMED]
        where = ", ".join(f"{step['name']} ({step[held]:,})" for step in steps)
        reason = f"does not fit the emulated board: its {over[1]} is {int(over[2]):,} bytes too small; most bytes are held by {where}"
        raise FileError(path, reason, "prune or quantize the network, or take a larger chip")
    lines = [line for line in done.stderr.splitlines() if "error" in line] or done.stderr.splitlines()[-1:]
    raise FileError(path, f"does not compile ({(lines or ['no message'])[0].strip()})", "export it again")


def _emulate(program: Path, board: Board, folder: Path, clock: Sequence[str]) -> None:
    quiet = ["-nographic", "-monitor", "none", "-serial", "none"]
    command = [EMULATOR, "-M", board.machine, *quiet, "-semihosting-config", "enable=on,target=native", *clock, "-kernel", str(program)]
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=SECONDS, stdin=subprocess.DEVNULL)
    except subprocess.TimeoutExpired as error:
        raise DataError(f"the emulated network ran longer than {SECONDS} seconds; give fewer samples.") from error
    if done.returncode:
        raise DataError(f"the emulated network failed (exit {done.returncode} {done.stderr.strip()[:200]}); it may need more memory.")
    if not (folder / "out.bin").exists():
        raise DataError("the emulated network ended without a result; it may need more memory.")


def _quantizer(port: Mapping[str, Any]) -> Quantizer | None:
    if "scale" not in port:
        return None
    return Quantizer(IntFormat(bits=8), PerTensor(), (port["scale"],), (port["zero_point"],))


def _pack(inputs: Sequence[Array], ports: Sequence[Mapping[str, Any]]) -> bytes:
    """All samples, each with its inputs one after another."""
    if len(inputs) != len(ports):
        raise DataError(f"the file takes {len(ports)} inputs; got {len(inputs)}.")
    parts = []
    for array, port in zip(inputs, ports, strict=True):
        stored = np.ascontiguousarray(array.transpose(port["order"])) if array.ndim == len(port["order"]) else array
        if stored.shape[1:] != tuple(port["shape"][1:]):
            raise DataError(f"the input {port['name']!r} has the shape {array.shape}; stored it must be (N, {port['shape'][1:]}).")
        quantizer = _quantizer(port)
        if (quantizer is not None or port["dtype"] == "float32") and array.dtype != np.float32:
            raise DataError(f"the input {port['name']!r} is float32; got {array.dtype}.")
        codes = stored if quantizer is None else quantize(torch.from_numpy(stored.copy()), quantizer).numpy()
        parts.append(codes.astype(port["dtype"]).reshape(len(array), -1).view(np.uint8))
    return np.concatenate(parts, 1).tobytes()


def _unpack(data: bytes, ports: Sequence[Mapping[str, Any]], samples: int) -> dict[str, Array]:
    rows = np.frombuffer(data, np.uint8).reshape(samples, -1).copy()
    found, start = {}, 0
    for port in ports:
        size = prod(port["shape"]) * np.dtype(port["dtype"]).itemsize
        part = np.ascontiguousarray(rows[:, start : start + size]).view(port["dtype"])
        quantizer = _quantizer(port)
        real = part if quantizer is None else dequantize(torch.from_numpy(part.astype(np.float32)), quantizer).numpy()
        found[port["name"]] = real.reshape(samples, *port["shape"][1:]).transpose(np.argsort(port["order"]))
        start += size
    return found


def _values(ports: Sequence[Mapping[str, Any]], data: bytes, samples: int) -> dict[str, Array]:
    rows = np.frombuffer(data, np.int8).reshape(samples, -1).copy()
    found, start = {}, 0
    for port in ports:
        size = prod(port["shape"])
        part = rows[:, start : start + size].reshape(samples, *port["shape"][1:])
        found[port["name"]] = part.transpose(np.argsort(port["order"]))
        start += size
    return found
