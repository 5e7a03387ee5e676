"""CMSIS-NN's kernels where it has them, ours elsewhere: the same arithmetic, bit for bit.

Source: Lai, Suda and Chandra 2018, CMSIS-NN, arXiv:1801.06601; version 4.0.0 as the package bakenn carries it (Apache-2.0).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from math import prod
from pathlib import Path

from gossamer.errors import MissingRuntime
from gossamer.targets.cortex_m.borders import BEFORE
from gossamer.targets.cortex_m.kernels import Kernels, own_files, runtime_file, write_portable
from gossamer.targets.cortex_m.write_layers import layer, layer_tables, window
from gossamer.targets.cortex_m.writing import Writing, zeros
from gossamer.targets.tflite.draft import Draft, DraftOp

NAME, FOLDER = "cmsis_nn", "cmsis-nn"
PACKAGE, INSTALL = "bakenn", "pip install bakenn==1.0.0"
VERSION = "4.0.0"
_GLUE = "gossamer_cmsis.h"
_BLOCK = 124  # channels that the depthwise kernel of cores with vectors takes at once
_CALLS = {
    "CONV_2D": "gs_cmsis_conv",
    "DEPTHWISE_CONV_2D": "gs_cmsis_depthwise",
    "FULLY_CONNECTED": "gs_cmsis_linear",
    "MAX_POOL_2D": "gs_cmsis_max_pool",
}
_STARTS = {
    "gs_cmsis_conv": "arm_convolve_wrapper_s8",
    "gs_cmsis_depthwise": "arm_depthwise_conv_wrapper_s8",
    "gs_cmsis_linear": "arm_convolve_wrapper_s8",
    "gs_cmsis_max_pool": "arm_max_pool_s8",
}


def sources() -> Path | None:
    """Folder of the sources and headers; None where the package that brings them is missing."""
    spec = find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        return None
    folder = Path(spec.origin).parent / "backend" / "cmsis_nn" / "vendor"
    return folder if (folder / "cmsis_nn" / "Source").is_dir() else None


def write(writing: Writing) -> str:
    """The statement of an operator."""
    code = writing.op.code
    if code not in _CALLS or not writing.coded:
        return write_portable(writing)
    working, size = writing.scratch
    if code == "MAX_POOL_2D":
        return f"gs_cmsis_max_pool({window(writing)}, {writing.address(0)}, {writing.out});"
    multiplier, shift = layer_tables(writing, "int32_t")
    tables = f"{multiplier}, {shift}"
    if code != "FULLY_CONNECTED":
        data = ", ".join(writing.address(position) for position in range(3))
        return f"if ({_CALLS[code]}({window(writing)}, {zeros(writing)}, {data}, {tables}, {working}, {size}, {writing.out})) return 1;"
    outputs, inputs = writing.tensor(1).shape
    sizes = f"{prod(writing.tensor(0).shape) // inputs}, {inputs}, {outputs}"
    return f"if (gs_cmsis_linear({sizes}, {layer(writing)}, {shift}, {writing.address(0)}, {writing.out})) return 1;"


def scratch(draft: Draft, op: DraftOp) -> int:
    """What *_get_buffer_size returns, the most of all cores."""
    if op.code not in ("CONV_2D", "DEPTHWISE_CONV_2D") or draft.tensors[op.outputs[0]].dtype != "int8":
        return 0
    kernel, channels = draft.tensors[op.inputs[1]].shape[1:3], draft.tensors[op.inputs[0]].shape[3]
    plain = (op.fields["dilationHFactor"], op.fields["dilationWFactor"]) == (1, 1)
    size = prod(kernel) * channels
    if op.code == "CONV_2D":
        if plain and kernel == (1, 1) and not any(op.fields.get(BEFORE, (0, 0))):
            return 0
        return max(2 * size * 2, 4 * (-(-size // 8) * 8))
    if not plain or draft.tensors[op.outputs[0]].shape[3] != channels:
        return 0
    return max(2 * size, 4 * _BLOCK * prod(kernel))


def needed_files(statements: Sequence[str]) -> dict[str, bytes]:
    """Our kernels, the calls of CMSIS-NN, its sources that they reach, its headers and licence. Raises MissingRuntime without the package."""
    root = sources()
    if root is None:
        raise MissingRuntime(NAME, "writing C code that calls CMSIS-NN", INSTALL)
    by_function = {path.stem: path for path in sorted((root / "cmsis_nn" / "Source").rglob("arm_*.c"))}
    called = [start for call, start in _STARTS.items() if any(f"{call}(" in statement for statement in statements)]
    found: dict[str, bytes] = {}
    while called:
        name = called.pop()
        if name in by_function and f"{FOLDER}/{name}.c" not in found:
            found[f"{FOLDER}/{name}.c"] = by_function[name].read_bytes()
            called += re.findall(r"\barm_\w+(?=\()", found[f"{FOLDER}/{name}.c"].decode())
    others: Mapping[str, Path] = {
        **{path.name: path for name in ("cmsis_nn", "cmsis_core") for path in sorted((root / name / "Include").glob("*.h"))},
        "LICENSE.txt": root / "cmsis_nn" / "LICENSE.txt",
    }
    headers = {f"{FOLDER}/{name}": path.read_bytes() for name, path in others.items()}
    ours = [*statements, "gs_linear_s8"] if "gs_cmsis_linear" in "".join(statements) else statements
    return {**own_files(ours), _GLUE: runtime_file(_GLUE), **dict(sorted(found.items())), **headers}


CMSIS = Kernels(f"CMSIS-NN {VERSION}", _GLUE, FOLDER, write, scratch, needed_files)
