"""C code for Cortex-M chips, compiled by the GNU Arm toolchain and run on emulated boards."""

from gossamer.targets.cortex_m.emit import beside, emit
from gossamer.targets.cortex_m.run import COMPILER, INSTALL, flash_bytes, notes, open_file, toolchain_version
from gossamer.targets.cortex_m.spec import SPEC
from gossamer.targets.target import Target, add_target

TARGET = Target(
    spec=SPEC,
    suffix=".c",
    emit=emit,
    open=open_file,
    notes=notes,
    beside=beside,
    size=flash_bytes,
    package=COMPILER,
    install=INSTALL,
    find_version=toolchain_version,
)
add_target(TARGET, source="targets/cortex_m/runtime/gossamer_kernels.c")
