"""Values that no input decides: constants of the file, and those that follow from the batch size."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from gossamer.numerics.affine import dequantize, quantize
from gossamer.program.execute import DEVICE, TRAINING, run_steps, schedule
from gossamer.program.forms import AnyForm
from gossamer.program.graph import Graph, Node
from gossamer.program.ops import op_of
from gossamer.program.ops.kinds import Factory
from gossamer.program.program import Program
from gossamer.program.shapes import Meta, TensorMeta, infer_shapes

PROBES = (2, 3)  # batch sizes at which values are looked at


class Constants:
    """Computes nodes that read parameters, constants and sizes only, so that the file need not."""

    def __init__(self, program: Program, graph: Graph, metas: Mapping[str, Meta], forms: Mapping[str, AnyForm]) -> None:
        self._program, self._graph, self._forms = program, graph, forms
        self._metas: dict[int, Mapping[str, Meta]] = {1: metas}
        self._values: dict[int, dict[str, Tensor]] = {1: {}}
        self._of_batch: set[str] = set()

    def __contains__(self, name: str) -> bool:
        """Whether a value is a constant, or a parameter."""
        return name in self._program.state or name in self._values[1]

    def follows_batch(self, name: str) -> bool:
        """Whether a value is the same for all inputs of one batch size, and only for these."""
        return name in self._of_batch

    def take(self, node: Node) -> bool:
        """Whether a node is such a value; then it need not be written."""
        tensors = [name for name in node.uses if self._is_tensor(name)]
        sizes = getattr(self._forms[node.name], "sizes", None)
        if sizes is None or not (tensors or isinstance(op_of(node).kind, Factory)):
            return False
        if any(name not in self and name not in self._of_batch for name in tensors):
            return False
        if all(isinstance(size, int) for size in sizes) and not self._of_batch.intersection(tensors):
            self._values[1][node.name] = self._computed(node, 1)
        else:
            self._of_batch.add(node.name)
        return True

    def numbers(self, name: str) -> Tensor:
        """Of a parameter, as its codes have it, or of a constant."""
        if name in self._values[1]:
            return self._values[1][name]
        numbers, quantizer = self._program.state[name].detach().cpu(), self._program.quantizers.get(name)
        return numbers if quantizer is None else dequantize(quantize(numbers, quantizer), quantizer)

    def at(self, name: str, batch: int) -> Tensor:
        """A value at a batch size."""
        if name in self:
            return self.numbers(name)
        known = self._values.setdefault(batch, {})
        if name not in known:
            known[name] = self._computed(self._graph.by_name[name], batch)
        return known[name]

    def row(self, name: str) -> Tensor | None:
        """The one row (1, ...) that a value which follows the batch repeats for every sample; None where its rows differ."""
        rows = [self.at(name, batch) for batch in PROBES]
        first = rows[0][:1]
        same = all(len(value) == batch and torch.equal(value, first.expand_as(value)) for value, batch in zip(rows, PROBES, strict=True))
        return first.clone() if same else None

    def _computed(self, node: Node, batch: int) -> Tensor:
        if batch not in self._metas:
            self._metas[batch] = infer_shapes(self._program, batch)
        known: dict[str, Any] = {TRAINING: False, DEVICE: torch.device("cpu")}
        known |= {name: self.at(name, batch) if self._is_tensor(name) else self._metas[batch][name] for name in node.uses}
        with torch.no_grad():
            run_steps(schedule(replace(self._graph, nodes=(node,), outputs=(node.name,))), known)
        found: Tensor = known[node.name]
        return found

    def _is_tensor(self, name: str) -> bool:
        return isinstance(self._metas[1][name], (TensorMeta, tuple))
