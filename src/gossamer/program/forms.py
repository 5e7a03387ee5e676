"""Shapes with a free batch size: each size is a number, or grows with the batch in a known way.

Found by inferring shapes at several batch sizes, so no arithmetic on symbols is needed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from gossamer.program.program import Program
from gossamer.program.shapes import Meta, TensorMeta, infer_shapes

_PROBES = (2, 3, 7)  # two sizes fix a line, the third tells whether it is one
_CURVED = {f"scalar.{name}" for name in ("floordiv", "truediv", "mod", "pow", "max", "min")}  # without these it always is one


@dataclass(frozen=True, slots=True)
class BatchSize:
    """per_batch * batch + fixed."""

    per_batch: int
    fixed: int


@dataclass(frozen=True, slots=True)
class Unknown:
    """Depends on the batch size in another way."""


Size = int | BatchSize | Unknown


@dataclass(frozen=True, slots=True)
class Form:
    """Shape and dtype of a tensor at any batch size."""

    sizes: tuple[Size, ...]
    dtype: torch.dtype

    @property
    def shape(self) -> tuple[int | None, ...]:
        """The sizes with None for those that depend on the batch."""
        return tuple(size if isinstance(size, int) else None for size in self.sizes)

    @property
    def rank(self) -> int:
        """Number of axes."""
        return len(self.sizes)


# a tensor's form, a number (size or float), or a tuple of these for ops with several results
AnyForm = Form | Size | float | bool | None | tuple[Any, ...]


def find_forms(program: Program) -> Mapping[str, AnyForm]:
    """The form of every input, state tensor and node result."""
    curved = any(node.op in _CURVED for node in program.graph.nodes)
    probes = [infer_shapes(program, batch) for batch in (_PROBES if curved else _PROBES[:2])]
    return {name: _form([metas[name] for metas in probes]) for name in probes[0]}


def _form(metas: list[Meta]) -> AnyForm:
    first = metas[0]
    if isinstance(first, TensorMeta):
        shapes = [meta.shape for meta in metas if isinstance(meta, TensorMeta)]
        return Form(tuple(_size(list(sizes)) for sizes in zip(*shapes, strict=True)), first.dtype)
    if isinstance(first, tuple):
        return tuple(_form(list(items)) for items in zip(*metas, strict=True))  # type: ignore[arg-type]
    if isinstance(first, int) and not isinstance(first, bool):
        return _size([int(meta) for meta in metas])  # type: ignore[arg-type]
    return first if all(meta == first for meta in metas) else Unknown()


def _size(sizes: list[int]) -> Size:
    slope, remainder = divmod(sizes[1] - sizes[0], _PROBES[1] - _PROBES[0])
    fixed = sizes[0] - slope * _PROBES[0]
    if remainder or any(slope * batch + fixed != size for batch, size in zip(_PROBES, sizes, strict=False)):
        return Unknown()
    return BatchSize(slope, fixed) if slope else fixed


def product(sizes: Iterable[Size]) -> Size:
    """Their product; Unknown where it grows otherwise than with the batch."""
    total: Size = 1
    for size in sizes:
        match total, size:
            case int(), int():
                total = total * size
            case (BatchSize() as grows, int(factor)) | (int(factor), BatchSize() as grows):
                total = BatchSize(grows.per_batch * factor, grows.fixed * factor) if factor else 0
            case _:
                return Unknown()
    return total


def divided(size: Size, divisor: int) -> Size:
    """size / divisor; Unknown where that is not whole at every batch size."""
    if isinstance(size, int):
        return size // divisor
    if isinstance(size, BatchSize) and size.per_batch % divisor == 0 and size.fixed % divisor == 0:
        return BatchSize(size.per_batch // divisor, size.fixed // divisor)
    return Unknown()
