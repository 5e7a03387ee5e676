"""The .pte file and ExecuTorch, which runs it with XNNPACK's kernels on phones and CPUs. Importing this does not need executorch."""

from gossamer.targets.executorch.emit import emit, notes
from gossamer.targets.executorch.packages import INSTALL
from gossamer.targets.executorch.run import open_file, open_values
from gossamer.targets.executorch.spec import SPEC
from gossamer.targets.target import Target, add_target

TARGET = Target(spec=SPEC, suffix=".pte", emit=emit, open=open_file, open_values=open_values, notes=notes, install=INSTALL)
add_target(TARGET, source="schemas, partitioner and files of ExecuTorch 1.5.1 with XNNPACK on x86-64")
