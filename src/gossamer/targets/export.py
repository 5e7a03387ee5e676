"""Writing a program as the file that a target runs."""

from __future__ import annotations

from pathlib import Path

import torch

from gossamer.errors import ConfigError, PlanError
from gossamer.program.masks import check_zeros
from gossamer.program.program import Program, check_program
from gossamer.targets.coded_ends import check_ends
from gossamer.targets.target import IO_KINDS, Artifact, targets


def export(program: Program, path: str | Path, target: str = "onnxruntime", *, io: str = "float") -> Artifact:
    """Write the file that `target` runs, atomically: a crash leaves the old file or the new one.

    io  what the file takes and gives for float inputs and outputs: "float", or "uint8" or "int8" codes, whose scale and zero point are
        in the artifact (input_codes, output_codes) and in the file's metadata; the program needs codes there (Scheme.code_ends)

    Raises: ConfigError for an unknown target, a file name of another kind, weights in bfloat16 where files hold none, or an `io` that the target's files do not have; PlanError
    for a program quantized for another target, without codes where `io` needs some, or with a masked weight that is not zero; UnsupportedOp for an op that the target's files cannot hold; FileError when it cannot be written.
    """
    check_program(program)
    path, found = Path(path), targets[target]
    if path.suffix != found.suffix:
        raise ConfigError("path", str(path), f"a file name that ends in {found.suffix!r}, which {target} reads")
    if program.quantizers and program.target != target:
        raise PlanError(
            f"the network was quantized for {program.target or 'no target'!r}, not for {target!r}; plan it anew for that target."
        )
    check_zeros(program)
    if not found.any_type:
        _check_types(program, target)
    if io in IO_KINDS[1:] and found.emit_coded is None:
        raise ConfigError("io", io, f"'float' for {target}: {found.own_ends}")
    check_ends(program, io)
    told: tuple[str, ...] | None = None
    if found.emit_coded is None or io == "float":
        told = found.emit(program, path)
    else:
        found.emit_coded(program, path, io)
    return Artifact(path, target, program, io, told)


def _check_types(program: Program, target: str) -> None:
    """Raise ConfigError for numbers that no file of a runtime holds."""
    for name, tensor in program.state.items():
        if tensor.dtype == torch.bfloat16:
            raise ConfigError(f"the type of {name!r}", "bfloat16", f"float32 for {target}; capture the model as model.float()")
