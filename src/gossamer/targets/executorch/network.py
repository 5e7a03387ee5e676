"""A program as a module that torch.export reads: the same ops, with codes as pairs of quantize and dequantize around them.

That is the form in which XNNPACK's partitioner finds integer ops: values it reads are decoded right in front of an op, for each op anew, and
its result is coded right behind it. Nothing here is traced twice or decided by another library: scales, zero points and codes are ours.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from gossamer.numerics.affine import Quantizer, dequantize, quantize
from gossamer.numerics.formats import PerAxis
from gossamer.numerics.integer import accumulator_scales, bias_to_codes
from gossamer.plan.coded import coded_nodes
from gossamer.plan.site import has_weight, inference_graph
from gossamer.program.execute import DEVICE, TRAINING, schedule
from gossamer.program.forms import BatchSize, Form, find_forms
from gossamer.program.graph import Node, map_refs
from gossamer.program.ops import bind, op_of
from gossamer.program.program import Program


class StepCall(nn.Module):
    """One step. As a module of its own, its place in the list tells which node each op of a lowered graph comes from."""

    def __init__(self, call: Callable[..., Any]) -> None:
        super().__init__()
        self._call = call

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the op."""
        return self._call(*args, **kwargs)


class Network(nn.Module):
    """Runs on inputs as the program does. Raises nothing of its own.

    hand_out  give the codes of every quantized value, too, behind the outputs, in the order of `handed_out`
    """

    def __init__(self, program: Program, *, hand_out: bool = False) -> None:
        super().__init__()
        self.nodes: tuple[Node, ...] = inference_graph(program.graph).nodes
        self._program = [program]  # in a list: no part of this module's state
        self._coded = coded_nodes(program)
        made = dict.fromkeys((*program.graph.inputs, *map(self._name, self.nodes)))
        self.handed_out = tuple(name for name in made if name in program.quantizers) if hand_out else ()
        graph, forms = inference_graph(program.graph), find_forms(program)
        self._outputs, self._steps = graph.outputs, schedule(graph)
        calls = (_rewritten(node, forms[node.name]) or step.call for step, node in zip(self._steps, self.nodes, strict=True))
        self.calls = nn.ModuleList(map(StepCall, calls))
        self._stored: dict[str, str] = {}
        coded_weights = {bind(node)["weight"].name for node in self.nodes if node.name in self._coded and has_weight(node)}
        self._biases = dict(self._coded_biases(program))
        joins = (node for node in self.nodes if node.name in self._coded and op_of(node).onnx == "Concat")
        self._joins = {node.name: program.quantizers[self._name(node)] for node in joins}
        for number, (name, tensor) in enumerate(program.state.items()):
            users = graph.users.get(name, ())
            if name in graph.outputs or not users or any((user.name, name) not in self._biases for user in users):
                self._store(name, f"state{number}", tensor.detach().cpu(), program.quantizers.get(name), name in coded_weights)

    def _coded_biases(self, program: Program) -> Iterator[tuple[tuple[str, str], str]]:
        """(layer, its bias) -> a copy for each layer on codes that holds what the bias's int32 codes stand for.

        XNNPACK codes biases in float32, one code off here and there; what a code stands for comes out as that code.
        """
        for number, node in enumerate(self.nodes):
            bias = bind(node)["bias"] if node.name in self._coded and has_weight(node) else None
            if bias is not None:
                source, weight = program.quantizers[node.uses[0]], program.quantizers[bind(node)["weight"].name]
                scales = accumulator_scales(source, weight, torch.empty(1, 1)).reshape(-1)
                codes = bias_to_codes(program.state[bias.name], scales)
                self.register_buffer(f"bias{number}", (codes * scales.double()).float())
                yield (node.name, bias.name), f"bias{number}"

    def _store(self, name: str, place: str, tensor: Tensor, quantizer: Quantizer | None, coded: bool) -> None:
        self._stored[name] = place
        if quantizer is None:
            self.register_buffer(place, tensor.clone())
        elif not coded:
            self.register_buffer(place, dequantize(quantize(tensor, quantizer), quantizer))
        else:
            self.register_buffer(place, quantize(tensor, quantizer).to(torch.int8))
            if isinstance(quantizer.granularity, PerAxis):
                self.register_buffer(f"{place}_scale", torch.tensor(quantizer.scale))
                self.register_buffer(f"{place}_zero", torch.tensor(quantizer.zero_point))

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Outputs, and codes where they are asked for."""
        values = _Values(self)
        for spec, value in zip(self._program[0].inputs, inputs, strict=True):
            values.define(spec.name, value)
        for node, step, call in zip(self.nodes, self._steps, self.calls, strict=True):
            if node.name in values.codes:
                continue  # an activation that the op before it absorbed: the range of its codes clips
            read = partial(values.read, node.name)
            kwargs = {key: map_refs(value, read) for key, value in step.kwargs}
            values.define(self._name(node), call(*map_refs(step.args, read), **kwargs))
        outputs = tuple(values.real(name) for name in self._outputs)
        return (*outputs, *(values.codes[name] for name in self.handed_out))

    def _name(self, node: Node) -> str:
        results = self._coded.get(node.name, ())
        return results[0] if len(results) == 1 else node.name

    def parameter(self, name: str) -> Tensor:
        """What a parameter's codes stand for, or the parameter itself."""
        tensor: Tensor = getattr(self, self._stored[name])
        if tensor.dtype != torch.int8 or name not in self._program[0].quantizers:
            return tensor
        quantizer = self._program[0].quantizers[name]
        if not isinstance(quantizer.granularity, PerAxis):
            return decoded(tensor, quantizer)
        fmt, place = quantizer.format, self._stored[name]
        numbers = (getattr(self, f"{place}_scale"), getattr(self, f"{place}_zero"), quantizer.granularity.axis, fmt.lo, fmt.hi, torch.int8)
        found: Tensor = torch.ops.quantized_decomposed.dequantize_per_channel(tensor, *numbers)
        return found


