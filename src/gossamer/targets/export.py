"""Writing a program as the file that a target runs."""

from __future__ import annotations

from pathlib import Path

from gossamer.errors import ConfigError, PlanError
from gossamer.program.masks import check_zeros
from gossamer.program.program import Program
from gossamer.targets.target import Artifact, targets


def export(program: Program, path: str | Path, target: str = "onnxruntime") -> Artifact:
    """Write the file that `target` runs, atomically: a crash leaves the old file or the new one.

    Raises: ConfigError for an unknown target or a file name of another kind; PlanError for a program quantized for
    another target, or with a masked weight that is not zero; UnsupportedOp for an op that the target's files cannot hold; FileError when it cannot be written.
    """
    path, found = Path(path), targets[target]
    if path.suffix != found.suffix:
        raise ConfigError("path", str(path), f"a file name that ends in {found.suffix!r}, which {target} reads")
    if program.quantizers and program.target != target:
        raise PlanError(
            f"the network was quantized for {program.target or 'no target'!r}, not for {target!r}; plan it anew for that target."
        )
    check_zeros(program)
    found.emit(program, path)
    return Artifact(path, target, program)
