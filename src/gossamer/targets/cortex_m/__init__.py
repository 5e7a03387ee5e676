"""C code for Cortex-M chips, compiled by the GNU Arm toolchain and run on emulated boards: with our kernels, or with CMSIS-NN's."""

from dataclasses import replace
from functools import partial

from gossamer.targets.cortex_m import cmsis
from gossamer.targets.cortex_m.emit import beside, emit
from gossamer.targets.cortex_m.run import COMPILER, INSTALL, flash_bytes, inspect, notes, open_file, ram_bytes, toolchain_version
from gossamer.targets.cortex_m.spec import SPEC
from gossamer.targets.target import Target, add_target


def cmsis_version() -> str | None:
    """Of the compiler and of CMSIS-NN; None where one of them is missing."""
    compiler = toolchain_version()
    return None if compiler is None or cmsis.sources() is None else f"{compiler} with {cmsis.CMSIS.title}"


TARGET = Target(
    spec=SPEC,
    suffix=".c",
    emit=emit,
    own_ends=(
        "its C function takes and gives int8 codes by itself where the network has them at its ends; "
        "for uint8 bytes flip the top bit of each (byte ^ 0x80) before and after the call"
    ),
    open=open_file,
    notes=notes,
    beside=beside,
    size=flash_bytes,
    ram=ram_bytes,
    inspect=inspect,
    package=COMPILER,
    install=INSTALL,
    find_version=toolchain_version,
)
CMSIS_TARGET = replace(
    TARGET,
    spec=replace(SPEC, name=cmsis.NAME),
    emit=partial(emit, kernels=cmsis.CMSIS),
    install=f"{INSTALL} && {cmsis.INSTALL}",
    find_version=cmsis_version,
)
add_target(TARGET, source="targets/cortex_m/runtime/gossamer_kernels.c")
add_target(CMSIS_TARGET, source="CMSIS-NN 4.0.0, Lai et al. 2018, arXiv:1801.06601")
