"""Running an ONNX file on TensorRT, where there is a GPU; else on ONNX Runtime's CPU kernels, node by node as the file is written.

The stand-in shows that the file means what the simulation says, and what accuracy it has. It says nothing about TensorRT's speed, nor
whether its builder takes the file: `stands_in` says so wherever results are shown, and no latency is reported from it.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from gossamer.errors import DataError, FileError
from gossamer.program.program import Program
from gossamer.targets.onnx.expose import read_network
from gossamer.targets.onnx.run import OnnxRunner, start_session
from gossamer.targets.target import Runner, check_threads

Array = npt.NDArray[Any]
PACKAGE = "tensorrt"
INSTALL = "pip install tensorrt  (runs on machines with an NVIDIA GPU only)"


def stands_in() -> str:
    """What runs the files here in place of TensorRT, as a sentence; "" where TensorRT itself does."""
    missing = "no CUDA device" if not torch.cuda.is_available() else "" if _version() else "the package 'tensorrt' is not installed"
    if not missing:
        return ""
    return (
        f"Checked, not run on TensorRT ({missing}): the file keeps its documented rules; accuracy and parity are those of ONNX "
        "Runtime's CPU kernels, node by node as the file is written; latency was not measured."
    )


def find_version() -> str | None:
    """TensorRT's version where it can run, else None."""
    return None if stands_in() else _version()


def notes(program: Program) -> tuple[str, ...]:
    """What readers of a report must know."""
    sentence = stands_in()
    return (sentence,) if sentence else ()


def _version() -> str | None:
    try:
        return version(PACKAGE)
    except PackageNotFoundError:
        return None


def open_file(path: Path, *, threads: int, values: bool = False) -> Runner:
    """Open a file on TensorRT, which builds an engine for the largest batch that it meets, or on the stand-in.

    threads  of the stand-in; a GPU has none
    values   also hand out the codes of every quantized value

    Raises: FileError for a file that is missing, damaged, or that TensorRT's parser or builder refuses (in its words); ConfigError for
    fewer than one thread.
    """
    check_threads(threads)
    path = Path(path)
    data, exposed = read_network(path, values=values)
    if stands_in():
        return OnnxRunner(start_session(path, data, threads=threads, as_written=True), exposed)
    return TensorRtRunner(path, data, exposed, torch.device("cuda"))


class TensorRtRunner:
    """An opened file. Outputs come back as arrays in the file's order; one output comes back bare. Times of calls hold copies to the
    GPU and back."""

    def __init__(self, path: Path, data: bytes, exposed: Mapping[str, str], device: torch.device) -> None:
        import tensorrt

        self._trt, self._path, self._data, self._device = tensorrt, path, data, device
        self._exposed = dict(exposed)
        self._logger = tensorrt.Logger(tensorrt.Logger.ERROR)
        self._engine, self._context = self._build(1)
        self._batch = 1
        names = [self._engine.get_tensor_name(place) for place in range(self._engine.num_io_tensors)]
        kinds = {name: self._engine.get_tensor_mode(name) for name in names}
        self._inputs = [name for name in names if kinds[name] == tensorrt.TensorIOMode.INPUT]
        hidden = set(self._exposed.values())
        self._outputs = [name for name in names if name not in self._inputs and name not in hidden]

    def run(self, *inputs: Array) -> Array:
        """The network's output; the first one where there are several. Raises DataError for inputs that do not fit."""
        return self._run(inputs)[self._outputs[0]]

    def run_values(self, *inputs: Array) -> dict[str, Array]:
        """Outputs by their names in the file, and the codes of every quantized value by value name."""
        found = self._run(inputs)
        return {name: found[tensor] for name, tensor in {**{name: name for name in self._outputs}, **self._exposed}.items()}

    def _run(self, inputs: tuple[Array, ...]) -> dict[str, Array]:
        if len(inputs) != len(self._inputs):
            raise DataError(f"the file takes {len(self._inputs)} inputs ({', '.join(self._inputs)}); got {len(inputs)}.")
        batch = max((array.shape[0] for array in inputs if array.ndim), default=1)
        if batch > self._batch:
            self._engine, self._context = self._build(batch)
            self._batch = batch
        context, trt = self._context, self._trt
        buffers: dict[str, torch.Tensor] = {}
        for name, array in zip(self._inputs, inputs, strict=True):
            wanted = trt.nptype(self._engine.get_tensor_dtype(name))
            if array.dtype != wanted:
                raise DataError(f"TensorRT refuses these inputs ({name!r} is {np.dtype(wanted)}, not {array.dtype}).")
            if not context.set_input_shape(name, tuple(array.shape)):
                raise DataError(f"TensorRT refuses these inputs ({name!r} cannot have the shape {array.shape}); give the file's shapes.")
            buffers[name] = torch.from_numpy(np.ascontiguousarray(array)).to(self._device)
        for name in (*self._outputs, *self._exposed.values()):
            kind = torch.from_numpy(np.empty(0, trt.nptype(self._engine.get_tensor_dtype(name)))).dtype
            buffers[name] = torch.empty(tuple(context.get_tensor_shape(name)), dtype=kind, device=self._device)
        for name, buffer in buffers.items():
            context.set_tensor_address(name, buffer.data_ptr())
        stream = torch.cuda.current_stream(self._device)
        if not context.execute_async_v3(stream.cuda_stream):
            raise DataError("TensorRT failed to run the file on these inputs; its log says why.")
        stream.synchronize()
        return {name: buffers[name].cpu().numpy() for name in (*self._outputs, *self._exposed.values())}

    def _build(self, batch: int) -> tuple[Any, Any]:
        """An engine for batches of up to `batch` samples, and a context to run it; types are those of the file, and float32 is float32."""
        trt = self._trt
        builder = trt.Builder(self._logger)
        network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
        parser = trt.OnnxParser(network, self._logger)
        if not parser.parse(self._data):
            reasons = "; ".join(str(parser.get_error(place)) for place in range(parser.num_errors))
            raise FileError(self._path, f"is refused by TensorRT's parser ({reasons})", "check it with gossamer inspect --target tensorrt")
        config = builder.create_builder_config()
        config.clear_flag(trt.BuilderFlag.TF32)
        profile = builder.create_optimization_profile()
        for place in range(network.num_inputs):
            port = network.get_input(place)
            shapes = [tuple(size if size >= 0 else number for size in port.shape) for number in (1, batch, batch)]
            profile.set_shape(port.name, *shapes)
        config.add_optimization_profile(profile)
        plan = builder.build_serialized_network(network, config)
        if plan is None:
            raise FileError(self._path, "is refused by TensorRT's builder; its log says why", "export it again")
        engine = trt.Runtime(self._logger).deserialize_cuda_engine(plan)
        return engine, engine.create_execution_context()
