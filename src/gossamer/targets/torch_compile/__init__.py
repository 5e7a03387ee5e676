"""The target "torch": the captured network under torch.compile, for machines where no other runtime is. Importing this compiles nothing."""

from pathlib import Path

from gossamer.program.bundle import save
from gossamer.program.program import Program
from gossamer.targets.target import Target, add_target
from gossamer.targets.torch_compile.run import INSTALL, find_version, notes, open_bundle
from gossamer.targets.torch_compile.spec import SPEC


def emit(program: Program, path: Path) -> None:
    """Write the bundle, which loads without executing code. Raises FileError when it cannot be written."""
    save(program, path)


TARGET = add_target(
    Target(
        spec=SPEC,
        suffix=".gossamer",
        emit=emit,
        open=open_bundle,
        notes=notes,
        package="torch",
        install=INSTALL,
        find_version=find_version,
        any_type=True,
    ),
    source="torch.compile of PyTorch 2.13 with its C++ backend",
)
