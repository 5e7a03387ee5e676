"""What portable kernels can compute before XNNPACK's graph runs."""

from __future__ import annotations

from collections.abc import Iterator

from gossamer.targets.executorch.calling import kernel_rows
from gossamer.targets.tflite.draft import Draft, DraftOp


class Leading:
    """Which operators lead to a tensor, by their places in a draft."""

    def __init__(self, draft: Draft) -> None:
        self._draft = draft
        self.makers = {number: place for place, op in enumerate(draft.ops) for number in op.outputs}

    def operators(self, place: int) -> set[int]:
        """An operator and all whose results it needs."""
        found, left = set(), [place]
        while left:
            one = left.pop()
            if one not in found:
                found.add(one)
                left += [self.makers[number] for number in self._draft.ops[one].inputs if number in self.makers]
        return found

    def is_ahead(self, tensor: int) -> bool:
        """Whether kernels can compute a tensor from what the caller hands in."""
        return tensor not in self.makers or self.are_kernels(self.operators(self.makers[tensor]))

    def are_kernels(self, places: set[int]) -> bool:
        """Whether kernels know all of these operators."""
        return all(is_kernel(self._draft, self._draft.ops[place]) for place in places)


def is_kernel(draft: Draft, op: DraftOp) -> bool:
    """Whether portable kernels know an operator; none of them computes on codes."""
    return op.code in kernel_rows and "int8" not in computed_types(draft, op)


def computed_types(draft: Draft, op: DraftOp) -> Iterator[str]:
    """Types of what an operator reads and makes, constants aside."""
    tensors = (draft.tensors[number] for number in (*op.inputs, *op.outputs) if number >= 0)
    return (tensor.dtype for tensor in tensors if tensor.data is None)
