"""Looking inside an ONNX file of ours: a copy that also hands out the codes of every quantized value."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gossamer.errors import FileError, MissingRuntime
from gossamer.targets.onnx.coding import CODES

TENSOR_FLOAT = 1  # TensorProto.FLOAT


def read(path: Path) -> bytes:
    """The bytes of a file. Raises FileError when it cannot be read."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise FileError(path, f"cannot be read ({error.strerror})", "name an existing ONNX file") from error


def parse(path: Path, data: bytes) -> Any:
    """The ModelProto. Raises MissingRuntime without onnx; FileError for bytes that are none."""
    try:
        import onnx
        from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
    except ImportError as error:
        raise MissingRuntime("onnx", "reading ONNX files", "pip install onnx") from error
    try:
        model = onnx.load_from_string(data)
    except DecodeError as error:
        raise FileError(path, "is no ONNX file, or was cut off", "export it again") from error
    if not model.graph.node and not model.graph.output:
        raise FileError(path, "holds no network", "export it again")
    return model


def expose(path: Path, data: bytes) -> tuple[bytes, dict[str, str]]:
    """A copy of the file whose code tensors (and inputs of products in blocks) are outputs, and value name -> tensor.

    ONNX Runtime fuses the same kernels as without: what leaves a fused kernel is the code tensor itself.
    Raises: MissingRuntime without onnx; FileError for bytes that are no ONNX file.
    """
    model = parse(path, data)
    from onnx import helper

    exposed: dict[str, str] = {}
    zeros = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type in ("QuantizeLinear", "Clip") and node.output[0].endswith(CODES):
            name = node.output[0]
            exposed[name.removesuffix(CODES)] = name
            model.graph.output.append(helper.make_tensor_value_info(name, zeros[node.input[2]], None))
        elif node.op_type in ("MatMulNBits", "DynamicQuantizeLinear") and node.input[0] not in {
            *exposed,
            *(port.name for port in model.graph.input),
        }:
            exposed[node.input[0]] = node.input[0]  # what it rounds
            model.graph.output.append(helper.make_tensor_value_info(node.input[0], TENSOR_FLOAT, None))
    copy: bytes = model.SerializeToString()
    return copy, exposed


def read_network(path: Path, *, values: bool) -> tuple[bytes, dict[str, str]]:
    """A file as a runtime is given it, and the exposed tensors' names by value: of all quantized values, or none. Raises FileError."""
    data = read(path)
    return expose(path, data) if values else (data, {})
