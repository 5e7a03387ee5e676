"""From a draft to the file format. The only file of this package that needs onnx to write."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from gossamer.errors import ConfigError, MissingRuntime, UnsupportedOp
from gossamer.targets.onnx.draft import Draft
from gossamer.targets.onnx.storage import STORAGES, stored_bytes, stored_size

OPSET = 20
LIMIT_BYTES = 2**31 - 2**20  # of a protobuf message, less what the graph takes
IR_VERSION = 9  # what opset 20 was released with; every ONNX Runtime since 1.17 reads it

_NUMPY = {
    torch.float32: np.float32,
    torch.float64: np.float64,
    torch.float16: np.float16,
    torch.int64: np.int64,
    torch.int32: np.int32,
    torch.int16: np.int16,
    torch.int8: np.int8,
    torch.uint8: np.uint8,
    torch.bool: np.bool_,
}


@dataclass(frozen=True, slots=True)
class Port:
    """An input or output of the graph: sizes are numbers or names of free sizes."""

    name: str
    dtype: torch.dtype
    shape: tuple[int | str | None, ...]


def numpy_dtype(dtype: torch.dtype) -> Any:
    """The numpy type of the same numbers. Raises UnsupportedOp for one that ONNX files of ours do not hold."""
    if dtype not in _NUMPY:
        raise UnsupportedOp(str(dtype), "", needed="ONNX", way_out="convert the model with .float()")
    return _NUMPY[dtype]


def onnx_dtype(dtype: torch.dtype) -> int:
    """The TensorProto code of a dtype."""
    codes = {
        torch.float32: 1,
        torch.uint8: 2,
        torch.int8: 3,
        torch.int16: 5,
        torch.int32: 6,
        torch.int64: 7,
        torch.bool: 9,
        torch.float16: 10,
        torch.float64: 11,
    }
    numpy_dtype(dtype)
    return codes[dtype]


def to_bytes(draft: Draft, inputs: Sequence[Port], outputs: Sequence[Port], metadata: Mapping[str, str] | None = None) -> bytes:
    """Serialize. The file holds no names but those of tensors, no documentation and no metadata but what is given.

    Raises: MissingRuntime without the onnx package; ConfigError for weights above 2 GB, the format's limit.
    """
    try:
        from onnx import ModelProto, TensorProto, helper
    except ImportError as error:
        raise MissingRuntime("onnx", "writing ONNX files", "pip install onnx") from error
    size = sum(stored_size(value, draft.stored.get(name, "")) for name, value in draft.initializers.items())
    if size > LIMIT_BYTES:
        raise ConfigError(
            "the size of the weights", f"{size / 1e9:.2f} GB", f"at most {LIMIT_BYTES / 1e9:.2f} GB, what one ONNX file holds"
        )
    needed = [STORAGES[draft.stored[name]] for name in draft.initializers if name in draft.stored]
    opsets = [helper.make_opsetid("", max([OPSET, *(storage.opset for storage in needed)]))]
    opsets += [helper.make_opsetid(domain, 1) for domain in sorted({_domain(node.op) for node in draft.nodes} - {""})]
    ir_version = max([IR_VERSION, *(storage.ir_version for storage in needed)])
    model = ModelProto(ir_version=ir_version, producer_name="gossamer", opset_import=opsets)
    for key, text in (metadata or {}).items():
        model.metadata_props.add(key=key, value=text)
    graph = model.graph  # filled in place: onnx.helper's own functions copy the weights three times
    graph.name = "g"
    graph.node.extend(
        helper.make_node(node.op.split("::")[-1], node.inputs, node.outputs, domain=_domain(node.op) or None, **dict(node.attributes))
        for node in draft.nodes
    )
    for side, ports in ((graph.input, inputs), (graph.output, outputs)):
        side.extend(helper.make_tensor_value_info(port.name, onnx_dtype(port.dtype), port.shape) for port in ports)
    for name, value in draft.initializers.items():
        stored = draft.stored.get(name, "")
        try:
            data_type = TensorProto.DataType.Value(stored) if stored else helper.np_dtype_to_tensor_dtype(value.dtype)
        except ValueError as error:
            raise MissingRuntime(f"onnx that knows {stored}", "writing this file", "pip install --upgrade onnx onnxruntime") from error
        graph.initializer.add(name=name, dims=value.shape, data_type=data_type, raw_data=stored_bytes(value, stored))
    data: bytes = model.SerializeToString()
    return data


def _domain(op: str) -> str:
    """ "com.microsoft" of "com.microsoft::MatMulNBits", "" of "Conv"."""
    return op.rpartition("::")[0]
