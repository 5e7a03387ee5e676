"""From a program to a folder of C99: the network, the kernels it calls, and files for make and CMake."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from importlib.resources import files
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from gossamer.errors import ConfigError, UnsupportedOp
from gossamer.files import write_bytes
from gossamer.numerics.affine import Quantizer
from gossamer.program.program import Program
from gossamer.targets.cortex_m.code import C_TYPES, Network, lay_out
from gossamer.targets.cortex_m.statements import Page, Writing, writers
from gossamer.targets.tflite.draft import DraftTensor
from gossamer.targets.tflite.emit import draft_of
from gossamer.targets.tflite.note import Note, Order, value_name

NOTE = "/* gossamer "  # the first line of the file says how inputs and outputs are stored, as JSON
KERNELS = ("gossamer_kernels.c", "gossamer_kernels.h")


def emit(program: Program, path: Path) -> None:
    """Write NAME.c and NAME.h at `path` and, beside them, the kernels, a Makefile and a CMakeLists.txt.

    Images (N, C, H, W) are taken one at a time as H, W, C. Where the network codes its input or decodes its output first, callers
    pass codes; the header says their scale and zero point.
    Raises: UnsupportedOp for an op without a kernel; ConfigError for a file name that is no C name; FileError when it cannot be written.
    """
    path = Path(path)
    name = c_name(path)
    written = draft_of(program)
    network = lay_out(written)
    names = [spec.name for spec in program.inputs]
    note = describe(network, names, written.note)
    folder = path.parent
    for file in KERNELS:
        write_bytes(folder / file, runtime_file(file))
    write_bytes(path.with_suffix(".h"), header(name, network, note).encode())
    write_bytes(folder / "Makefile", _MAKEFILE.replace("NAME", path.stem).encode())
    write_bytes(folder / "CMakeLists.txt", _CMAKE.replace("NAME", path.stem).encode())
    write_bytes(path, source(name, path.stem, network, note).encode())


def beside(path: Path) -> tuple[Path, ...]:
    """The files that are written with NAME.c."""
    return (path.with_suffix(".h"), *(path.parent / name for name in (*KERNELS, "Makefile", "CMakeLists.txt")))


def c_name(path: Path) -> str:
    """What the functions of a file are called: its name, "_" for what C does not take. Raises ConfigError where no C name comes out."""
    name = re.sub(r"\W", "_", path.stem, flags=re.ASCII)
    if not re.fullmatch(r"[A-Za-z_]\w*", name, flags=re.ASCII):
        raise ConfigError("path", path.name, "a file name that starts with a letter, as C functions do")
    return name


def runtime_file(name: str) -> bytes:
    """A file of the C runtime."""
    return files("gossamer.targets.cortex_m").joinpath("runtime", name).read_bytes()


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
    steps = [network.tensor(op.outputs[0]).name for op in network.ops]
    return {"inputs": inputs, "outputs": outputs, "values": values, "steps": steps, "arena_bytes": network.arena_bytes}


def _coding(quantizer: Quantizer | None) -> dict[str, Any]:
    return {} if quantizer is None else {"scale": quantizer.scale[0], "zero_point": quantizer.zero_point[0]}


def source(name: str, stem: str, network: Network, note: Mapping[str, Any]) -> str:
    """The text of the C file."""
    page, body, traced = Page(), [], [value["name"] for value in note["values"]]
    for number in network.inputs:
        body += _trace(network, number, traced)
    for step, op in enumerate(network.ops):
        if op.code not in writers:
            raise UnsupportedOp(
                op.code,
                network.tensor(op.outputs[0]).name,
                needed="Cortex-M",
                way_out="choose another target, or write that part otherwise",
            )
        statement = writers[op.code](Writing(network, op, page))
        body += [statement] if statement else []
        for number in op.outputs:
            body += _trace(network, number, traced)
        body.append(f"GS_STEP({step + 1});")
    return "\n".join(
        [
            f"{NOTE}{json.dumps(note)} */",
            f'#include "{stem}.h"',
            "",
            "#include <math.h>",
            "",
            '#include "gossamer_kernels.h"',
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
            *page.lines,
            "",
            f"static char arena[{max(network.arena_bytes, 1)}] __attribute__((aligned(8)));",
            "",
            f"{_signature(name, network)} {{",
            "  (void)arena;",
            *(f"  {line}" for line in body),
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


def _signature(name: str, network: Network) -> str:
    def arguments(numbers: tuple[int, ...], word: str, qualifier: str) -> list[str]:
        kinds = [C_TYPES[network.tensor(number).dtype] for number in numbers]
        return [f"{qualifier}{kind} *{word if len(numbers) == 1 else f'{word}{position}'}" for position, kind in enumerate(kinds)]

    return f"int {name}_invoke({', '.join([*arguments(network.inputs, 'input', 'const '), *arguments(network.outputs, 'output', '')])})"


def header(name: str, network: Network, note: Mapping[str, Any]) -> str:
    """The text of the header."""
    upper, lines = name.upper(), []
    for port in (*note["inputs"], *note["outputs"]):
        stored = " x ".join(map(str, port["shape"][1:] or (1,)))
        coding = f", value = {port['scale']!r} * (code - {port['zero_point']})" if "scale" in port else ""
        lines.append(f" * {port['name']}: {C_TYPES[port['dtype']]} {stored}{coding}")
    sizes = [[_bytes(network.tensor(number)) for number in numbers] for numbers in (network.inputs, network.outputs)]
    calls = [
        f"(const {C_TYPES[network.tensor(number).dtype]} *)(in + {sum(sizes[0][:position])})"
        for position, number in enumerate(network.inputs)
    ] + [
        f"({C_TYPES[network.tensor(number).dtype]} *)(out + {sum(sizes[1][:position])})" for position, number in enumerate(network.outputs)
    ]
    return f"""#ifndef {upper}_H
