"""What a .tflite file says of itself for those who read it by this package: how inputs, outputs and values with codes are stored."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy.typing as npt

from gossamer.errors import DataError

Order = tuple[int, ...]
Array = npt.NDArray[Any]
CODES = "/codes"  # behind the name of a value in that of the tensor with its codes, where another tensor has the value's own name


@dataclass(frozen=True, slots=True)
class Note:
    """Stored axis k of a tensor is the logical axis order[k].

    inputs   order of each input, by name
    outputs  order of each output
    values   order of each tensor that holds the codes of a value, by number; its name is that of the value, or CODES is behind it
    """

    inputs: Mapping[str, Order]
    outputs: tuple[Order, ...]
    values: Mapping[int, Order]

    def stored(self, arrays: Sequence[Array]) -> list[Array]:
        """Arrays of the network's inputs, in order, with their axes as the file has them. Raises DataError for another number of either."""
        if len(arrays) != len(self.inputs):
            raise DataError(f"the file takes {len(self.inputs)} inputs; got {len(arrays)}.")
        for array, (name, order) in zip(arrays, self.inputs.items(), strict=True):
            if array.ndim != len(order):
                raise DataError(f"the input {name!r} has {len(order)} axes; got an array with {array.ndim}.")
        return [array.transpose(order) for array, order in zip(arrays, self.inputs.values(), strict=True)]

    def to_json(self) -> str:
        """As text; tensors with one order are listed together, since there are many values and few orders."""
        groups: dict[str, list[int]] = {}
        for number, order in self.values.items():
            groups.setdefault(_text(order), []).append(number)
        inputs = {name: _text(order) for name, order in self.inputs.items()}
        return json.dumps({"inputs": inputs, "outputs": [_text(order) for order in self.outputs], "values": groups}, separators=(",", ":"))

    @staticmethod
    def from_json(text: str) -> Note:
        """Inverse of to_json. Raises ValueError, TypeError, KeyError or AttributeError for other text."""
        data = json.loads(text)
        return Note(
            {name: _order(order) for name, order in data["inputs"].items()},
            tuple(_order(order) for order in data["outputs"]),
            {number: _order(order) for order, numbers in data["values"].items() for number in numbers},
        )


def value_name(tensor: str) -> str:
    """The value whose codes a tensor of this name holds."""
    return tensor.removesuffix(CODES)


def _text(order: Sequence[int]) -> str:
    return ".".join(map(str, order)) if any(axis > 9 for axis in order) else "".join(map(str, order))


def _order(text: str) -> Order:
    return tuple(map(int, text.split("."))) if "." in text else tuple(map(int, text))
