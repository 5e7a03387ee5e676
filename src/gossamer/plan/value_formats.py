"""Formats of values: one for all, and others for what some layers read."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace

from gossamer.numerics.formats import IntFormat
from gossamer.plan.placement import Placement

EXACT_BITS = 7  # of one of two factors: sums of two products with 8-bit codes stay within 16 bits


@dataclass(frozen=True, slots=True)
class ValueFormats:
    """default: of all values that no layer asks another format for; asked: what layers ask for what they read, by node; exact: whether second
    factors of products, which kernels take for weights, have 7 bits as those, so that no kernel saturates."""

    default: IntFormat
    asked: Mapping[str, IntFormat]
    exact: bool = False

    def renamed(self, names: Mapping[str, str]) -> ValueFormats:
        """The same for layers that others have taken the place of: old name -> new one."""
        return replace(self, asked={names.get(node, node): fmt for node, fmt in self.asked.items()})

    def of(self, placement: Placement, values: Collection[str]) -> IntFormat:
        """The format of values that share a quantizer: the finest that a layer which reads one of them asks for."""
        wanted = [self.asked.get(layer.node, self.default) for layer in placement.layers if layer.source in values]
        finest = max(wanted, key=lambda fmt: fmt.bits, default=self.default)
        second = self.exact and not placement.second_factors.isdisjoint(values)
        return replace(finest, bits=min(finest.bits, EXACT_BITS)) if second else finest

    def notes(self, placement: Placement) -> Iterator[str]:
        """A sentence for each layer that reads finer codes than it asked for."""
        for group in placement.groups:
            given = self.of(placement, group.values)
            for layer in placement.layers:
                wanted = self.asked.get(layer.node)
                if layer.source in group.values and wanted is not None and wanted.bits < given.bits:
                    yield f"{layer.node!r} reads {given.name} in place of {wanted.name}, since another layer reads the same codes."