class _Values:
    """The values of one run."""

    def __init__(self, network: Network) -> None:
        self.codes: dict[str, Tensor] = {}
        self._network = network
        self._quantizers = network._program[0].quantizers
        self._real: dict[str, Any] = {TRAINING: False, DEVICE: torch.device("cpu")}

    def define(self, name: str, value: Any) -> None:
        if name not in self._quantizers:
            self._real[name] = value
            return
        quantizer = self._quantizers[name]
        self.codes[name] = torch.ops.quantized_decomposed.quantize_per_tensor(value, *_numbers(quantizer))

    def real(self, name: str) -> Any:
        if name in self.codes:
            return decoded(self.codes[name], self._quantizers[name])
        return self._real[name] if name in self._real else self._network.parameter(name)

    def read(self, node: str, name: str) -> Any:
        """What a node reads under a name."""
        place = self._network._biases.get((node, name))
        if place is not None:
            return getattr(self._network, place)
        shared = self._network._joins.get(node)
        return self.real(name) if shared is None or name not in self.codes else self._recoded(name, shared)

    def _recoded(self, name: str, shared: Quantizer) -> Tensor:
        """In the codes of a join's result, as XNNPACK's joins demand of all that they read."""
        real: Tensor = self.real(name)
        if self._quantizers[name] == shared:
            return real
        return decoded(torch.ops.quantized_decomposed.quantize_per_tensor(real, *_numbers(shared)), shared)


def decoded(codes: Tensor, quantizer: Quantizer) -> Tensor:
    """The op that decodes."""
    found: Tensor = torch.ops.quantized_decomposed.dequantize_per_tensor(codes, *_numbers(quantizer))
    return found


def _numbers(quantizer: Quantizer) -> tuple[Any, ...]:
    fmt = quantizer.format
    return quantizer.scale[0], quantizer.zero_point[0], fmt.lo, fmt.hi, torch.int8


def _rewritten(node: Node, form: Any) -> Callable[..., Any] | None:
    """Another way to compute what a node does, where ExecuTorch has none that is right; None elsewhere."""
    if op_of(node).onnx == "Reshape" and isinstance(form, Form) and (sizes := _literal(form)) is not None:
        return lambda value, *_: value.reshape(sizes)
    if node.op == "aten.gelu.default" and bind(node)["approximate"] == "tanh":
        return _gelu_tanh  # XNNPACK computes the other one
    if node.op == "aten.prelu.default":
        return lambda value, slope: torch.where(
            value > 0, value, value * slope.reshape(-1, *[1] * (value.dim() - 2))
        )  # a pass fails on one slope
    if node.op == "aten.pad.default" and (bind(node)["mode"] != "constant" or any(end < 0 for end in bind(node)["pad"])):
        return partial(_padded, bind(node)["pad"], bind(node)["mode"], bind(node)["value"])
    return None


_NUMPY_PADS: dict[str, Literal["wrap", "reflect", "edge"]] = {"circular": "wrap", "reflect": "reflect", "replicate": "edge"}


def _padded(pad: Sequence[int], mode: str, filler: float | None, value: Tensor, *_: Any, **__: Any) -> Tensor:
    """By picking numbers: kernels of pads take no negative amounts, and the circular one writes into a tensor of a fixed batch size."""
    for place in range(0, len(pad), 2):
        axis, (before, after) = value.dim() - 1 - place // 2, pad[place : place + 2]
        line = np.arange(value.shape[axis])[max(-before, 0) : value.shape[axis] - max(-after, 0)]
        if mode != "constant":
            line = np.pad(line, (max(before, 0), max(after, 0)), mode=_NUMPY_PADS[mode])
        if len(line) < value.shape[axis] or mode != "constant":
            value = value.index_select(axis, torch.tensor(line.tolist()))
    left = [max(end, 0) for end in pad]
    return value if mode != "constant" or not any(left) else torch.nn.functional.pad(value, left, value=filler)


def _gelu_tanh(value: Tensor, **_: Any) -> Tensor:
    return 0.5 * value * (1 + torch.tanh(0.7978845608028654 * (value + 0.044715 * value * value * value)))


def _literal(form: Form) -> tuple[int, ...] | None:
    """The sizes of a reshape with -1 for one that grows with the batch, since kernels take no computed sizes; None where that does not say it."""
    growing = [size for size in form.sizes if not isinstance(size, int)]
    if len(growing) > 1 or not all(isinstance(size, BatchSize) for size in growing) or 0 in form.sizes:
        return None
    return tuple(size if isinstance(size, int) else -1 for size in form.sizes)
