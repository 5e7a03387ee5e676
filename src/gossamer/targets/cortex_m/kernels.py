"""Which kernels a network's C code calls: a table of writers, the memory that each call works in, and the files that come along."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files

from gossamer.targets.cortex_m import write_layers as write_layers
from gossamer.targets.cortex_m import write_values as write_values
from gossamer.targets.cortex_m.write_codes import written_as_table
from gossamer.targets.cortex_m.writing import Writing, writers
from gossamer.targets.tflite.draft import Draft, DraftOp

OWN = ("gossamer_kernels.c", "gossamer_kernels.h")
WHERE_CALLED = tuple(
    f"gossamer_{name}.c" for name in ("layers_s8", "codes", "channels", "floats", "layers_mve", "depthwise_mve", "values_mve")
)
VECTORS = "gossamer_mve.h"  # what the kernels for cores with vectors share


@dataclass(frozen=True, slots=True)
class Kernels:
    """One choice of kernels.

    title    what the written files call it
    header   what the network's file includes
    folder   of headers, beside the network; "" for none
    write    the C statement of an operator
    scratch  bytes that an operator works in besides its input and result, on whichever core wants most
    files    what the operators need, by path beside the network: their statements say which functions
    """

    title: str
    header: str
    folder: str
    write: Callable[[Writing], str]
    scratch: Callable[[Draft, DraftOp], int]
    files: Callable[[Sequence[str]], Mapping[str, bytes]]


def runtime_file(name: str) -> bytes:
    """A file of the C runtime."""
    return files("gossamer.targets.cortex_m").joinpath("runtime", name).read_bytes()


def write_portable(writing: Writing) -> str:
    """The statement of an operator with our own kernels. Raises UnsupportedOp where there is none."""
    if writing.op.code not in writers:
        raise writing.unsupported(writing.op.code)
    if table := written_as_table(writing):
        return table
    return writers[writing.op.code](writing)


def own_files(statements: Sequence[str]) -> dict[str, bytes]:
    """Our kernels: those of layers, and what else the statements call."""
    called = {name for statement in statements for name in re.findall(r"\bgs_\w+", statement)}
    found = {name: runtime_file(name) for name in (*OWN, *WHERE_CALLED)}
    made = {name: set(re.findall(r"^(?:void|float) (gs_\w+)", data.decode(), flags=re.MULTILINE)) for name, data in found.items()}
    taken = {name: data for name, data in found.items() if name in OWN or called & made[name]}
    return taken | ({VECTORS: runtime_file(VECTORS)} if any(name.endswith("_mve.c") for name in taken) else {})


PORTABLE = Kernels("portable C", OWN[1], "", write_portable, lambda draft, op: 0, own_files)
