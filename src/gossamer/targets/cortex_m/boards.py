"""Boards that the emulator knows, one for each core."""

from __future__ import annotations

from dataclasses import dataclass

from gossamer.registry import Registry


@dataclass(frozen=True, slots=True)
class Board:
    """An emulated board: its machine, the clock of its timer, the compiler's flags, and its memories (origin, bytes).

    Constants have one of their own, larger than that of any chip: the network before compression must run, too. Instructions are counted
    alike wherever they are.
    """

    machine: str
    clock_mhz: int
    flags: tuple[str, ...]
    flash: tuple[int, int]
    ram: tuple[int, int]
    constants: tuple[int, int]


boards: Registry[Board] = Registry("core")
_HARD = "-mfloat-abi=hard"
_LARGE = ((0x0, 4 << 20), (0x20000000, 4 << 20))
_TIGHT = ((0x0, 512 << 10), (0x20000000, 512 << 10), (0x21000000, 4 << 20))
boards.add("cortex-m4")(Board("mps2-an386", 25, ("-mcpu=cortex-m4", "-mfpu=fpv4-sp-d16", _HARD), *_LARGE, (0x21000000, 16 << 20)))
boards.add("cortex-m7")(Board("mps2-an500", 25, ("-mcpu=cortex-m7", "-mfpu=fpv5-d16", _HARD), *_LARGE, (0x60000000, 16 << 20)))
boards.add("cortex-m55")(Board("mps3-an547", 32, ("-mcpu=cortex-m55", "-mfpu=auto", _HARD), *_TIGHT))


def linker_script(board: Board) -> str:
    """The memories of a board, for the linker."""
    return f"""ENTRY(gs_reset)
MEMORY {{
  FLASH (rx) : ORIGIN = {board.flash[0]:#x}, LENGTH = {board.flash[1]}
  CONSTANTS (r) : ORIGIN = {board.constants[0]:#x}, LENGTH = {board.constants[1]}
  RAM (rwx) : ORIGIN = {board.ram[0]:#x}, LENGTH = {board.ram[1]}
}}
gs_stack = ORIGIN(RAM) + LENGTH(RAM);
SECTIONS {{
  .text : {{ KEEP(*(.vectors)) *(.text*) . = ALIGN(4); }} > FLASH
  .rodata : {{ *(.rodata*) . = ALIGN(4); }} > CONSTANTS
  .ARM.exidx : {{ *(.ARM.exidx*) }} > FLASH
  gs_data_flash = ALIGN(LOADADDR(.ARM.exidx) + SIZEOF(.ARM.exidx), 8);
  .data : AT(gs_data_flash) {{ . = ALIGN(4); gs_data = .; *(.data*) . = ALIGN(4); gs_data_end = .; }} > RAM
  .bss : {{ . = ALIGN(4); gs_bss = .; *(.bss*) *(COMMON) . = ALIGN(4); gs_bss_end = .; end = .; __end__ = .; }} > RAM
}}
"""
