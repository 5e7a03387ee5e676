"""The edits a plan is made of. Each names what it changes by ids that other edits do not move."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from gossamer.errors import PlanError
from gossamer.numerics.affine import Quantizer


@dataclass(frozen=True, slots=True)
class KeepChannels:
    """Keep these positions (sorted) of a coupled group of `size`; remove the others from every parameter in it."""

    group: str
    keep: tuple[int, ...]
    size: int

    def __post_init__(self) -> None:
        whole = all(type(position) is int for position in self.keep)
        ordered = whole and list(self.keep) == sorted(set(self.keep))
        if not self.keep or not ordered or self.keep[0] < 0 or self.keep[-1] >= self.size:
            raise PlanError(f"group {self.group!r} must keep sorted positions in [0, {self.size - 1}], at least one; got {self.keep[:8]}.")


@dataclass(frozen=True, slots=True)
class FoldBatchNorm:
    """Fold the batch norm node `node` into the layer before it."""

    node: str


@dataclass(frozen=True, slots=True)
class SplitGate:
    """Split the activation x * gate(x) `node` (SiLU, hard swish) into the gate and the product."""

    node: str


@dataclass(frozen=True, slots=True)
class QuantizeValue:
    """Give a value or parameter its codes."""

    value: str
    quantizer: Quantizer


@dataclass(frozen=True, slots=True)
class ShiftBias:
    """Add `shift` to the bias of the layer `node`, one number per output channel; makes a bias where there is none."""

    node: str
    shift: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class RoundWeight:
    """Move the codes of the weight `value` by `steps` from the nearest ones; numerics.packing turns steps into text."""

    value: str
    steps: str


Edit = KeepChannels | FoldBatchNorm | SplitGate | QuantizeValue | RoundWeight | ShiftBias
_KINDS: dict[str, type[Any]] = {
    kind.__name__: kind for kind in (KeepChannels, FoldBatchNorm, SplitGate, QuantizeValue, RoundWeight, ShiftBias)
}


def edit_to_json(edit: Edit) -> dict[str, Any]:
    """Plain data, with the edit's class under "edit"."""
    data: dict[str, Any] = {"edit": type(edit).__name__}
    for field in fields(edit):
        value = getattr(edit, field.name)
        data[field.name] = value.to_json() if isinstance(value, Quantizer) else list(value) if isinstance(value, tuple) else value
    return data


def edit_from_json(data: dict[str, Any]) -> Edit:
    """Inverse of edit_to_json. Raises PlanError for an unknown edit."""
    values = dict(data)
    kind = _KINDS.get(values.pop("edit", ""))
    if kind is None:
        raise PlanError(f"the plan holds an unknown edit {data.get('edit')!r}; it was made by a newer version.")
    for key, value in values.items():
        if isinstance(value, list):
            values[key] = tuple(value)
        elif isinstance(value, dict):
            values[key] = Quantizer.from_json(value)
    edit: Edit = kind(**values)
    return edit
