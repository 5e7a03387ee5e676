"""A .pte file in memory, ready to run: ExecuTorch's compiled runtime without its Python wrapper."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from gossamer.targets.executorch.packages import RUNTIME, part


class Loaded:
    """A file's network on the process's pool of threads. Holds the bytes and what was read from them, which the runtime only points to."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._program: Any = part(RUNTIME)._load_program_from_buffer(data)
        self._method: Any = self._program.load_method("forward")

    def execute(self, inputs: Sequence[Tensor]) -> Sequence[Tensor]:
        """The outputs. Raises RuntimeError for inputs that do not fit, and for what kernels cannot do."""
        found: Sequence[Tensor] = self._method(list(inputs))
        return found

    @property
    def input_shapes(self) -> list[tuple[int, ...]]:
        """The largest shape of each input."""
        found = self._method.method_meta()
        return [tuple(found.input_tensor_meta(place).sizes()) for place in range(found.num_inputs())]
