"""XNNPACK's graph while it is being written: values, nodes and constants as ExecuTorch's schema names them, numbered as they come."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from math import inf
from typing import Any

import numpy as np
import numpy.typing as npt

from gossamer.numerics.affine import Quantizer
from gossamer.numerics.formats import PerAxis

Array = npt.NDArray[Any]
ABSENT = 2**32 - 1  # in place of a value's number
ELSEWHERE = 2**64 - 1  # in place of an offset: a constant that the file holds by name
_NAME_LETTERS = 32  # the runtime may share constants between files, so that a name must tell what it stands for
_INPUT, _OUTPUT = 1, 2  # flags of values that the caller hands in and takes out
_TYPES = {"float32": "fp32", "int8": "qint8", "int32": "qint32"}
_PER_CHANNEL = {"int8": "qcint8", "int32": "qcint32"}


class Delegate:
    """Collects values and nodes. Equal constants are stored once; inputs and outputs are numbered in the order in which they come.

    Constants lie beside the graph, each by its name: the runtime lets go of the graph's own bytes once it is loaded, and of a named constant only
    where a kernel has packed it.
    """

    def __init__(self) -> None:
        self.constants: dict[str, bytes] = {}  # by the names that the graph calls them
        self._values: list[dict[str, Any]] = []
        self._nodes: list[dict[str, Any]] = []
        self._places: list[dict[str, Any]] = [{"offset": 0, "size": 0}]  # number 0 stands for "no constant"
        self._stored: dict[str, int] = {}
        self._known: dict[tuple[object, ...], int] = {}
        self._ends: list[int] = []
        self._inputs = 0

    def value(self, shape: Sequence[int], dtype: str, quantizer: Quantizer | None = None) -> int:
        """Number of a new value that a node computes."""
        return self._value(shape, dtype, quantizer, 0, 0)

    def constant(self, data: Array, quantizer: Quantizer | None = None, axis: int = 0) -> int:
        """Number of a value with these contents; `axis`: of the scales, where there are several."""
        data = np.ascontiguousarray(data)
        place = self._place(data)
        key = (place, data.dtype.name, data.shape, quantizer, axis)
        if key not in self._known:
            self._known[key] = self._value(data.shape, data.dtype.name, quantizer, place, axis)
        return self._known[key]

    def input(self, shape: Sequence[int], dtype: str) -> int:
        """Number of a new value that the caller hands in; all inputs come before the first output."""
        number = self.value(shape, dtype)
        self._inputs += 1
        self._make_end(number, _INPUT)
        return number

    def give(self, number: int) -> None:
        """Hand a value out that a node computes and that is not handed out yet."""
        self._make_end(number, _OUTPUT)

    def is_end(self, number: int) -> bool:
        """Whether a value is handed in or out."""
        return number in self._ends

    def node(self, kind: str, limits: tuple[float, float] | None = None, **fields: Any) -> None:
        """Add a node: its fields by the schema's names, with flags 0 unless they are given; `limits` clamp its result."""
        made: dict[str, Any] = {"xnode_union_type": f"XNN{kind}", "xnode_union": {"flags": 0, **fields}, "debug_handle": len(self._nodes)}
        if limits is not None:
            low, high = (str(limit) if limit in (inf, -inf) else limit for limit in limits)
            made["output_min_max"] = {"output_min": low, "output_max": high}
        self._nodes.append(made)

    def to_json(self) -> dict[str, Any]:
        """The graph as the schema has it, without the constants' bytes."""
        return {
            "version": "0",
            "xnodes": self._nodes,
            "xvalues": self._values,
            "num_externs": len(self._ends),
            "input_ids": self._ends[: self._inputs],
            "output_ids": self._ends[self._inputs :],
            "constant_data": self._places,
        }

    def _value(self, shape: Sequence[int], dtype: str, quantizer: Quantizer | None, place: int, axis: int) -> int:
        number, sizes = len(self._values), [int(size) for size in shape] or [1]
        tensor = {"num_dims": len(sizes), "dims": sizes, "constant_buffer_idx": place, "external_id": ABSENT, "flags": 0, "id_out": number}
        if quantizer is None:
            tensor["datatype"] = f"xnn_datatype_{_TYPES[dtype]}"
            self._values.append({"xvalue_union_type": "XNNTensorValue", "xvalue_union": tensor})
            return number
        coding: dict[str, Any] = {"scale": quantizer.scale[0], "zero_point": quantizer.zero_point[0]}
        several = isinstance(quantizer.granularity, PerAxis)
        if several:
            scales = np.asarray(quantizer.scale, np.float32)
            coding = {"channel_dim": axis, "scale_buffer_idx": self._place(scales), "num_scales": len(scales)}
        tensor["datatype"] = f"xnn_datatype_{(_PER_CHANNEL if several else _TYPES)[dtype]}"
        made = {"tensor_value": tensor, "quant_params_type": "PerChannelQuant" if several else "PerTensorQuant", "quant_params": coding}
        self._values.append({"xvalue_union_type": "XNNQuantizedTensorValue", "xvalue_union": made})
        return number

    def _place(self, data: Array) -> int:
        key = hashlib.sha256(data.reshape(-1).view(np.uint8).data).hexdigest()[:_NAME_LETTERS]
        if key not in self._stored:
            self._stored[key] = len(self._places)
            self._places.append({"offset": ELSEWHERE, "size": data.nbytes, "named_key": key})
            self.constants[key] = data.tobytes()
        return self._stored[key]

    def _make_end(self, number: int, flag: int) -> None:
        tensor = self._values[number]["xvalue_union"]
        tensor = tensor.get("tensor_value", tensor)
        tensor["external_id"], tensor["flags"] = len(self._ends), flag
        self._ends.append(number)
