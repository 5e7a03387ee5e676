"""From a program to a .pte file: written directly where one XNNPACK graph is enough, through ExecuTorch's passes elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from gossamer.errors import UnsupportedOp
from gossamer.files import write_bytes
from gossamer.program.capture import relative_error
from gossamer.program.fold import fold_batch_norms
from gossamer.program.graph import Node
from gossamer.program.program import Program
from gossamer.targets.executorch.direct import whole_graph
from gossamer.targets.executorch.loading import Loaded
from gossamer.targets.executorch.passes import lowered
from gossamer.targets.executorch.spec import NAME
from gossamer.targets.executorch.writing import OutsideXnnpack

TOLERANCE = 1e-4  # relative; as verify allows
MOST_NAMED = 3


def emit(program: Program, path: Path) -> None:
    """Write a program as .pte.

    Raises: UnsupportedOp for an op without a kernel, and for a layer with codes that would be computed in float; MissingRuntime without
    executorch; FileError when the file cannot be written.
    """
    write_bytes(Path(path), to_pte(program).data)


@dataclass(frozen=True, slots=True)
class Written:
    """A .pte file, and the values whose codes it hands out behind its outputs."""

    data: bytes
    handed_out: tuple[str, ...]


def to_pte(program: Program, *, hand_out: bool = False) -> Written:
    """The bytes of the file. Batch norms of a float program are folded where possible; `hand_out` adds codes to its outputs."""
    program = program if program.quantizers else fold_batch_norms(program)
    left: tuple[Node, ...] = ()
    try:
        whole = whole_graph(program, hand_out=hand_out)
        written = Written(whole.to_bytes(), whole.handed_out)
    except OutsideXnnpack:  # `notes` says so
        found = lowered(program, hand_out=hand_out)
        written, left = Written(found.data, found.handed_out), found.left
    _try(program, written.data, left)
    return written


def notes(program: Program) -> tuple[str, ...]:
    """What users of the file must know: whether XNNPACK runs it as one graph, and what other kernels run."""
    try:
        kernels = whole_graph(program if program.quantizers else fold_batch_norms(program)).kernels
    except OutsideXnnpack as reason:
        return (f"XNNPACK does not run all of this network at once: {reason}. ExecuTorch's passes split it, which takes longer to write.",)
    return (f"Portable kernels run what XNNPACK has no nodes for, before or behind its graph: {', '.join(kernels)}.",) if kernels else ()


def _try(program: Program, data: bytes, left: Sequence[Node]) -> None:
    """Run the file: portable kernels tell only then which forms of an op they have, and some compute another one. Raises UnsupportedOp."""
    fault = ""
    try:
        loaded = Loaded(data)
        for batch in (1, 3):  # some kernels run at the batch size of the export alone, which was 2
            examples = [spec.example(batch, torch.Generator().manual_seed(position)) for position, spec in enumerate(program.inputs)]
            found = loaded.execute(examples)
            fault = fault or ("" if program.quantizers else _difference(program, examples, found))
    except RuntimeError as error:
        fault = f"a trial run fails ({str(error).splitlines()[0]})"
    if fault:
        suspects = ", ".join(f"{node.op} at {node.where}" for node in left[:MOST_NAMED])
        raise UnsupportedOp(
            left[0].op if left else "one of XNNPACK's ops",
            left[0].where if left else "",
            needed=f"working {NAME}",
            way_out=f"{fault}, and this is what XNNPACK did not take: {suspects or 'nothing'}; export to another target, such as onnxruntime",
        )


def _difference(program: Program, examples: list[Tensor], found: Sequence[Tensor]) -> str:
    """What is wrong with a float file's outputs, in words; "" where nothing is."""
    with torch.no_grad():
        expected = program.copy().eval().cpu()(*examples)
    expected = expected if isinstance(expected, tuple) else (expected,)
    pairs = zip(found, expected, strict=False)
    error = max(relative_error(torch.nan_to_num(one), torch.nan_to_num(two)) for one, two in pairs)
    return "" if error <= TOLERANCE else f"a trial run gives numbers that are wrong by {error:.2g} (relative)"
