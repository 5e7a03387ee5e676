"""From a draft to the bytes of a .tflite file, by the schema that the runtimes ship."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from types import ModuleType
from typing import Any

import numpy as np

from gossamer.errors import MissingRuntime
from gossamer.numerics.affine import Quantizer
from gossamer.targets.tflite.draft import Draft, DraftOp, DraftTensor
from gossamer.targets.tflite.note import Note

IDENTIFIER = b"TFL3"
LAYOUT = "gossamer.layout"  # metadata: a Note
_TYPES = {
    "float32": "FLOAT32",
    "float16": "FLOAT16",
    "int4": "INT4",
    "int8": "INT8",
    "uint8": "UINT8",
    "int16": "INT16",
    "int32": "INT32",
    "int64": "INT64",
    "bool": "BOOL",
}


def schema() -> ModuleType:
    """The generated classes of the .tflite format. Raises MissingRuntime where no package has them."""
    try:
        from ai_edge_litert import schema_py_generated

        return schema_py_generated  # type: ignore[no-any-return]
    except ImportError as error:
        raise MissingRuntime("litert", "writing .tflite files", "pip install ai-edge-litert") from error


def to_bytes(draft: Draft, inputs: Sequence[int], outputs: Sequence[int], said: Note, *, lean: bool = False) -> bytes:
    """The file, with what it says of itself in its metadata.

    lean  leave out what the interpreter for microcontrollers does not read, and LiteRT does: a zero point for each channel of a
          weight, 8 bytes each; the scales of biases, which follow from those of input and weight; which axes may grow
    """
    names = schema()
    model = names.ModelT()
    model.version, model.description = 3, "written by gossamer"
    model.buffers = [names.BufferT()]
    graph = names.SubGraphT()
    graph.name, graph.inputs, graph.outputs = "main", list(inputs), list(outputs)
    codings: dict[object, Any] = {}
    graph.tensors = [_tensor(names, model, tensor, lean, codings) for tensor in draft.tensors]
    codes = sorted({op.code for op in draft.ops})
    model.operatorCodes = [_operator_code(names, code) for code in codes]
    graph.operators = _operators(names, codes, draft.ops)
    model.subgraphs = [graph]
    model.signatureDefs = [_signature(names, draft, inputs, outputs)]
    note = names.MetadataT()
    note.name, note.buffer = LAYOUT, len(model.buffers)
    model.buffers.append(_buffer(names, np.frombuffer(said.to_json().encode(), np.uint8)))
    model.metadata = [note]
    return pack(model)


def pack(model: Any) -> bytes:
    """The bytes of a ModelT. Vectors of equal numbers are stored once: zero points alone are 8 bytes for each channel."""
    from flatbuffers import Builder

    class Sharing(Builder):  # type: ignore[misc]
        def CreateNumpyVector(self, numbers: np.ndarray) -> int:
            key = numbers.tobytes()
            if numbers.dtype == np.uint8:  # contents of a tensor, which kernels want to start at a multiple of 16
                self.StartVector(1, numbers.size, 16)
                self.head: int = self.head - len(key)
                self.Bytes[self.head : self.head + len(key)] = key
                self.vectorNumElems = numbers.size
                return int(self.EndVector())
            if (numbers.dtype.str, key) not in known:
                known[numbers.dtype.str, key] = super().CreateNumpyVector(numbers)
            return known[numbers.dtype.str, key]

    known: dict[tuple[str, bytes], int] = {}
    builder = Sharing(1024)
    builder.Finish(model.Pack(builder), file_identifier=IDENTIFIER)
    return bytes(builder.Output())


def _signature(names: ModuleType, draft: Draft, inputs: Sequence[int], outputs: Sequence[int]) -> Any:
    """Names of inputs and outputs, by which most tools call a file."""

    def named(wishes: Sequence[str], numbers: Sequence[int]) -> list[Any]:
        maps = []
        for wish, number in zip(wishes, numbers, strict=True):
            made = names.TensorMapT()
            made.name, made.tensorIndex = wish.encode(), number
            maps.append(made)
        return maps

    made = names.SignatureDefT()
    made.signatureKey, made.subgraphIndex = b"serving_default", 0
    made.inputs = named([draft.tensors[number].name for number in inputs], inputs)
    made.outputs = named([f"output{position}" for position in range(len(outputs))], outputs)
    return made


def _tensor(names: ModuleType, model: Any, tensor: DraftTensor, lean: bool, codings: dict[object, Any]) -> Any:
    made = names.TensorT()
    made.name, made.type = tensor.name.encode(), getattr(names.TensorType, _TYPES[tensor.dtype])
    made.shape = np.asarray(tensor.shape, np.int32)
    if tensor.batched is not None and not lean:
        made.shapeSignature = np.asarray([-1 if axis == tensor.batched else size for axis, size in enumerate(tensor.shape)], np.int32)
    made.buffer = 0
    if tensor.data is not None:
        made.buffer = len(model.buffers)
        model.buffers.append(_buffer(names, _packed(tensor.data) if tensor.dtype == "int4" else tensor.data.reshape(-1).view(np.uint8)))
    if tensor.quantizer is not None and not (lean and tensor.dtype == "int32"):
        key = (tensor.quantizer.scale, tensor.quantizer.zero_point, tensor.axis)
        if key not in codings:
            codings[key] = _once(_coding(names, tensor.quantizer, tensor.axis, lean))
        made.quantization = codings[key]
    return made


def _coding(names: ModuleType, quantizer: Quantizer, axis: int, lean: bool) -> Any:
    made = names.QuantizationParametersT()
    zero = np.asarray(quantizer.zero_point, np.int64)
    made.scale, made.zeroPoint = np.asarray(quantizer.scale, np.float32), zero[:1] if lean and not zero.any() else zero
    made.quantizedDimension = axis
    return made


def _once(table: Any) -> Any:
    """A table that several others point to: it is written once in each file."""
    table.Pack = lru_cache(maxsize=1)(table.Pack)
    return table


def _packed(codes: np.ndarray) -> np.ndarray:
    """Two codes in a byte, the first one in its lower half."""
    halves = codes.reshape(-1).astype(np.uint8) & 15
    halves = np.append(halves, np.zeros(halves.size % 2, np.uint8))
    return halves[::2] | halves[1::2] << 4


def _buffer(names: ModuleType, data: np.ndarray) -> Any:
    made = names.BufferT()
    made.data = data
    return made


def _operator_code(names: ModuleType, code: str) -> Any:
    made = names.OperatorCodeT()
    made.builtinCode = getattr(names.BuiltinOperator, code)
    made.deprecatedBuiltinCode, made.version = min(made.builtinCode, 127), _VERSIONS.get(code, 1)
    return made


# what a code needs to be accepted with int8, with one scale per channel, or with a free number of axes
_VERSIONS = {
    "CONV_2D": 3,
    "DEPTHWISE_CONV_2D": 3,
    "FULLY_CONNECTED": 5,
    "TRANSPOSE_CONV": 3,
    "ADD": 2,
    "SUB": 2,
    "MUL": 2,
    "CONCATENATION": 2,
    "MAX_POOL_2D": 2,
    "AVERAGE_POOL_2D": 2,
    "MEAN": 2,
    "SUM": 2,
    "PAD": 2,
    "PADV2": 2,
    "SOFTMAX": 2,
    "LOGISTIC": 2,
    "TANH": 2,
    "LEAKY_RELU": 2,
    "TRANSPOSE": 2,
    "STRIDED_SLICE": 2,
    "SLICE": 2,
    "SPLIT": 2,
    "BATCH_MATMUL": 2,
    "RESIZE_BILINEAR": 3,
    "RESIZE_NEAREST_NEIGHBOR": 3,
    "QUANTIZE": 2,
    "DEQUANTIZE": 5,
    "GELU": 2,
    "RELU": 2,
    "RELU6": 2,
    "RSQRT": 2,
    "GATHER": 2,
}


def _operators(names: ModuleType, codes: Sequence[str], ops: Sequence[DraftOp]) -> list[Any]:
    made, tables = [], dict[str, Any]()
    for op in ops:
        operator = names.OperatorT()
        operator.opcodeIndex = codes.index(op.code)
        operator.inputs, operator.outputs = np.asarray(op.inputs, np.int32), np.asarray(op.outputs, np.int32)
        if op.options:
            key = f"{op.options} {sorted(op.fields.items())}"
            tables[key] = tables.get(key) or _once(_options(names, op))
            operator.builtinOptionsType, operator.builtinOptions = getattr(names.BuiltinOptions, op.options), tables[key]
        made.append(operator)
    return made


def _options(names: ModuleType, op: DraftOp) -> Any:
    table = getattr(names, f"{op.options}T")()
    for field, value in op.fields.items():
        if not hasattr(table, field):
            raise AttributeError(f"{op.options} has no field {field}")
        setattr(table, field, value)
    return table
