"""Computing a quantized network with the target's integers, rounding by rounding: the oracle that verify compares with."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from gossamer.errors import DataError, PlanError
from gossamer.numerics.affine import dequantize, quantize
from gossamer.numerics.integer import accumulator_scales, bias_to_codes
from gossamer.plan.coded import coded_nodes, coded_site, has_codes
from gossamer.plan.site import has_weight
from gossamer.program.clamps import clip_limits
from gossamer.program.execute import DEVICE, TRAINING, Step, schedule
from gossamer.program.graph import Node, Ref, map_refs
from gossamer.program.ops import bind, op_of
from gossamer.program.program import Program
from gossamer.targets.float32_kernels import CodeCall, Kernel, pass_on
from gossamer.targets.kernel_sets import kernel_sets

Array = npt.NDArray[Any]


def simulate(program: Program, *inputs: Tensor) -> Any:
    """The network's output as its target computes it, integer for integer; parts that the target runs in float are float32.

    Shapes: inputs and outputs as those of the program.
    Raises: PlanError for a program without quantizers; DataError for inputs that do not fit.
    """
    outputs = Simulator(program).run(*inputs).outputs
    return outputs[0] if len(outputs) == 1 else outputs


@dataclass(frozen=True, slots=True, eq=False)
class Simulated:
    """outputs: real values; codes: of every quantized value, whole numbers in float32."""

    outputs: tuple[Tensor, ...]
    codes: Mapping[str, Tensor]


class Simulator:
    """A quantized program prepared for simulation on the CPU. Raises PlanError for a program without quantizers."""

    def __init__(self, program: Program) -> None:
        if not program.quantizers:
            raise PlanError("the network is not quantized, so there are no integers to simulate; call it instead.")
        self.program = program
        self._state = {name: tensor.detach().cpu() for name, tensor in program.state.items()}
        self._site = coded_site(program)
        self._steps = schedule(self._site.graph)
        self._kernels = kernel_sets[self._site.spec.requantization]
        self._layers = dict(self._find_kernels())
        self._biases = dict(self._find_biases())

    def run(self, *inputs: Tensor, codes: Mapping[str, Array] | None = None) -> Simulated:
        """Run the network.

        codes  where given, each value is computed from these codes of the values it reads, such as a runtime's own:
               what is found is then the error of each step alone. Names not among them are computed from our own.
        """
        given = {} if codes is None else {name: torch.from_numpy(np.asarray(array)).to(torch.float32) for name, array in codes.items()}
        walk = _Walk(self, given)
        with torch.inference_mode():
            for spec, value in zip(self.program.inputs, self._checked(inputs), strict=True):
                walk.define(spec.name, value)
            for step in self._steps:
                walk.visit(step)
            return Simulated(tuple(walk.real(name) for name in self._site.graph.outputs), walk.found)

    def _checked(self, inputs: tuple[Tensor, ...]) -> list[Tensor]:
        if len(inputs) != len(self.program.inputs):
            raise DataError(f"the network takes the inputs {', '.join(map(str, self.program.inputs))}; got {len(inputs)}.")
        return [spec.check(value).cpu() for spec, value in zip(self.program.inputs, inputs, strict=True)]

    @property
    def made_by(self) -> dict[str, Node]:
        """Value -> the node whose integer kernel makes its codes. Other values with codes are computed in float first."""
        return {name: self._site.graph.by_name[node] for node, (_, results) in self._layers.items() for name in results}

    def _find_kernels(self) -> Iterator[tuple[str, tuple[Kernel, tuple[str, ...]]]]:
        """(kernel, names of the values that carry its result's codes) of each node that runs on codes."""
        for node, results in coded_nodes(self.program, self._site).items():
            name = op_of(self._site.graph.by_name[node]).onnx
            kernel = self._kernels.get(name, pass_on) if name in self._site.spec.same_scale_ops else self._kernels[name]
            yield node, (kernel, results)

    def _find_biases(self) -> Iterator[tuple[str, tuple[str, Tensor]]]:
        """Name and value of the bias of each layer that reads codes and yet is computed in float: files hold its int32 codes all the same."""
        quantizers = self.program.quantizers
        for node in self._site.graph.nodes if not self._site.spec.float_biases else ():
            bias = (
                bind(node)["bias"] if has_weight(node) and node.name not in self._layers and op_of(node).onnx in ("Conv", "Gemm") else None
            )
            source, weight = quantizers.get(node.uses[0]) if node.uses else None, bind(node)["weight"].name if bias is not None else ""
            if isinstance(bias, Ref) and bias.name in self._state and source is not None and has_codes(quantizers, weight):
                scales = accumulator_scales(source, quantizers[weight], torch.empty(1, 1)).reshape(-1)
                yield node.name, (bias.name, (bias_to_codes(self._state[bias.name], scales) * scales.double()).float())


class _Walk:
    """The values of one run."""

    def __init__(self, simulator: Simulator, given: Mapping[str, Tensor]) -> None:
        self.found: dict[str, Tensor] = {}
        self._simulator = simulator
        self._quantizers = simulator.program.quantizers
        self._given = given
        self._codes: dict[str, Tensor] = {}
        self._values: dict[str, Any] = {TRAINING: False, DEVICE: torch.device("cpu")}

    def define(self, name: str, value: Any) -> None:
        """A value computed in float; it is coded where it has a quantizer."""
        quantizer = self._quantizers.get(name)
        if quantizer is None:
            self._values[name] = value
        else:
            self.define_codes(name, self._simulator._kernels.get("Quantize", quantize)(value, quantizer))

    def define_codes(self, name: str, codes: Tensor) -> None:
        """A value computed as codes."""
        self.found[name] = codes
        self._codes[name] = self._given.get(name, codes)

    def real(self, name: str) -> Any:
        """What a value stands for."""
        if name in self._codes:
            return dequantize(self._codes[name], self._quantizers[name])
        if name in self._values:
            return self._values[name]
        tensor = self._simulator._state[name]
        quantizer = self._quantizers.get(name)
        return tensor if quantizer is None else dequantize(quantize(tensor, quantizer), quantizer)

    def visit(self, step: Step) -> None:
        """Compute one node, on codes where the target does."""
        if step.name in self._codes:
            return  # computed along with the op before it
        kernel, results = self._simulator._layers.get(step.name, (None, ()))
        if kernel is None:
            name, bias = self._simulator._biases.get(step.name, ("", None))

            def real(used: str) -> Any:
                return bias if used == name else self.real(used)

            kwargs = {key: map_refs(value, real) for key, value in step.kwargs}
            self.define(step.name, step.call(*map_refs(step.args, real), **kwargs))
            return
        result = kernel(self._call(step, results))
        if isinstance(result, tuple):
            self._values[step.name] = result
            for name in results:
                position = self._simulator._site.graph.by_name[name].args[1]
                self.define_codes(name, result[position])
        elif results[0] in self._quantizers:
            self.define_codes(results[0], self._clamped(step.name, results[0], result))
        else:
            self._values[results[0]] = result

    def _clamped(self, node: str, result: str, codes: Tensor) -> Tensor:
        """Codes of a result, clamped like the activation whose value it is where the kernel does that."""
        site = self._simulator._site
        limits = clip_limits(site.graph.by_name[result]) if site.spec.fused_clamps and result != node else None
        if limits is None:
            return codes
        ends = torch.tensor([-torch.inf if limits[0] is None else limits[0], torch.inf if limits[1] is None else limits[1]])
        low, high = quantize(ends, self._quantizers[result])
        return codes.clamp(low, high)

    def _call(self, step: Step, results: tuple[str, ...]) -> CodeCall:
        simulator = self._simulator
        node = simulator._site.graph.by_name[step.name]
        inputs = {name: (self._codes[name], self._quantizers[name]) for name in simulator._site.inputs(node)}
        numbers = {name: self._values[name] for name in node.uses if name in self._values}
        return CodeCall(node, inputs, simulator._state, self._quantizers, numbers, self._quantizers.get(results[0]))
