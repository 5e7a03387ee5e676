"""What is written beside a network's C file: its header, and files for make and CMake."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

import numpy as np

from gossamer.targets.cortex_m.code import C_TYPES, Network
from gossamer.targets.tflite.draft import DraftTensor


def signature(name: str, network: Network) -> str:
    """The C function."""

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
{signature(name, network)};
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


def makefile(stem: str, kernels: str, sources: Sequence[str], folder: str) -> str:
    """A Makefile for a static library; `sources` beside the network's own file."""
    objects = " ".join(source.removesuffix(".c") + ".o" for source in (f"{stem}.c", *sources))
    include = f" -I{folder}" if folder else ""
    return f"""# Builds lib{stem}.a; choose the chip, such as: make CC=arm-none-eabi-gcc CFLAGS="-mcpu=cortex-m7 -mfpu=fpv5-d16 -mfloat-abi=hard -O3"
# Kernels: {kernels}
CC ?= cc
CFLAGS ?= -O2
AR ?= ar
OBJECTS = {objects}

lib{stem}.a: $(OBJECTS)
\t$(AR) rcs $@ $^

%.o: %.c {stem}.h
\t$(CC) $(CFLAGS) -std=gnu99 -ffunction-sections -fdata-sections -I.{include} -c -o $@ $<

clean:
\trm -f $(OBJECTS) lib{stem}.a
"""


def cmake(stem: str, kernels: str, sources: Sequence[str], folder: str) -> str:
    """The same for CMake."""
    include = f" ${{CMAKE_CURRENT_SOURCE_DIR}}/{folder}" if folder else ""
    return f"""cmake_minimum_required(VERSION 3.13)
project({stem} C)
# Kernels: {kernels}
add_library({stem} STATIC {" ".join((f"{stem}.c", *sources))})
target_include_directories({stem} PUBLIC ${{CMAKE_CURRENT_SOURCE_DIR}} PRIVATE ${{CMAKE_CURRENT_SOURCE_DIR}}{include})
target_compile_options({stem} PRIVATE -ffunction-sections -fdata-sections)
set_target_properties({stem} PROPERTIES C_STANDARD 99)
"""
