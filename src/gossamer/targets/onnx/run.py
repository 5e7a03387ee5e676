"""Running an ONNX file on ONNX Runtime's CPU kernels."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy.typing as npt

from gossamer.errors import DataError, FileError, MissingRuntime, first_line
from gossamer.targets.onnx.cpu import EXACT, PRECISE, saturates
from gossamer.targets.onnx.expose import read_network
from gossamer.targets.target import check_threads

Array = npt.NDArray[Any]


class OnnxRunner:
    """An opened file. Outputs come back as arrays in the file's order; one output comes back bare."""

    def __init__(self, session: Any, exposed: Mapping[str, str]) -> None:
        self._session = session
        self._inputs = [port.name for port in session.get_inputs()]
        self._exposed = dict(exposed)  # value name -> tensor of its codes, or the value itself
        self._outputs = [port.name for port in session.get_outputs() if port.name not in set(exposed.values())]

    def run(self, *inputs: Array) -> Array:
        """The network's output; the first one where there are several. Raises DataError for inputs that do not fit."""
        result: Array = self._run(self._outputs, inputs)[0]
        return result

    def run_values(self, *inputs: Array) -> dict[str, Array]:
        """Outputs by their names in the file, the codes of every quantized value, and the floats that products with weights in
        blocks read, by value name.

        A value that shares the codes of another one (a dropout, say) is not listed again.
        """
        wanted = [*self._outputs, *self._exposed.values()]
        return dict(zip([*self._outputs, *self._exposed], self._run(wanted, inputs), strict=True))

    def _run(self, wanted: list[str], inputs: tuple[Array, ...]) -> list[Array]:
        if len(inputs) != len(self._inputs):
            raise DataError(f"the file takes {len(self._inputs)} inputs ({', '.join(self._inputs)}); got {len(inputs)}.")
        errors = _runtime_errors()
        try:
            results: list[Array] = self._session.run(wanted, dict(zip(self._inputs, inputs, strict=True)))
        except errors as error:
            raise DataError(f"ONNX Runtime refuses these inputs ({_reason(error)}); give arrays of the file's shapes and types.") from error
        return results


def open_session(path: Path, *, threads: int, values: bool = False) -> OnnxRunner:
    """Open a file with this many threads; `values` also exposes the codes of every quantized value and what products in blocks read.

    Threads sleep while they wait, since spinning ones take time from each other on a busy machine. Where this processor saturates
    (targets.onnx.cpu) and the file does not say that its codes cannot, the session computes with unsigned weights instead, which is exact.
    Raises: MissingRuntime without onnxruntime; FileError for a file that is missing, damaged or no ONNX; ConfigError
    for fewer than one thread.
    """
    check_threads(threads)
    data, exposed = read_network(Path(path), values=values)
    return OnnxRunner(start_session(Path(path), data, threads=threads), exposed)


def start_session(path: Path, data: bytes, *, threads: int, optimized: Path | None = None, as_written: bool = False) -> Any:
    """An InferenceSession on the CPU; writes the optimized graph to `optimized` where that is given. `as_written`: nothing is fused."""
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingRuntime("onnxruntime", "running ONNX files", "pip install onnxruntime") from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if as_written:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    if EXACT.encode() not in data and saturates():
        options.add_session_config_entry(*PRECISE)
    if optimized is not None:
        options.optimized_model_filepath = str(optimized)
    try:
        return onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    except _runtime_errors() as error:
        raise FileError(path, f"is not an ONNX file that ONNX Runtime can run ({_reason(error)})", "export it again") from error


def _runtime_errors() -> tuple[type[Exception], ...]:
    """What ONNX Runtime raises: classes of its C++ module, all derived from Exception alone."""
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    named = [getattr(state, name) for name in dir(state)]
    raised = tuple(cls for cls in named if isinstance(cls, type) and issubclass(cls, Exception))
    return (*raised, RuntimeError, ValueError)


def _reason(error: Exception) -> str:
    return first_line(error).removeprefix("[ONNXRuntimeError] : ")
