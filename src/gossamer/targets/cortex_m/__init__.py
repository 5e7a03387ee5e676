"""C code for Cortex-M chips, compiled by the GNU Arm toolchain and run on emulated boards."""

from gossamer.targets.cortex_m.emit import emit
from gossamer.targets.cortex_m.run import COMPILER, INSTALL, open_file, toolchain_version
from gossamer.targets.cortex_m.spec import NAME, SPEC
from gossamer.targets.target import Target, targets

TARGET = Target(spec=SPEC, suffix=".c", emit=emit, open=open_file, package=COMPILER, install=INSTALL, find_version=toolchain_version)
targets.add(NAME)(TARGET)
