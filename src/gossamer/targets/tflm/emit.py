"""Writing .tflite files for the interpreter for microcontrollers, which has fewer operators: what it lacks is refused before a file exists."""

from __future__ import annotations

from pathlib import Path

from gossamer.errors import UnsupportedOp
from gossamer.files import write_bytes
from gossamer.program.program import Program
from gossamer.targets.seal import sealed
from gossamer.targets.tflite.draft import Draft
from gossamer.targets.tflite.emit import bytes_of, draft_of
from gossamer.targets.tflm.joins import split_long_joins

RUNTIME = "LiteRT for Microcontrollers"
WAY_OUT = "put another operation in its place, keep that part out of the file, or choose the target litert"
WAY_OUT_OF_INT64 = "capture the model with positions of torch.int32, or choose the target litert"
MISSING = frozenset("ATAN2 CONV_3D GELU ONE_HOT POW REDUCE_ANY REDUCE_PROD SIGN TILE TOPK_V2".split())  # of those that lowerings write


def emit(program: Program, path: Path) -> None:
    """Write a program as .tflite. Raises: UnsupportedOp for an op that the interpreter has no kernel for; else like tflite.emit.emit."""
    emit_coded(program, path, "float")


def emit_coded(program: Program, path: Path, io: str) -> None:
    """Like `emit`, with "int8" or "uint8" codes instead of floats at the ends; check_ends says which programs have them."""
    written = draft_of(program, fuse=True, micro=True, apart=True)
    _check(program, written.draft)
    split_long_joins(written.draft)
    write_bytes(Path(path), sealed(bytes_of(written, program, io, lean=program.target == "tflm")))


def _check(program: Program, draft: Draft) -> None:
    for op in draft.ops:
        name = draft.tensors[op.outputs[0]].name
        node = program.graph.by_name.get(name) or program.graph.by_name.get(name.split("/")[0])
        where = node.where if node is not None else name
        if op.code in MISSING:
            raise UnsupportedOp(op.code, where, needed=RUNTIME, way_out=WAY_OUT)
        if op.code == "GATHER" and draft.tensors[op.inputs[1]].dtype == "int64":
            raise UnsupportedOp("GATHER at positions of int64", where, needed=RUNTIME, way_out=WAY_OUT_OF_INT64)
