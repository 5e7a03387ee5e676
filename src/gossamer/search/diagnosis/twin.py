"""The float twin of a quantized network: the same graph, nothing rounded; and running only what lies behind a change."""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from gossamer.apply.quantize import restructure
from gossamer.batches import Batches
from gossamer.errors import PlanError
from gossamer.numerics.affine import fake_quantize
from gossamer.numerics.distance import sqnr_db
from gossamer.plan.calibrate import chunks
from gossamer.plan.plan import Plan
from gossamer.program.capture import relative_error
from gossamer.program.execute import DEVICE, TRAINING, Step, run_steps
from gossamer.program.graph import Graph, Node, Ref
from gossamer.program.ops.own import ROUNDED
from gossamer.program.program import Program
from gossamer.targets.value_errors import aligned

LEAST_DB = -2.0  # of a weight's codes: those of other weights of the same size have -3; codes that are too coarse 0 or so
TOLERANCE = 1e-3  # relative, between the twin and the float network: folding adds in another order
_SAME = "aten.clone.default"
Inputs = tuple[Tensor, ...]


def float_twin(quantized: Program, original: Program, plan: Plan | None) -> Program:
    """A float program with the quantized one's graph and the original's numbers: batch norms folded and gates split alike, roundings
    of values that happen while it runs passed by, biases that quantizing made zero.
    """
    reference = aligned(original.copy().eval(), quantized) if plan is None else restructure(original, plan.edits).eval()
    graph = _without_roundings(quantized.graph)
    known, state = reference.state, {}
    for name, tensor in quantized.state.items():
        float_tensor = known.get(name)
        if float_tensor is None:
            float_tensor = torch.zeros_like(tensor)
        elif float_tensor.shape != tensor.shape:
            raise PlanError(
                f"the float network's {name!r} has another shape than the quantized one's; name the network that was quantized."
            )
        state[name] = float_tensor.detach()
    return Program(graph, quantized.inputs, state)


def check_twin(twin: Program, original: Program, quantized: Program, inputs: Inputs) -> None:
    """Raise PlanError unless the twin computes what the float network does, and its weights are near those of the codes."""
    for name, quantizer in quantized.quantizers.items():
        if name in quantized.state:
            level = sqnr_db(twin.state[name].detach(), fake_quantize(quantized.state[name].detach(), quantizer))
            if level < LEAST_DB:
                raise PlanError(
                    f"the quantized network's {name!r} is not the float network's ({level:.1f} dB); name the float network that was quantized, "
                    "and give its plan where it has one."
                )
    with torch.inference_mode():
        expected = original(*inputs) if not original.training else original.copy().eval()(*inputs)
        got = twin(*inputs)
    for one, other in zip(_tuple(expected), _tuple(got), strict=True):
        error = relative_error(other, one)
        if not error <= TOLERANCE:
            raise PlanError(
                f"the quantized network's float form differs from the float network by {error:.2g} (relative); name the float network "
                "that was quantized, and give its plan where it has one."
            )


class Replay:
    """One run of a float program over some samples, with everything in it kept, so that a change costs only what lies behind it."""

    def __init__(self, program: Program, inputs: Inputs) -> None:
        self._program = program
        self.values: dict[str, Any] = {name: tensor.detach() for name, tensor in program.state.items()}
        self.values |= {spec.name: tensor for spec, tensor in zip(program.inputs, inputs, strict=True)}
        self.values |= {TRAINING: False, DEVICE: program.device}
        run_steps(program.steps, ChainMap({}, self.values), self._keep)

    def _keep(self, name: str, value: Any) -> None:
        self.values[name] = value

    @property
    def outputs(self) -> tuple[Tensor, ...]:
        """The network's outputs."""
        return tuple(self.values[name] for name in self._program.graph.outputs)

    def rerun(self, changes: Mapping[str, Any], steps: Sequence[Step]) -> tuple[Tensor, ...]:
        """The outputs with these values replaced; `steps` are those of `steps_behind`."""
        values: ChainMap[str, Any] = ChainMap(dict(changes), self.values)
        run_steps(tuple(steps), values)
        return tuple(values[name] for name in self._program.graph.outputs)


def steps_behind(program: Program, names: Sequence[str]) -> tuple[Step, ...]:
    """The calls that a change of these values reaches; those that make them are not among them."""
    reached, found = set(names), []
    for node, step in zip(program.graph.nodes, program.steps, strict=True):
        if node.name not in names and reached.intersection(node.uses):
            reached.add(node.name)
            found.append(step)
    return tuple(found)


def sample_chunks(program: Program, batches: Batches, samples: int, most: int) -> Iterator[Inputs]:
    """The first `samples` samples in parts of at most `most`; a network of a fixed batch gets whole batches."""
    left = samples
    for inputs, _ in batches:
        for part in chunks(program, inputs):
            any_batch = all(spec.shape and spec.shape[0] is None for spec in program.inputs)
            number = part[0].shape[0] if part[0].dim() else 1
            for start in range(0, min(number, left), most) if any_batch else (0,):
                yield tuple(tensor[start : min(start + most, left)] for tensor in part) if any_batch else part
            left -= number
            if left <= 0:
                return


def _without_roundings(graph: Graph) -> Graph:
    """The graph with roundings that happen while it runs as copies, so that names stay."""
    nodes = tuple(_copy_of(node) if node.op in ROUNDED else node for node in graph.nodes)
    return replace(graph, nodes=nodes)


def _copy_of(node: Node) -> Node:
    source = node.args[0]
    assert isinstance(source, Ref)
    return replace(node, op=_SAME, args=(source,), kwargs=())


def _tuple(value: Any) -> tuple[Tensor, ...]:
    return value if isinstance(value, tuple) else (value,)
