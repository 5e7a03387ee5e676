"""Running a .tflite file with LiteRT's interpreter and its XNNPACK kernels."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from gossamer.errors import DataError, FileError, MissingRuntime, last_line
from gossamer.targets.seal import unsealed
from gossamer.targets.target import check_threads
from gossamer.targets.tflite.flat import IDENTIFIER, LAYOUT, pack, schema
from gossamer.targets.tflite.note import Note, Order, value_name

Array = npt.NDArray[Any]
_DAMAGES = (struct.error, ValueError, TypeError, AttributeError, LookupError)  # what offsets that lead nowhere end in


class LiteRtRunner:
    """An opened file. Arrays go in and come out with the axes that the network has, whatever order the file stores them in."""

    def __init__(self, interpreter: Any, note: Note, exposed: Mapping[str, int]) -> None:
        self._interpreter = interpreter
        self._exposed = dict(exposed)
        self._inputs = interpreter.get_input_details()
        outputs = interpreter.get_output_details()
        self._outputs = outputs[: len(outputs) - len(exposed)]
        self._note = note
        self._shapes: list[tuple[int, ...]] = []

    def run(self, *inputs: Array) -> Array:
        """The network's output; the first one where there are several. Raises DataError for inputs that do not fit."""
        self._invoke(inputs)
        return self._read(self._outputs[0]["index"], self._note.outputs[0])

    def run_values(self, *inputs: Array) -> dict[str, Array]:
        """Outputs as output0, output1 ..., and the codes of every quantized value by its name, with the network's axes."""
        self._invoke(inputs)
        found = {f"output{k}": self._read(entry["index"], self._note.outputs[k]) for k, entry in enumerate(self._outputs)}
        return found | {name: self._read(number, self._note.values[number]) for name, number in self._exposed.items()}

    def _invoke(self, inputs: tuple[Array, ...]) -> None:
        stored = self._note.stored(inputs)
        shapes = [array.shape for array in stored]
        try:
            if shapes != self._shapes:
                for entry, shape in zip(self._inputs, shapes, strict=True):
                    self._interpreter.resize_tensor_input(entry["index"], shape, strict=True)
                self._interpreter.allocate_tensors()
                self._shapes = shapes
            for entry, array in zip(self._inputs, stored, strict=True):
                self._interpreter.set_tensor(entry["index"], np.ascontiguousarray(array))
            self._interpreter.invoke()
        except (ValueError, RuntimeError) as error:
            raise DataError(f"LiteRT refuses these inputs ({last_line(error)}); give arrays of the file's shapes and types.") from error

    def _read(self, index: int, order: Order) -> Array:
        array: Array = self._interpreter.get_tensor(index)
        return array.transpose(np.argsort(order))


def open_file(path: Path, *, threads: int, values: bool = False) -> LiteRtRunner:
    """Open a file with this many threads; `values` also hands out the codes of every quantized value.

    Raises: MissingRuntime without ai-edge-litert; FileError for a file that is missing, damaged, or not written by this package;
    ConfigError for fewer than one thread.
    """
    check_threads(threads)
    try:
        from ai_edge_litert.interpreter import Interpreter
    except ImportError as error:
        raise MissingRuntime("litert", "running .tflite files", "pip install ai-edge-litert") from error
    data, note, exposed = read_network(Path(path), values=values)
    try:
        interpreter = Interpreter(model_content=data, num_threads=threads)
    except (ValueError, RuntimeError) as error:
        raise FileError(path, f"is not a .tflite file that LiteRT can run ({last_line(error)})", "export it again") from error
    return LiteRtRunner(interpreter, note, exposed)


def read_network(path: Path, *, values: bool) -> tuple[bytes, Note, dict[str, int]]:
    """What an interpreter is given, the note, and the numbers of the exposed values by name: of all quantized ones, or none.

    Raises: FileError for a file that is missing, damaged, or not written by this package.
    """
    data = read_file(path)
    note = read_note(path, data)
    if not values:
        return data, note, {}
    try:
        data, exposed = expose(data, note)
    except _DAMAGES as error:
        raise FileError(path, "is damaged", "export it again") from error
    return data, note, exposed


def read_file(path: Path) -> bytes:
    """The bytes of a .tflite file. Raises FileError for anything else."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise FileError(path, f"cannot be read ({error.strerror})", "give the path of an exported file") from error
    if data[4:8] != IDENTIFIER:
        raise FileError(path, "is not a .tflite file", "export it again")
    return unsealed(path, data)


def read_note(path: Path, data: bytes) -> Note:
    """What the file says of its inputs, outputs and values; nothing else is read."""
    try:
        model = schema().Model.GetRootAs(data, 0)
        for position in range(model.MetadataLength()):
            entry = model.Metadata(position)
            if entry.Name() == LAYOUT.encode():
                return Note.from_json(model.Buffers(entry.Buffer()).DataAsNumpy().tobytes().decode())
    except _DAMAGES as error:
        raise FileError(path, "is damaged", "export it again") from error
    raise FileError(path, "does not say how its inputs are stored", "export it again with this package")


def expose(data: bytes, note: Note) -> tuple[bytes, dict[str, int]]:
    """The file with every quantized value as an output, and the number of each."""
    model = schema().ModelT.InitFromPackedBuf(data, 0)
    graph = model.subgraphs[0]
    exposed = {value_name(graph.tensors[number].name.decode()): number for number in note.values}
    graph.outputs = [*graph.outputs, *exposed.values()]
    return pack(model), exposed
