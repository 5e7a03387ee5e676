"""Chips that networks are put on: core, clock, flash and RAM by their data sheets."""

from __future__ import annotations

from dataclasses import dataclass

from gossamer.registry import Registry

CYCLES = {"cortex-m4": 1.5, "cortex-m7": 1.0, "cortex-m55": 1.5}
ASSUMPTION = (
    "assumed cycles per instruction: 1.5 on Cortex-M4 (loads and taken branches take 2 and more, flash waits are hidden), 1.0 on Cortex-M7 "
    "(two at once; as the ratio of Arm's CoreMark/MHz, 3.42 and 5.01, says), 1.5 on Cortex-M55 (vector instructions take 2)"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Chip:
    """core: as the emulated boards are called; ram_bytes: the largest piece, since one arena lies in one piece."""

    name: str
    core: str
    clock_mhz: float
    flash_bytes: int
    ram_bytes: int

    def latency_ms(self, instructions: int) -> float:
        """An estimate: counted instructions times the assumed cycles of each, at the highest clock."""
        return instructions * CYCLES[self.core] / (self.clock_mhz * 1e3)


chips: Registry[Chip] = Registry("board")


def _add(name: str, core: str, clock_mhz: float, flash_kib: int, ram_kib: int, source: str) -> None:
    chip = Chip(name=name, core=core, clock_mhz=clock_mhz, flash_bytes=flash_kib << 10, ram_bytes=ram_kib << 10)
    chips.add(name, source=source)(chip)


_add("nrf52840", "cortex-m4", 64, 1024, 256, "Nordic Semiconductor, nRF52840 product specification")
_add("stm32l4r5zi", "cortex-m4", 120, 2048, 640, "STMicroelectronics, data sheet DS12023; the reference board of MLPerf Tiny")
_add("stm32f446re", "cortex-m4", 180, 512, 128, "STMicroelectronics, data sheet DS10693")
_add("stm32f746ng", "cortex-m7", 216, 1024, 320, "STMicroelectronics, data sheet DS10916")
_add("stm32h743zi", "cortex-m7", 480, 2048, 512, "STMicroelectronics, data sheet DS12110; RAM: the AXI SRAM")
_add("alif-e3-hp", "cortex-m55", 400, 5632, 4096, "Alif Semiconductor, Ensemble E3 data sheet; the high-performance core, RAM: SRAM0")
