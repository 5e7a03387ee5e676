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
        _check_positions(self.group, self.keep, self.size)


@dataclass(frozen=True, slots=True)
class KeepHeads:
    """Keep these heads (sorted) of an attention layer with `size` of them; remove the others whole.

    Groups are those of coupling.analyse(program, "heads"). Heads go before channels, whatever the order of the edits.
    """

    group: str
    keep: tuple[int, ...]
    size: int

    def __post_init__(self) -> None:
        _check_positions(self.group, self.keep, self.size)


def _check_positions(group: str, keep: tuple[int, ...], size: int) -> None:
    whole = all(type(position) is int for position in keep)
    ordered = whole and list(keep) == sorted(set(keep))
    if not keep or not ordered or keep[0] < 0 or keep[-1] >= size:
        raise PlanError(f"group {group!r} must keep sorted positions in [0, {size - 1}], at least one; got {keep[:8]}.")


@dataclass(frozen=True, slots=True)
class RemoveBlock:
    """Leave out a residual branch, or a layer that keeps the shape: whatever read the value `node` reads `source`, from which
    the block started. coupling.blocks.find_blocks finds them. Blocks go after heads and channels, whatever the order of the edits.
    """

    node: str
    source: str


@dataclass(frozen=True, slots=True)
class StoreWeight:
    """Store the weight that the node `node` computes from other weights (a standardized one, say) as a plain parameter.

    It keeps its numbers at that moment; trained afterwards, it is trained as a plain weight.
    """

    node: str


@dataclass(frozen=True, slots=True)
class FoldBatchNorm:
    """Fold the batch norm node `node` into the layer before it."""

    node: str


@dataclass(frozen=True, slots=True)
class ConvolveBatchNorm:
    """Make the batch norm node `node`, which follows no layer, a depthwise convolution."""

    node: str


@dataclass(frozen=True, slots=True)
class SplitGate:
    """Split the activation x * gate(x) `node` (SiLU, hard swish) into the gate and the product."""

    node: str


@dataclass(frozen=True, slots=True)
class SplitAttention:
    """Split the attention `node` into its two products, a mask and a softmax."""

    node: str


@dataclass(frozen=True, slots=True)
class SplitTransposed:
    """Split the transposed convolution `node` into a convolution and the move of its channels to pixels."""

    node: str


@dataclass(frozen=True, slots=True)
class CopyForCodes:
    """Let the nodes `readers` read a copy of `value`, called VALUE_coded, so that it can have codes while whatever else reads the value
    reads floats."""

    value: str
    readers: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ScaleChannels:
    """Multiply the channels of `value`, which a layer, a norm or an embedding makes, by `factors`, then add `shifts` ("" for none),
    and make all that reads them take that back, so that the network computes what it did. numerics.packing turns both into text.

    Channels that are tied to these, as in a residual sum, change with them. It goes after batch norms are folded and gates split.
    """

    value: str
    factors: str
    shifts: str = ""


@dataclass(frozen=True, slots=True)
class ScaleInput:
    """Multiply what the linear layer `node` reads by `factors` with a node of its own, and make its weight take that back, for scale
    that nothing upstream can take. Layers that read one value with the same factors share the node. It goes after ScaleChannels."""

    node: str
    factors: str


@dataclass(frozen=True, slots=True)
class QuantizeValue:
    """Give a value or parameter its codes."""

    value: str
    quantizer: Quantizer


WHOLE, ROWS = 0, -1  # in place of a number of values


@dataclass(frozen=True, slots=True)
class QuantizeInput:
    """Round the input of the layer `node` while the network runs: runs of `block` values to symmetric codes of `bits` bits; where
    `block` is WHOLE, all of it to unsigned codes with one zero point; where it is ROWS, each row to signed ones with its own."""

    node: str
    bits: int
    block: int


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


@dataclass(frozen=True, slots=True)
class SparsifyWeight:
    """Make numbers of the weight `value` zero for good where `mask` says so; numerics.packing turns masks into text.

    Only which weights stay is decided here, one bit each. What the others become is a function of the mask and of inputs,
    which repairs compute (plan.repair), so that plans stay small and the same mask serves other weights, too.
    """

    value: str
    mask: str


Edit = (
    RemoveBlock
    | KeepHeads
    | KeepChannels
    | StoreWeight
    | FoldBatchNorm
    | ConvolveBatchNorm
    | SplitGate
    | SplitAttention
    | SplitTransposed
    | CopyForCodes
    | ScaleChannels
    | ScaleInput
    | QuantizeValue
    | QuantizeInput
    | RoundWeight
    | ShiftBias
    | SparsifyWeight
)
_KINDS: dict[str, type[Any]] = {
    kind.__name__: kind
    for kind in (
        RemoveBlock,
        KeepHeads,
        KeepChannels,
        StoreWeight,
        FoldBatchNorm,
        ConvolveBatchNorm,
        SplitGate,
        SplitAttention,
        SplitTransposed,
        CopyForCodes,
        ScaleChannels,
        ScaleInput,
        QuantizeValue,
        QuantizeInput,
        RoundWeight,
        ShiftBias,
        SparsifyWeight,
    )
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
