"""From a program to a folder of C99: the network, the kernels it calls, and files for make and CMake."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from gossamer.errors import ConfigError, FileError
from gossamer.files import write_bytes
from gossamer.numerics.affine import Quantizer
from gossamer.program.program import Program
from gossamer.targets.cortex_m.code import Network, lay_out
from gossamer.targets.cortex_m.kernels import PORTABLE, Kernels
from gossamer.targets.cortex_m.project import cmake, header, makefile, signature
from gossamer.targets.cortex_m.writing import Page, Writing
from gossamer.targets.tflite.draft import DraftTensor
from gossamer.targets.tflite.emit import draft_of
from gossamer.targets.tflite.note import Note, Order, value_name

NOTE = "/* gossamer "  # the first line of the file says how inputs and outputs are stored, as JSON


def emit(program: Program, path: Path, kernels: Kernels = PORTABLE) -> None:
    """Write NAME.c and NAME.h at `path` and, beside them, the kernels, a Makefile and a CMakeLists.txt.

    Images (N, C, H, W) are taken one at a time as H, W, C. Where the network codes its input or decodes its output first, callers
    pass codes; the header says their scale and zero point.
    Raises: UnsupportedOp for an op without a kernel; ConfigError for a file name that is no C name; FileError when it cannot be written;
    MissingRuntime where the kernels' sources are not installed.
    """
    path = Path(path)
    name, stem, folder = c_name(path), path.stem, path.parent
    written = draft_of(program, apart=True)
    network = lay_out(written, kernels.scratch)
    body = statements(network, kernels)
    files = kernels.files([line for step in body.steps for line in step.lines])
    sources = [file for file in files if file.endswith(".c")]
    note = describe(network, [spec.name for spec in program.inputs], written.note) | {
        "kernels": kernels.title,
        "sources": sources,
        "headers": kernels.folder,
        "files": [*files, "Makefile", "CMakeLists.txt"],
        "steps": [step.note for step in body.steps],
    }
    for file, data in files.items():
        write_bytes(folder / file, data)
    write_bytes(path.with_suffix(".h"), header(name, network, note).encode())
    write_bytes(folder / "Makefile", makefile(stem, kernels.title, sources, kernels.folder).encode())
    write_bytes(folder / "CMakeLists.txt", cmake(stem, kernels.title, sources, kernels.folder).encode())
    write_bytes(path, source(name, path, network, note, body, kernels.header).encode())


def beside(path: Path) -> tuple[Path, ...]:
    """The files that were written with NAME.c. Raises FileError where that is missing or foreign."""
    return (path.with_suffix(".h"), *(path.parent / name for name in read_note(path)["files"]))


def read_note(path: Path) -> dict[str, Any]:
    """What the file says of its inputs and outputs. Raises FileError for one that is missing or foreign."""
    try:
        with open(path, encoding="utf-8") as file:
            line = file.readline()
    except (OSError, UnicodeDecodeError) as error:
        raise FileError(path, f"cannot be read ({error})", "give the path of an exported .c file") from error
    try:
        if line.startswith(NOTE):
            found: dict[str, Any] = json.loads(line.removeprefix(NOTE).rstrip().removesuffix("*/"))
            return found
    except ValueError:
        pass
    raise FileError(path, "was not written by this package, or is damaged", "export it again")


def c_name(path: Path) -> str:
    """What the functions of a file are called: its name, "_" for what C does not take. Raises ConfigError where no C name comes out."""
    name = re.sub(r"\W", "_", path.stem, flags=re.ASCII)
    if not re.fullmatch(r"[A-Za-z_]\w*", name, flags=re.ASCII):
        raise ConfigError("path", path.name, "a file name that starts with a letter, as C functions do")
    return name


def describe(network: Network, names: list[str], said: Note) -> dict[str, Any]:
    """What callers must know of inputs, outputs and, to compare them, of values."""

    def one(name: str, tensor: DraftTensor, order: Order) -> dict[str, Any]:
        return {"name": name, "shape": tensor.shape, "order": order, "dtype": tensor.dtype, **_coding(tensor.quantizer)}

    inputs = [one(name, network.tensor(number), said.inputs[name]) for name, number in zip(names, network.inputs, strict=True)]
    outputs = [one(f"output{k}", network.tensor(number), said.outputs[k]) for k, number in enumerate(network.outputs)]
    made = [number for number in network.inputs if network.tensor(number).quantizer is not None]
    made += [number for op in network.ops for number in op.outputs]
    values = [
        {"name": value_name(network.tensor(number).name), "shape": network.tensor(number).shape, "order": said.values[number]}
        for number in made
        if number in said.values and network.tensor(number).dtype == "int8"
    ]
    return {"inputs": inputs, "outputs": outputs, "values": values, "arena_bytes": network.arena_bytes}


def _coding(quantizer: Quantizer | None) -> dict[str, Any]:
    return {} if quantizer is None else {"scale": quantizer.scale[0], "zero_point": quantizer.zero_point[0]}


@dataclass(frozen=True, slots=True)
class Step:
    """One operator in C, and what it costs: {"name", "op", "constant_bytes", "arena_bytes"}; its name is the path of the user's module."""

    lines: tuple[str, ...]
    note: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Body:
    """All operators in C, and the constants they name."""

    steps: tuple[Step, ...]
    constants: tuple[str, ...]


