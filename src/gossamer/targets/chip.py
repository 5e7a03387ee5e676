"""What a chip will make of a written network, before anything is flashed: sizes, counted instructions, and estimates for named boards."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from gossamer.plan.chips import ASSUMPTION, chips

MOST_NAMED = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class ChipLayer:
    """One step of the network.

    instructions    that the emulator counted for one sample
    constant_bytes  of its weights, biases and factors; numbers that several steps share count at the first one
    arena_bytes     of all values that are alive meanwhile
    """

    name: str
    op: str
    instructions: int
    constant_bytes: int
    arena_bytes: int


class BoardRow(NamedTuple):
    """One board as text: its name, clock, what is used of flash and RAM, whether that fits, and the estimates."""

    name: str
    clock: str
    flash: str
    ram: str
    fits: str
    latency: str
    rate: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ChipReport:
    """A network compiled for one core and run on its emulator.

    kernels      which kernels its code calls
    flash_bytes  code and constants of the network alone
    arena_bytes  that its values lie in
    io_bytes     of its inputs and outputs, which the caller holds
    board        the board that it was asked for; "" for none
    """

    core: str
    kernels: str
    flash_bytes: int
    arena_bytes: int
    io_bytes: int
    layers: tuple[ChipLayer, ...]
    board: str = ""

    @property
    def instructions(self) -> int:
        """Of one inference. They are no cycles of a chip."""
        return sum(layer.instructions for layer in self.layers)

    @property
    def ram_bytes(self) -> int:
        """Arena, inputs and outputs; the stack and the rest of the firmware come on top."""
        return self.arena_bytes + self.io_bytes

    def facts(self) -> tuple[str, ...]:
        """What was measured, then what is estimated, one sentence each; what does not fit the board that was asked for comes last."""
        kernels, core = self.kernels, self.core.replace("cortex-m", "Cortex-M")
        return (
            f"On an emulated {core} with {kernels}: {self.instructions:,} instructions for one inference, {self.flash_bytes:,} bytes of flash, "
            f"{self.arena_bytes:,} of arena and {self.io_bytes:,} of inputs and outputs (stack and the rest of the firmware come on top).",
            f"Rates of boards are estimates, not measurements: instructions under emulation, the highest clock of the data sheet, {ASSUMPTION}.",
            *self.misfit(),
        )

    def misfit(self) -> tuple[str, ...]:
        """By how much the network exceeds the board that was asked for, and which layers hold the most; empty where it fits."""
        if not self.board:
            return ()
        chip, found = chips[self.board], []
        for what, needed, there, held in (
            ("flash", self.flash_bytes, chip.flash_bytes, lambda layer: layer.constant_bytes),
            ("RAM", self.ram_bytes, chip.ram_bytes, lambda layer: layer.arena_bytes),
        ):
            if needed > there:
                found.append(does_not_fit(chip.name, what, needed - there, self.layers, held))
        return tuple(found)

    def board_rows(self) -> tuple[BoardRow, ...]:
        """Each known board with this core; latencies and rates are estimates."""
        rows = []
        for chip in (entry.value for entry in chips if entry.value.core == self.core):
            milliseconds = chip.latency_ms(self.instructions)
            fits = self.flash_bytes <= chip.flash_bytes and self.ram_bytes <= chip.ram_bytes
            rows.append(
                BoardRow(
                    chip.name,
                    f"{chip.clock_mhz:g} MHz",
                    f"{self.flash_bytes / chip.flash_bytes:.0%} of {chip.flash_bytes:,}",
                    f"{self.ram_bytes / chip.ram_bytes:.0%} of {chip.ram_bytes:,}",
                    "yes" if fits else "no",
                    f"{milliseconds:.3g}" if fits else "-",
                    f"{1000 / milliseconds:.3g}" if fits else "-",
                )
            )
        return tuple(rows)

    def layer_rows(self) -> tuple[tuple[str, ...], ...]:
        """Name, operator, instructions, bytes of constants, bytes of the arena in use."""
        return tuple(
            (layer.name, layer.op, f"{layer.instructions:,}", f"{layer.constant_bytes:,}", f"{layer.arena_bytes:,}")
            for layer in self.layers
        )

    @staticmethod
    def from_dict(data: Mapping[str, Any]) -> ChipReport:
        """Inverse of dataclasses.asdict. Raises KeyError, TypeError or ValueError for other data."""
        layers = tuple(
            ChipLayer(
                name=str(layer["name"]),
                op=str(layer["op"]),
                instructions=int(layer["instructions"]),
                constant_bytes=int(layer["constant_bytes"]),
                arena_bytes=int(layer["arena_bytes"]),
            )
            for layer in data["layers"]
        )
        sizes = {name: int(data[name]) for name in ("flash_bytes", "arena_bytes", "io_bytes")}
        return ChipReport(core=str(data["core"]), kernels=str(data["kernels"]), layers=layers, board=str(data["board"]), **sizes)


BOARD_HEADER = ("board", "clock", "flash", "RAM", "fits", "latency, ms (estimate)", "per second (estimate)")
LAYER_HEADER = ("layer", "operator", "instructions (emulated)", "bytes of constants", "bytes alive in the arena")


def does_not_fit(board: str, what: str, excess: int, layers: Sequence[ChipLayer], held: Callable[[ChipLayer], int]) -> str:
    """One sentence: by how much, and where the most is."""
    largest = sorted(layers, key=held, reverse=True)[:MOST_NAMED]
    where = ", ".join(f"{layer.name} ({held(layer):,})" for layer in largest)
    return f"The network does not fit {board}: its {what} is {excess:,} bytes too small; most bytes are held by {where}."
