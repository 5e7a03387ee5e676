"""Which kernels a .pte file calls: XNNPACK's by kind and number format, and the portable ones, read from the file itself."""

from __future__ import annotations

import json
import re
import struct
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gossamer.errors import FileError
from gossamer.targets.executorch.packages import part, quiet
from gossamer.targets.seal import unsealed

PORTABLE = "portable"
_CODES = ("qint8", "qcint8", "quint8")
_HEADER_BYTES = 30


@dataclass(frozen=True, slots=True)
class Kernel:
    """One call. `kind`: XNNPACK's name, such as Conv2d or FullyConnected, or a portable op's; `format`: of its result, or "portable"."""

    kind: str
    format: str

    @property
    def integer(self) -> bool:
        """Whether it computes on codes."""
        return self.format in _CODES


def kernels_of(path: Path) -> tuple[Kernel, ...]:
    """All of them, delegate by delegate, the portable ones last. Raises FileError for a damaged file; MissingRuntime without executorch."""
    reader = part("exir._serialize._program")
    try:
        with quiet():
            program = reader.deserialize_pte_binary(unsealed(path, Path(path).read_bytes())).program
        plan = program.execution_plan[0]
        found = [
            kernel
            for delegate in plan.delegates
            for kernel in _delegated(bytes(program.backend_delegate_data[delegate.processed.index].data))
        ]
        calls = [call.instr_args for chain in plan.chains for call in chain.instructions]
    except (
        OSError,
        ValueError,
        KeyError,
        IndexError,
        RuntimeError,
        AttributeError,
        TypeError,
        struct.error,
    ) as error:  # whatever offsets lead to
        raise FileError(path, f"cannot be read as a .pte file ({error})", "export it again") from error
    ops = [plan.operators[call.op_index] for call in calls if hasattr(call, "op_index")]
    return (*found, *(Kernel(op.name.partition("::")[2], PORTABLE) for op in ops if not op.name.startswith("executorch_prim")))


def _delegated(blob: bytes) -> Iterator[Kernel]:
    """Nodes of one of XNNPACK's graphs."""
    header = part("backends.xnnpack.serialization.xnnpack_graph_serialize").XNNHeader.from_bytes(blob[:_HEADER_BYTES])
    graph = _as_json(blob[header.flatbuffer_offset : header.flatbuffer_offset + header.flatbuffer_size])
    formats = {}
    for value in graph["xvalues"]:
        tensor = value["xvalue_union"]
        tensor = tensor.get("tensor_value", tensor)
        formats[tensor["id_out"]] = tensor["datatype"].removeprefix("xnn_datatype_")
    for node in graph["xnodes"]:
        yield Kernel(node["xnode_union_type"].removeprefix("XNN"), formats[node["xnode_union"]["output_id"]])


def _as_json(flatbuffer: bytes) -> Mapping[str, Any]:
    serializer = part("backends.xnnpack.serialization.xnnpack_graph_serialize")
    with tempfile.TemporaryDirectory() as folder:
        schema, binary = Path(folder) / "schema.fbs", Path(folder) / "graph.bin"
        schema.write_bytes(serializer._get_schema_bytes())
        binary.write_bytes(flatbuffer)
        part("exir._serialize._flatbuffer")._flatc_decompile(folder, str(schema), str(binary))
        text = re.sub(rb"(:\s*-?)inf\b", rb"\1Infinity", (Path(folder) / "graph.json").read_bytes())  # limits that are none
        graph: Mapping[str, Any] = json.loads(text)
        return graph
