"""An ONNX graph as the rules ask about it: who makes a tensor, who reads it, what is constant, what has codes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

QUANTIZE, DEQUANTIZE = "QuantizeLinear", "DequantizeLinear"
LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
# TensorRT moves codes past these
MOVES = frozenset("Identity Reshape Transpose Flatten Squeeze Unsqueeze Slice MaxPool".split())
_SAME = ("Identity", "Cast")
INT8 = 3


class View:
    """A ModelProto's main graph, indexed once."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.nodes: tuple[Any, ...] = tuple(model.graph.node)
        self.inputs = {port.name for port in model.graph.input}
        self.outputs = {port.name for port in model.graph.output}
        self._initializers = {tensor.name: tensor for tensor in model.graph.initializer}
        self._makers = {name: node for node in self.nodes for name in node.output if name}
        self._readers: dict[str, list[Any]] = {}
        for node in self.nodes:
            for name in dict.fromkeys(node.input):
                self._readers.setdefault(name, []).append(node)

    def of_type(self, *ops: str) -> Iterator[Any]:
        """The nodes of these types, in order."""
        return (node for node in self.nodes if node.op_type in ops and not node.domain)

    def maker(self, tensor: str) -> Any | None:
        """The node that makes a tensor; None for inputs and initializers."""
        return self._makers.get(tensor)

    def readers(self, tensor: str) -> list[Any]:
        """The nodes that read a tensor, each once."""
        return self._readers.get(tensor, [])

    def stored(self, tensor: str) -> Any | None:
        """The TensorProto behind a constant, through Identity and Cast; None for what is computed."""
        if tensor in self._initializers:
            return self._initializers[tensor]
        node = self.maker(tensor)
        if node is None:
            return None
        if node.op_type == "Constant":
            return next((attribute.t for attribute in node.attribute if attribute.name == "value"), None)
        return self.stored(node.input[0]) if node.op_type in _SAME else None

    def is_constant(self, tensor: str) -> bool:
        """Whether a tensor is known when the file is loaded."""
        node = self.maker(tensor)
        return self.stored(tensor) is not None or (node is not None and node.op_type == "Constant")

    def numbers(self, tensor: str) -> Array | None:
        """The numbers of a constant of a type that numpy knows; None for anything else."""
        from onnx import numpy_helper

        found = self.stored(tensor)
        return None if found is None else np.asarray(numpy_helper.to_array(found))

    def decoder(self, tensor: str) -> Any | None:
        """The DequantizeLinear that makes a tensor, looked for behind ops that only move numbers."""
        node = self.maker(tensor)
        while node is not None and node.op_type in MOVES:
            node = self.maker(node.input[0])
        return node if node is not None and node.op_type == DEQUANTIZE else None

    def source(self, decoder: Any) -> str:
        """The tensor that was coded: what the QuantizeLinear before a DequantizeLinear reads; "" where there is none."""
        node = self.maker(decoder.input[0])
        return node.input[0] if node is not None and node.op_type == QUANTIZE else ""

    def runs_on_codes(self, node: Any) -> bool:
        """Whether a layer's two factors come from codes."""
        return node.op_type in LAYERS and all(self.decoder(name) is not None for name in node.input[:2])

    def weight(self, node: Any) -> str:
        """The input of a layer that holds a stored weight, codes or floats; "" where both factors are computed."""
        for name in (node.input[1], node.input[0])[: 2 if node.op_type == "MatMul" else 1]:
            decoder = self.maker(name)
            stored = decoder.input[0] if decoder is not None and decoder.op_type == DEQUANTIZE else name
            if self.is_constant(stored):
                return str(name)
        return ""


def name_of(node: Any) -> str:
    """What findings call a node."""
    return str(node.name or next((name for name in node.output if name), node.op_type))


def attribute(node: Any, name: str, default: Any) -> Any:
    """An attribute's value."""
    from onnx import helper

    return next((helper.get_attribute_value(item) for item in node.attribute if item.name == name), default)