#define {upper}_H
#include <stdint.h>

/* Runs the network on one sample; not reentrant, since its values lie in one static arena of {note["arena_bytes"]} bytes. Returns 0.
{chr(10).join(lines)}
 */
#define {upper}_ARENA_BYTES {note["arena_bytes"]}

#ifdef __cplusplus
extern "C" {{
#endif
{_signature(name, network)};
#ifdef __cplusplus
}}
#endif

#ifdef GS_HARNESS
#define GS_IN_BYTES {sum(sizes[0])}
#define GS_OUT_BYTES {sum(sizes[1])}
#define GS_STEPS {len(network.ops)}
static inline int gs_run(const char *in, char *out) {{ return {name}_invoke({", ".join(calls)}); }}
#endif
#endif
"""


def _bytes(tensor: DraftTensor) -> int:
    return prod(tensor.shape) * np.dtype(tensor.dtype).itemsize


_MAKEFILE = """# Builds libNAME.a; choose the chip, such as: make CC=arm-none-eabi-gcc CFLAGS="-mcpu=cortex-m7 -mfpu=fpv5-d16 -mfloat-abi=hard -O3"
CC ?= cc
CFLAGS ?= -O2
AR ?= ar

libNAME.a: NAME.o gossamer_kernels.o
\t$(AR) rcs $@ $^

%.o: %.c NAME.h gossamer_kernels.h
\t$(CC) $(CFLAGS) -std=c99 -c -o $@ $<

clean:
\trm -f NAME.o gossamer_kernels.o libNAME.a
"""
_CMAKE = """cmake_minimum_required(VERSION 3.13)
project(NAME C)
add_library(NAME STATIC NAME.c gossamer_kernels.c)
target_include_directories(NAME PUBLIC ${CMAKE_CURRENT_SOURCE_DIR})
set_target_properties(NAME PROPERTIES C_STANDARD 99)
"""
