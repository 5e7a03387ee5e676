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
from gossamer.targets.executorch.step import OutsideXnnpack
from gossamer.targets.seal import sealed

TOLERANCE = 1e-4  # relative; as verify allows
MOST_NAMED = 3


def emit(program: Program, path: Path) -> tuple[str, ...]:
    """Write a program as .pte. What users of the file must know.

    Raises: UnsupportedOp for an op without a kernel, and for a layer with codes that would be computed in float; MissingRuntime without
    executorch; FileError when the file cannot be written.
    """
    written = to_pte(program)
    write_bytes(Path(path), sealed(written.data))
    return written.notes


@dataclass(frozen=True, slots=True)
class Written:
    """A .pte file, the values whose codes it hands out behind its outputs, and what users of it must know."""

    data: bytes
    handed_out: tuple[str, ...]
    notes: tuple[str, ...]


def to_pte(program: Program, *, hand_out: bool = False) -> Written:
    """The bytes of the file. Batch norms of a float program are folded where possible; `hand_out` adds codes to its outputs."""
    program = _prepared(program)
    try:
        return _directly(program, hand_out)
    except OutsideXnnpack as reason:
        found = lowered(program, hand_out=hand_out)
        fault = _fault(program, found.data)
        if fault:
            raise _refusal(fault, found.left) from reason
        return Written(found.data, found.handed_out, (_split_note(reason),))


def notes(program: Program) -> tuple[str, ...]:
    """What users of the file must know: whether XNNPACK runs it as one graph, and what other kernels run."""
    try:
        return _directly(_prepared(program), False).notes
    except OutsideXnnpack as reason:
        return (_split_note(reason),)


def _prepared(program: Program) -> Program:
    return program if program.quantizers else fold_batch_norms(program)


def _directly(program: Program, hand_out: bool) -> Written:
    """Without ExecuTorch's passes. Raises OutsideXnnpack where that cannot be, and where the runtime does not run what was written."""
    whole = whole_graph(program, hand_out=hand_out)
    data = whole.to_bytes()
    fault = _fault(program, data)
    if fault:
        raise OutsideXnnpack(fault)
    kernels = ", ".join(whole.kernels)
    said = (f"Portable kernels run what XNNPACK has no nodes for, before or behind its graph: {kernels}.",) if kernels else ()
    return Written(data, whole.handed_out, said)


def _split_note(reason: OutsideXnnpack) -> str:
    return f"XNNPACK does not run all of this network at once: {reason}. ExecuTorch's passes split it, which takes longer to write."


def _fault(program: Program, data: bytes) -> str:
    """What is wrong when the file runs, in words; "" where nothing is. Kernels tell only then which forms of an op they have, and some compute
    another one."""
    fault = ""
    try:
        loaded = Loaded(data)
        for batch in (1, 3):  # some kernels run at the batch size of the export alone, which was 2
            examples = [spec.example(batch, torch.Generator().manual_seed(position)) for position, spec in enumerate(program.inputs)]
            found = loaded.execute(examples)
            fault = fault or ("" if program.quantizers else _difference(program, examples, found))
    except RuntimeError as error:
        fault = f"a trial run fails ({str(error).splitlines()[0]})"
    return fault


def _refusal(fault: str, left: Sequence[Node]) -> UnsupportedOp:
    suspects = ", ".join(f"{node.op} at {node.where}" for node in left[:MOST_NAMED])
    return UnsupportedOp(
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
