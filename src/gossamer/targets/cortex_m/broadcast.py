"""Sums and products of two values that repeat along any axes: loops around kernels that know one operand to repeat as a whole."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod

from gossamer.targets.cortex_m.writing import Writer, Writing
from gossamer.targets.tflite.draft import DraftTensor


@dataclass(frozen=True)
class Block(Writing):
    """An operator on blocks of its values. shapes, offsets: of the operands and of the result, which comes last; offsets in numbers."""

    shapes: tuple[tuple[int, ...], ...]
    offsets: tuple[str, ...]

    def tensor(self, position: int) -> DraftTensor:
        """The block of an input."""
        return replace(super().tensor(position), shape=self.shapes[position])

    @property
    def result(self) -> DraftTensor:
        """The block of the result."""
        return replace(super().result, shape=self.shapes[-1])

    def address(self, position: int) -> str:
        """Where the block of an input begins."""
        return super().address(position) + self.offsets[position]

    @property
    def out(self) -> str:
        """Where the block of the result begins."""
        return super().out + self.offsets[-1]


def along_all_axes(write: Writer) -> Writer:
    """A writer for operands that repeat along any axes, from one for those of which one repeats as a whole."""

    def written(writing: Writing) -> str:
        whole = writing.result.shape
        shapes = [_of_rank(writing.tensor(position).shape, len(whole)) for position in range(2)]
        start = next(k for k in range(len(whole) + 1) if _repeats_as_a_whole([shape[k:] for shape in shapes], whole[k:]))
        if start == 0 or by_row(writing):
            return write(writing)
        loops = _loops([*shapes, whole], start)
        heads = [f"for (int i{k} = 0; i{k} < {size}; ++i{k}) " for k, (size, _) in enumerate(loops)]
        offsets = ["".join(f" + i{k} * {steps[k2]}" for k, (_, steps) in enumerate(loops) if steps[k2]) for k2 in range(3)]
        blocks = tuple(shape[start:] for shape in (*shapes, whole))
        return "".join(heads) + write(Block(writing.network, writing.op, writing.page, writing.step, blocks, tuple(offsets)))

    return written


def by_row(writing: Writing) -> str:
    """Rows and columns, where the second operand has one float for each row of the first; "" elsewhere."""
    whole, shape = writing.tensor(0).shape, writing.tensor(1).shape
    sizes = [axis for axis, size in enumerate(shape) if size != 1]
    end = sizes[-1] + 1 if sizes else 0
    fits = not writing.coded and len(shape) == len(whole) and 0 < end < len(whole) and shape[:end] == whole[:end]
    return f"{prod(whole[:end])}, {prod(whole[end:])}" if fits else ""


def _of_rank(shape: Sequence[int], rank: int) -> tuple[int, ...]:
    return (1,) * (rank - len(shape)) + tuple(shape)


def _repeats_as_a_whole(shapes: Sequence[tuple[int, ...]], whole: tuple[int, ...]) -> bool:
    """Whether one operand is as large as the result, and the other one holds what its last axes are, again and again."""
    small, large = sorted(shapes, key=prod)
    trailing = small[next((axis for axis, size in enumerate(small) if size != 1), len(small)) :]
    return large == whole and whole[len(whole) - len(trailing) :] == trailing


def _loops(shapes: Sequence[tuple[int, ...]], start: int) -> list[tuple[int, tuple[int, ...]]]:
    """(size, steps of each value in numbers) of the axes in front of `start`, neighbours that make one longer axis together."""
    loops: list[tuple[int, tuple[int, ...]]] = []
    for axis, size in enumerate(shapes[-1][:start]):
        steps = tuple(prod(shape[axis + 1 :]) if shape[axis] != 1 else 0 for shape in shapes)
        if size == 1:
            continue
        if loops and loops[-1][1] == tuple(size * step for step in steps):
            loops[-1] = loops[-1][0] * size, steps
        else:
            loops.append((size, steps))
    return loops
