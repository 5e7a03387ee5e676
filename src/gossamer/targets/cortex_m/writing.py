"""What the writer of an operator's C statement sees, and the table of writers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from gossamer.errors import UnsupportedOp
from gossamer.numerics.affine import Quantizer
from gossamer.numerics.fixed_point import quantize_multiplier
from gossamer.registry import Registry
from gossamer.targets.cortex_m.code import Network
from gossamer.targets.tflite.draft import DraftOp, DraftTensor

_BYTES = {"int8_t": 1, "int16_t": 2, "int32_t": 4, "float": 4, "gs_factor": 8}
_C = {"int8": "int8_t", "int32": "int32_t", "float32": "float"}


@dataclass
class Page:
    """Constants of the file being written, in order; equal ones once."""

    constants: dict[str, str] = field(default_factory=dict)  # C text of the values -> name
    lines: list[str] = field(default_factory=list)
    bytes: int = 0

    def array(self, kind: str, values: str, count: int) -> str:
        """The name of a constant array."""
        text = f"{kind}|{values}"
        if text not in self.constants:
            name = f"constant{len(self.constants)}"
            self.constants[text] = name
            self.bytes += count * _BYTES[kind]
            self.lines.append(f"static const {kind} {name}[{count}] = {{{values}}};")
        return self.constants[text]


@dataclass(frozen=True)
class Writing:
    """One operator to write."""

    network: Network
    op: DraftOp
    page: Page
    step: int

    def tensor(self, position: int) -> DraftTensor:
        """An input."""
        return self.network.tensor(self.op.inputs[position])

    @property
    def result(self) -> DraftTensor:
        """The first output."""
        return self.network.tensor(self.op.outputs[0])

    @property
    def coded(self) -> bool:
        """Whether it reads and writes codes."""
        return self.result.dtype == "int8" and self.tensor(0).dtype == "int8"

    def quantizer(self, position: int) -> Quantizer:
        """Of an input."""
        found = self.tensor(position).quantizer
        assert found is not None
        return found

    @property
    def result_quantizer(self) -> Quantizer:
        """Of the first output."""
        assert self.result.quantizer is not None
        return self.result.quantizer

    def address(self, position: int) -> str:
        """Of an input, constant or not."""
        tensor = self.tensor(position)
        if tensor.data is not None:
            return self.constant(tensor.data)
        return self.network.place[self.op.inputs[position]]

    @property
    def out(self) -> str:
        """Address of the first output."""
        return self.network.place[self.op.outputs[0]]

    @property
    def scratch(self) -> tuple[str, int]:
        """Address and bytes of the memory that the operator may work in."""
        return self.network.scratch[self.step]

    def constant(self, data: npt.NDArray[np.generic]) -> str:
        """The name of an array in flash."""
        flat = data.reshape(-1)
        if data.dtype == np.float32:
            values = ", ".join(c_float(float(number)) for number in flat)
        else:
            values = ", ".join(map(str, flat.tolist()))
        return self.page.array(_C[data.dtype.name], values, flat.size)

    def factors(self, numbers: list[float]) -> str:
        """The name of an array of factors."""
        pairs = quantized_factors(numbers)
        return self.page.array("gs_factor", ", ".join(f"{{{m}, {e}}}" for m, e in pairs), len(pairs))

    def unsupported(self, what: str) -> UnsupportedOp:
        """The error for a case that has no kernel."""
        return UnsupportedOp(what, self.result.name, needed="Cortex-M", way_out="keep that part out of the file, or choose another target")


Writer = Callable[[Writing], str]
writers: Registry[Writer] = Registry("Cortex-M statement")


def quantized_factors(numbers: list[float]) -> list[tuple[int, int]]:
    """Each number as a whole number of 31 bits and a shift."""
    return [quantize_multiplier(number) for number in numbers]


def c_float(number: float) -> str:
    """A number as C writes it."""
    text = repr(float(np.float32(number)))
    return {"inf": "INFINITY", "-inf": "-INFINITY"}.get(text, f"{text}f" if any(c in text for c in ".e") else f"{text}.0f")


def zeros(writing: Writing) -> str:
    """Zero points of the first input and of the result."""
    return f"{writing.quantizer(0).zero_point[0]}, {writing.result_quantizer.zero_point[0]}"
