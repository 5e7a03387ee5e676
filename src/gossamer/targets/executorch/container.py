"""The bytes of a .pte file that calls XNNPACK and portable kernels: ExecuTorch's schemas through its own compiler, without its Python passes."""

from __future__ import annotations

import json
import struct
import subprocess
from collections.abc import Sequence
from typing import Any

from gossamer.files import temporary_folder
from gossamer.targets.executorch.calls import ALIGNMENT, Calls
from gossamer.targets.executorch.delegate import Delegate
from gossamer.targets.executorch.packages import folder

SEGMENT_ALIGNMENT = 128  # of where they begin, in bytes
_GRAPH, _PROGRAM = "backends/xnnpack/serialization/schema.fbs", "exir/_serialize/program.fbs"
_HEADER = struct.Struct("<4x4sHIIIQ")  # magic, size of this, then offset and size of the graph and of the constants
_EXTENDED = struct.Struct("<4sIQQQ")  # magic, size of this and of the program, then offset and size of the segments


def to_bytes(delegate: Delegate, calls: Calls, inputs: Sequence[int], outputs: Sequence[int]) -> bytes:
    """The file, which takes and hands out these values. Raises MissingRuntime without executorch."""
    segments, blob = [], bytearray()
    constants, offsets = calls.constants()
    for part in (constants, _delegate_bytes(delegate), *delegate.constants.values()):
        blob += bytes(-len(blob) % ALIGNMENT)
        segments.append({"offset": len(blob), "size": len(part)})
        blob += part
    data = _program(calls, inputs, outputs)
    data |= {
        "segments": segments,
        "constant_segment": {"segment_index": 0, "offsets": offsets},
        "named_data": [{"key": name, "segment_index": number} for number, name in enumerate(delegate.constants, 2)],
    }
    program = _compiled(_PROGRAM, data)
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


def _program(calls: Calls, inputs: Sequence[int], outputs: Sequence[int]) -> dict[str, Any]:
    values, memory_bytes = calls.values_in_memory(inputs, outputs)
    called = {"id": "XnnpackBackend", "processed": {"location": "SEGMENT", "index": 1}, "compile_specs": []}
    plan = {
        "name": "forward",
        "container_meta_type": {"encoded_inp_str": _structure(len(inputs), arguments=True), "encoded_out_str": _structure(len(outputs))},
        "values": values,
        "inputs": list(inputs),
        "outputs": list(outputs),
        "chains": [{"inputs": [], "outputs": [], "instructions": calls.instructions}],
        "operators": calls.operators(),
        "delegates": [called] if calls.delegates else [],
        "non_const_buffer_sizes": [0, memory_bytes],
    }
    return {"version": 0, "execution_plan": [plan], "constant_buffer": [], "backend_delegate_data": []}


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
    with temporary_folder() as place:
        text = place / "data.json"
        text.write_text(json.dumps(data))
        command = [str(home / "data/bin/flatc"), "--binary", "-o", str(place), str(home / schema), str(text)]
        subprocess.run(command, check=True, capture_output=True)
        return next(path for path in place.iterdir() if path != text).read_bytes()
