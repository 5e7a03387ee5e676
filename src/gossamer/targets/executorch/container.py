"""The bytes of a .pte file whose one instruction calls XNNPACK: ExecuTorch's schemas through its own compiler, without its Python passes."""

from __future__ import annotations

import json
import struct
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from gossamer.targets.executorch.delegate import Delegate
from gossamer.targets.executorch.packages import folder

MOST_SAMPLES = 64  # in a call, where the batch size is free: memory for inputs and outputs is planned for this many
SEGMENT_ALIGNMENT = 128  # of where they begin, in bytes
ALIGNMENT = 16  # of each one, and of values in memory
_GRAPH, _PROGRAM = "backends/xnnpack/serialization/schema.fbs", "exir/_serialize/program.fbs"
_HEADER = struct.Struct("<4x4sHIIIQ")  # magic, size of this, then offset and size of the graph and of the constants
_EXTENDED = struct.Struct("<4sIQQQ")  # magic, size of this and of the program, then offset and size of the segments
_ITEM_BYTES = {"FLOAT": 4, "CHAR": 1}


@dataclass(frozen=True, slots=True)
class End:
    """An input or output: its shape at batch 1, ExecuTorch's name of its type, and the axis that grows with a free batch size."""

    shape: tuple[int, ...]
    dtype: str
    batched: int | None

    @property
    def largest(self) -> tuple[int, ...]:
        """The shape of as many samples as a call takes."""
        return tuple(size * MOST_SAMPLES if axis == self.batched else size for axis, size in enumerate(self.shape))


def to_bytes(delegate: Delegate, inputs: Sequence[End], outputs: Sequence[End]) -> bytes:
    """The file. Raises MissingRuntime without executorch."""
    segments, blob = [], bytearray()
    for part in (b"", _delegate_bytes(delegate), *delegate.constants.values()):  # first all constants of other kernels: none
        blob += bytes(-len(blob) % ALIGNMENT)
        segments.append({"offset": len(blob), "size": len(part)})
        blob += part
    program = _compiled(_PROGRAM, _program(inputs, outputs, segments, list(delegate.constants)))
    header = _EXTENDED.size  # a multiple of every alignment in the schema, so that nothing behind it moves off its place
    size = header + len(program)
    start = size + -size % SEGMENT_ALIGNMENT
    root = struct.pack("<I", struct.unpack_from("<I", program)[0] + header)
    extended = _EXTENDED.pack(b"eh00", header, size, start, len(blob))
    return b"".join((root, program[4:8], extended, program[8:], bytes(start - size), blob))


def _delegate_bytes(delegate: Delegate) -> bytes:
    graph = _compiled(_GRAPH, delegate.to_json())
    start = _HEADER.size + -_HEADER.size % ALIGNMENT
    header = _HEADER.pack(b"XH00", _HEADER.size, start, len(graph), start + len(graph), 0)
    return header.ljust(start, b"\0") + graph


def _program(inputs: Sequence[End], outputs: Sequence[End], segments: list[dict[str, int]], names: Sequence[str]) -> dict[str, Any]:
    values, offset = [], 0
    for end in (*inputs, *outputs):
        values.append({"val_type": "Tensor", "val": _tensor(end, offset)})
        offset += prod(end.largest) * _ITEM_BYTES[end.dtype]
        offset += -offset % ALIGNMENT
    numbers = list(range(len(values)))
    plan = {
        "name": "forward",
        "container_meta_type": {"encoded_inp_str": _structure(len(inputs), arguments=True), "encoded_out_str": _structure(len(outputs))},
        "values": values,
        "inputs": numbers[: len(inputs)],
        "outputs": numbers[len(inputs) :],
        "chains": [
            {
                "inputs": [],
                "outputs": [],
                "instructions": [{"instr_args_type": "DelegateCall", "instr_args": {"delegate_index": 0, "args": numbers}}],
            }
        ],
        "operators": [],
        "delegates": [{"id": "XnnpackBackend", "processed": {"location": "SEGMENT", "index": 1}, "compile_specs": []}],
        "non_const_buffer_sizes": [0, offset],
    }
    return {
        "version": 0,
        "execution_plan": [plan],
        "constant_buffer": [],
        "backend_delegate_data": [],
        "segments": segments,
        "constant_segment": {"segment_index": 0, "offsets": [0]},
        "named_data": [{"key": name, "segment_index": number} for number, name in enumerate(names, 2)],
    }


def _tensor(end: End, offset: int) -> dict[str, Any]:
    return {
        "scalar_type": end.dtype,
        "sizes": list(end.largest),
        "dim_order": list(range(len(end.shape))),
        "allocation_info": {"memory_id": 1, "memory_offset_low": offset % 2**32, "memory_offset_high": offset >> 32},
        "shape_dynamism": "STATIC" if end.batched is None else "DYNAMIC_BOUND",
    }


def _structure(count: int, *, arguments: bool = False) -> str:
    """How a flat list of tensors was nested, in PyTorch's notation: a tuple, as that of the arguments beside no named ones."""
    leaves: list[dict[str, Any]] = [{"type": None, "context": None, "children_spec": []}] * count
    found: dict[str, Any] = {"type": "builtins.tuple", "context": "null", "children_spec": leaves}
    if arguments:
        named = {"type": "builtins.dict", "context": "[]", "children_spec": []}
        found = {"type": "builtins.tuple", "context": "null", "children_spec": [found, named]}
    return json.dumps([1, found])


def _compiled(schema: str, data: dict[str, Any]) -> bytes:
    """The binary form of data in a schema that the package brings."""
    home = folder()
    with tempfile.TemporaryDirectory() as place:
        text = Path(place) / "data.json"
        text.write_text(json.dumps(data))
        command = [str(home / "data/bin/flatc"), "--binary", "-o", place, str(home / schema), str(text)]
        subprocess.run(command, check=True, capture_output=True)
        return next(path for path in Path(place).iterdir() if path != text).read_bytes()
