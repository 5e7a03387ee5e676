"""What a network would cost after a removal, from the analysis alone: fast enough to search with."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from gossamer.coupling import labels as lab
from gossamer.coupling.analysis import Analysis
from gossamer.program.cost import node_macs
from gossamer.program.graph import Ref
from gossamer.program.ops import bind, op_of
from gossamer.program.ops.kinds import Convolution, Linear
from gossamer.program.program import Program


@dataclass(frozen=True, slots=True)
class _Tensor:
    """Elements of a state tensor: `fixed` of them per combination of kept positions on the labelled axes."""

    fixed: int
    axes: tuple[tuple[np.ndarray, ...], ...]  # per axis, the label vectors that must all stay

    def kept(self, table: np.ndarray) -> int:
        count = self.fixed
        for vectors in self.axes:
            stay = table[vectors[0]]
            for other in vectors[1:]:
                stay = stay & table[other]
            count *= int(stay.sum())
        return count


class Predictor:
    """Counts parameters and MACs for a keep table (see coupling.kept.keep_table)."""

    def __init__(self, program: Program, analysis: Analysis) -> None:
        tensors = {name: _describe(tensor.shape, analysis.factors.get(name, ())) for name, tensor in program.state.items()}
        unique = {id(tensor): name for name, tensor in program.named_parameters(remove_duplicate=False)}
        self._parameters = [tensors[name] for name in unique.values() if name in tensors]
        self._fixed_macs = 0
        self._layers: list[tuple[_Tensor, float]] = []  # (weight, MACs per element of it)
        for node in program.graph.nodes:
            macs = node_macs(node, analysis.metas)
            weight = bind(node).get("weight") if isinstance(op_of(node).kind, (Convolution, Linear)) else None
            if isinstance(weight, Ref) and weight.name in tensors:
                self._layers.append((tensors[weight.name], macs / program.state[weight.name].numel()))
            else:
                self._fixed_macs += macs

    def params(self, table: np.ndarray) -> int:
        """Elements of the parameters that stay."""
        return sum(tensor.kept(table) for tensor in self._parameters)

    def macs(self, table: np.ndarray) -> int:
        """Multiply-accumulates that stay, for one input."""
        return self._fixed_macs + round(sum(weight.kept(table) * each for weight, each in self._layers))


def _describe(shape: tuple[int, ...], factors: tuple[Tensor, ...]) -> _Tensor:
    by_axis: dict[int, list[np.ndarray]] = {}
    for factor in factors:
        for axis in lab.varying(factor):
            by_axis.setdefault(axis, []).append(lab.vector(factor, axis))
    fixed = 1
    for axis, size in enumerate(shape):
        fixed *= 1 if axis in by_axis else size
    return _Tensor(fixed, tuple(tuple(vectors) for vectors in by_axis.values()))