def statements(network: Network, kernels: Kernels) -> Body:
    """Write every operator with its kernels. Raises UnsupportedOp for one without a kernel."""
    page, steps, names = Page(), [], step_names(network)
    for step, op in enumerate(network.ops):
        before = page.bytes
        text = kernels.write(Writing(network, op, page, step))
        note = {
            "name": names[step],
            "op": op.code,
            "constant_bytes": page.bytes - before,
            "arena_bytes": sum(life.size for life in network.lives if life.first <= step <= life.last),
        }
        steps.append(Step((text,) if text else (), note))
    return Body(tuple(steps), tuple(page.lines))


def step_names(network: Network) -> list[str]:
    """Paths of the users' modules; the value that is made where there is none, and behind it where several operators of one kind share it."""
    values = [value_name(network.tensor(op.outputs[0]).name) for op in network.ops]
    shared = Counter((op.module, op.code) for op in network.ops)
    return [
        f"{op.module} ({value})" if op.module and shared[op.module, op.code] > 1 else op.module or value
        for op, value in zip(network.ops, values, strict=True)
    ]


def source(name: str, path: Path, network: Network, note: Mapping[str, Any], body: Body, include: str) -> str:
    """The text of the C file."""
    traced = [value["name"] for value in note["values"]]
    lines = [line for number in network.inputs for line in _trace(network, number, traced)]
    for position, (op, step) in enumerate(zip(network.ops, body.steps, strict=True)):
        lines += [*step.lines, *(line for number in op.outputs for line in _trace(network, number, traced)), f"GS_STEP({position + 1});"]
    return "\n".join(
        [
            f"{NOTE}{json.dumps(note)} */",
            f'#include "{path.stem}.h"',
            "",
            "#include <math.h>",
            "",
            f'#include "{include}"',
            "",
            "#ifdef GS_TRACE_FILE",
            "void gs_trace(int value, const void *data, int bytes);",
            "#define GS_TRACE gs_trace",
            "#else",
            "#define GS_TRACE(value, data, bytes)",
            "#endif",
            "#ifdef GS_COUNT",
            "void gs_step(int step);",
            "#define GS_STEP gs_step",
            "#else",
            "#define GS_STEP(step)",
            "#endif",
            "",
            *body.constants,
            "",
            f"static char arena[{max(network.arena_bytes, 1)}] __attribute__((aligned(8)));",
            "",
            f"{signature(name, network)} {{",
            "  (void)arena;",
            *(f"  {line}" for line in lines),
            "  return 0;",
            "}",
            "",
        ]
    )


def _trace(network: Network, number: int, traced: list[str]) -> list[str]:
    tensor = network.tensor(number)
    name = value_name(tensor.name)
    if name not in traced or tensor.dtype != "int8":
        return []
    return [f"GS_TRACE({traced.index(name)}, {network.place[number]}, {prod(tensor.shape)});"]
