"""Running a .tflite file with the interpreter for microcontrollers, one sample at a time, and measuring its arena."""

from __future__ import annotations

import os
import re
import struct
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from gossamer.errors import DataError, FileError, MissingRuntime
from gossamer.program.program import Program
from gossamer.targets.target import check_threads
from gossamer.targets.tflite.note import Note, Order
from gossamer.targets.tflite.run import read_network

Array = npt.NDArray[Any]
ARENA_BYTES = 64 * 2**20  # what the interpreter may take; what it needs is measured


class MicroRunner:
    """An opened file. Arrays go in and come out with the axes that the network has; the interpreter sees one sample at a time."""

    def __init__(self, interpreter: Any, note: Note, exposed: Mapping[str, int]) -> None:
        self._interpreter, self._note = interpreter, note
        self._exposed = dict(exposed)

    def run(self, *inputs: Array) -> Array:
        """The network's output; the first one where there are several. Raises DataError for inputs that do not fit."""
        orders = {"output0": (0, self._note.outputs[0])}
        return self._run(inputs, orders)["output0"]

    def run_values(self, *inputs: Array) -> dict[str, Array]:
        """Outputs as output0, output1 ..., and the codes of every quantized value by its name, with the network's axes."""
        orders = {f"output{k}": (k, order) for k, order in enumerate(self._note.outputs)}
        behind = enumerate(self._exposed.items(), len(orders))
        orders |= {name: (place, self._note.values[number]) for place, (name, number) in behind}
        return self._run(inputs, orders)

    def arena_bytes(self) -> int:
        """Bytes of the arena that the interpreter took, after at least one run."""
        return _arena_bytes(self._interpreter)

    def _run(self, inputs: tuple[Array, ...], wanted: Mapping[str, tuple[int, Order]]) -> dict[str, Array]:
        stored = self._note.stored(inputs)
        parts: dict[str, list[Array]] = {name: [] for name in wanted}
        for sample in range(stored[0].shape[0]):
            try:
                for position, array in enumerate(stored):
                    self._interpreter.set_input(np.ascontiguousarray(array[sample : sample + 1]), position)
                self._interpreter.invoke()
            except (ValueError, RuntimeError) as error:
                raise DataError(f"the interpreter refuses these inputs ({error}); give arrays of the file's shapes and types.") from error
            for name, (position, order) in wanted.items():
                parts[name].append(self._interpreter.get_output(position).transpose(np.argsort(order)))
        return {name: np.concatenate(found) for name, found in parts.items()}


def open_file(path: Path, *, threads: int, values: bool = False) -> MicroRunner:
    """Open a file; microcontrollers have one thread. `values` also hands out the codes of every quantized value.

    Raises: MissingRuntime without tflite-micro; FileError for a file that is missing, damaged, or that holds an op that
    microcontrollers have no kernel for; ConfigError for another number of threads.
    """
    check_threads(threads, single=True)
    try:
        from tflite_micro.python.tflite_micro import runtime
    except ImportError as error:
        raise MissingRuntime("tflm", "running files for microcontrollers", "pip install --pre tflite-micro") from error
    data, note, exposed = read_network(Path(path), values=values)
    try:
        interpreter = runtime.Interpreter.from_bytes(data, arena_size=ARENA_BYTES)
    except (ValueError, RuntimeError, struct.error) as error:
        raise FileError(path, f"cannot be run by the interpreter for microcontrollers ({error})", "export it again") from error
    return MicroRunner(interpreter, note, exposed)


def notes(program: Program) -> tuple[str, ...]:
    """What readers of a report must know."""
    return ("Latencies are those of the interpreter's reference kernels on this machine, not a chip's.",)


def _arena_bytes(interpreter: Any) -> int:
    """The interpreter only prints it, from C++, so the process's own stderr is read."""
    kept = os.dup(2)
    with tempfile.TemporaryFile() as file:
        os.dup2(file.fileno(), 2)
        try:
            interpreter.print_allocations()
        finally:
            os.dup2(kept, 2)
            os.close(kept)
        file.seek(0)
        found = re.search(rb"Arena allocation total (\d+) bytes", file.read())
    if found is None:
        raise DataError("the interpreter does not tell how large its arena is; run the network first.")
    return int(found[1])
