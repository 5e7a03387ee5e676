"""Running an ONNX file on OpenVINO's CPU kernels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from gossamer.errors import DataError, FileError, MissingRuntime, last_line
from gossamer.targets.onnx.expose import read_network
from gossamer.targets.target import check_threads

Array = npt.NDArray[Any]
INSTALL = "pip install 'gossamer[openvino]'"


class OpenVinoRunner:
    """An opened file. Outputs come back as arrays in the file's order; one output comes back bare."""

    def __init__(self, compiled: Any, exposed: Mapping[str, str]) -> None:
        self.compiled = compiled
        self._request = compiled.create_infer_request()
        self._ports = {name: port for port in compiled.outputs for name in port.get_names()}
        self._inputs = [port.get_any_name() for port in compiled.inputs]
        self._types = [np.dtype(port.get_element_type().to_dtype()) for port in compiled.inputs]
        self._exposed = dict(exposed)  # value name -> tensor of its codes, or the value itself
        hidden = set(exposed.values())
        self._outputs = [min(names) for port in compiled.outputs if not hidden & (names := port.get_names())]

    def run(self, *inputs: Array) -> Array:
        """The network's output; the first one where there are several. Raises DataError for inputs that do not fit."""
        self._infer(inputs)
        return self._result(self._outputs[0])

    def run_values(self, *inputs: Array) -> dict[str, Array]:
        """Outputs by their names in the file, and the codes of every quantized value by value name."""
        self._infer(inputs)
        return {name: self._result(tensor) for name, tensor in {**{name: name for name in self._outputs}, **self._exposed}.items()}

    def _result(self, tensor: str) -> Array:
        return np.array(self._request.get_tensor(self._ports[tensor]).data)  # a copy: the next call writes there again

    def _infer(self, inputs: tuple[Array, ...]) -> None:
        if len(inputs) != len(self._inputs):
            raise DataError(f"the file takes {len(self._inputs)} inputs ({', '.join(self._inputs)}); got {len(inputs)}.")
        for array, name, dtype in zip(inputs, self._inputs, self._types, strict=True):
            if array.dtype != dtype:  # OpenVINO would convert it
                raise DataError(f"OpenVINO refuses these inputs ({name!r} is {dtype}, not {array.dtype}); give arrays of the file's types.")
        try:
            self._request.infer(list(map(np.ascontiguousarray, inputs)), share_inputs=True)
        except (RuntimeError, TypeError, ValueError) as error:
            raise DataError(f"OpenVINO refuses these inputs ({last_line(error)}); give arrays of the file's shapes and types.") from error


def open_model(path: Path, *, threads: int, values: bool = False) -> OpenVinoRunner:
    """Open a file with this many threads; `values` also exposes the codes of every quantized value that is written to memory.

    A convolution and the addition behind it are one kernel, which keeps the codes between them to itself; a file that hands them
    out runs two. Both may round a tie another way, so that outputs are as far apart as two roundings of one network.
    Floats are computed in float32, whatever faster format the processor has: figures of speed then compare like with like.
    Raises: MissingRuntime without openvino; FileError for a file that is missing, damaged or no ONNX; ConfigError
    for fewer than one thread.
    """
    check_threads(threads)
    path = Path(path)
    data, exposed = read_network(path, values=values)
    return OpenVinoRunner(compile_model(path, data, threads=threads), exposed)


def compile_model(path: Path, model: Any, *, threads: int) -> Any:
    """An openvino.CompiledModel on the CPU, of the bytes of an ONNX file or of an openvino.Model. Raises MissingRuntime and FileError."""
    try:
        import openvino
    except ImportError as error:
        raise MissingRuntime("openvino", "running files on OpenVINO", INSTALL) from error
    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1}
    core = openvino.Core()
    try:
        return core.compile_model(core.read_model(model) if isinstance(model, bytes) else model, "CPU", settings)
    except (RuntimeError, ValueError) as error:
        raise FileError(path, f"is not an ONNX file that OpenVINO can run ({last_line(error)})", "export it again") from error


@dataclass(frozen=True, slots=True)
class Kernel:
    """One node of the graph that OpenVINO runs.

    kind    its type, such as "Convolution"
    name    of the kernel, with the format that it computes in at its end: "brgconv_avx512_I8"
    result  element type of what it writes, such as "u8"
    made    names of the tensors of the file that it computes, the one that it writes last
    """

    kind: str
    name: str
    result: str
    made: tuple[str, ...]


def kernels_of(compiled: Any) -> tuple[Kernel, ...]:
    """What a compiled model runs, in order, constants left out: the proof of which layers are computed in integers."""

    def text(facts: Any, key: str) -> str:
        return str(facts[key].value) if key in facts else ""

    found = []
    for node in compiled.get_runtime_model().get_ordered_ops():
        facts = node.get_rt_info()
        kind = text(facts, "layerType")
        if kind != "Const":
            made = tuple(name for name in text(facts, "originalLayersNames").split(",") if name)
            found.append(Kernel(kind, text(facts, "primitiveType"), text(facts, "outputPrecisions"), made))
    return tuple(found)
