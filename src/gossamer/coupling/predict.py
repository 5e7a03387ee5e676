"""What a network would cost after a removal, from the analysis alone: fast enough to search with."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from torch import Tensor

from gossamer.coupling import labels as lab
from gossamer.coupling.analysis import Analysis, flat_labels
from gossamer.coupling.kept import kept_shape, state_keeps
from gossamer.program.constants import fold_weights
from gossamer.program.cost import Buffer, buffers, flat_metas, node_macs, peak_of
from gossamer.program.graph import Node, Ref
from gossamer.program.ops import bind, op_of
from gossamer.program.ops.kinds import Convolution, Linear, Recurrent
from gossamer.program.program import Program
from gossamer.program.shapes import TensorMeta


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
    """Counts what Cost counts, for a keep table (see coupling.kept.keep_table), computed weights stored as plain ones."""

    def __init__(self, program: Program, analysis: Analysis) -> None:
        program = fold_weights(program)
        self._program = program
        self._analysis = analysis
        tensors = {name: _describe(tensor.shape, analysis.factors.get(name, ())) for name, tensor in program.state.items()}
        unique = {id(tensor): name for name, tensor in program.named_parameters(remove_duplicate=False)}
        self._parameters = [tensors[name] for name in unique.values() if name in tensors]
        distinct = {id(tensor): name for name, tensor in program.state.items()}
        self._stored = [(tensors[name], program.state[name].element_size()) for name in distinct.values()]
        self._fixed_macs = 0
        self._layers: list[tuple[_Tensor, float]] = []  # (weight, MACs per element of it)
        self._products: list[Node] = []
        for node in program.graph.nodes:
            macs = node_macs(node, analysis.metas)
            kind = op_of(node).kind
            weight = bind(node).get("weight") if isinstance(kind, (Convolution, Linear)) else None
            if (
                isinstance(weight, Ref)
                and weight.name in tensors
                and not (isinstance(kind, Linear) and _passes(analysis.values[node.name]))
            ):
                self._layers.append((tensors[weight.name], macs / program.state[weight.name].numel()))
            elif isinstance(kind, Recurrent):
                weights = [ref.name for ref in bind(node)["params"] if program.state[ref.name].dim() == 2]
                each = macs / sum(program.state[name].numel() for name in weights)
                self._layers += [(tensors[name], each) for name in weights]
            elif macs and any(_carries(analysis.values.get(name)) for name in node.uses):
                self._products.append(node)
            else:
                self._fixed_macs += macs

    def params(self, table: np.ndarray) -> int:
        """Elements of the parameters that stay."""
        return sum(tensor.kept(table) for tensor in self._parameters)

    def macs(self, table: np.ndarray) -> int:
        """Multiply-accumulates that stay, for one input."""
        layers = round(sum(weight.kept(table) * each for weight, each in self._layers))
        return self._fixed_macs + layers + sum(self._product_macs(node, table) for node in self._products)

    def size_bytes(self, table: np.ndarray) -> int:
        """Bytes of parameters and buffers that stay, as they are stored now."""
        return sum(tensor.kept(table) * each for tensor, each in self._stored)

    def peak_memory_bytes(self, table: np.ndarray) -> int:
        """The most that what stays of inputs and results takes at once, for one input."""
        memory, values = self._memory
        kept = {value: tensor.kept(table) * each for value, (tensor, each) in values.items()}
        return peak_of(memory, [max(kept[value] for value in buffer.values) for buffer in memory])

    @cached_property
    def _memory(self) -> tuple[tuple[Buffer, ...], dict[tuple[str, int], tuple[_Tensor, int]]]:
        """All buffers, and for each value in them its labelled size and the bytes of an element."""
        analysis = self._analysis
        memory = buffers(self._program, analysis.metas)
        values = {}
        for name, place in {value for buffer in memory for value in buffer.values}:
            meta = flat_metas(analysis.metas[name])[place]
            found = analysis.values.get(name)
            labels = flat_labels(found[place] if isinstance(found, tuple) and place < len(found) else found)
            tensor = _describe(meta.shape, tuple(labels))
            values[name, place] = (tensor, meta.dtype.itemsize)
        return memory, values

    def _product_macs(self, node: Node, table: np.ndarray) -> int:
        """Of a product of values, from the sizes that stay."""
        metas = dict(self._analysis.metas)
        for name in (*node.uses, node.name):
            labels, meta = self._analysis.values.get(name), metas[name]
            if isinstance(labels, (Tensor, lab.Pair)) and isinstance(meta, TensorMeta):
                metas[name] = replace(meta, shape=kept_shape(labels, table))
            elif name in self._analysis.factors and isinstance(meta, TensorMeta):
                keeps = state_keeps(self._analysis.factors[name], table)
                shape = tuple(int(keeps[axis].sum()) if axis in keeps else size for axis, size in enumerate(meta.shape))
                metas[name] = replace(meta, shape=shape)
        return node_macs(node, metas)


def _passes(labels: lab.Labels) -> bool:
    """Whether a linear layer's result also carries what another axis of its input does."""
    return any(axis < labels.dim() - 1 for side in lab.sides(labels) for axis in lab.varying(side))


def _carries(labels: object) -> bool:
    return isinstance(labels, (Tensor, lab.Pair)) and any(lab.varying(side) for side in lab.sides(labels))


def _describe(shape: tuple[int, ...], factors: tuple[Tensor, ...]) -> _Tensor:
    by_axis: dict[int, list[np.ndarray]] = {}
    for factor in factors:
        for axis in lab.varying(factor):
            by_axis.setdefault(axis, []).append(lab.vector(factor, axis))
    fixed = 1
    for axis, size in enumerate(shape):
        fixed *= 1 if axis in by_axis else size
    return _Tensor(fixed, tuple(tuple(vectors) for vectors in by_axis.values()))
