"""Parity: the numbers inside an artifact, as its runtime computes them, against what they must be."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from gossamer.errors import FileError
from gossamer.plan.spec import TargetSpec, specs
from gossamer.program.capture import relative_error
from gossamer.program.ops import op_of
from gossamer.program.ops.own import ROUNDED
from gossamer.program.program import Program
from gossamer.targets.coded_ends import open_artifact
from gossamer.targets.results import LayerParity, Parity
from gossamer.targets.simulate import Simulator
from gossamer.targets.target import Artifact, Runner, targets

Array = npt.NDArray[Any]
FLOAT_TOLERANCE = 1e-4  # relative; float kernels may add in another order
FLOAT_TOLERANCE_STEPS = 1  # a value computed in float and coded afterwards: the last bit may decide a tie
NOISE_FACTOR = 2.0  # two files whose ties fall differently are as far apart as two independent roundings: 1.4 times the noise of one
MACS_TO_COMPARE = 4e9  # the simulation computes in float64, so a large network is compared on fewer samples
MOST_NAMED = 3


def samples_to_compare(program: Program, given: int) -> int:
    """How many of the given samples the simulation can afford; all of them where the batch is fixed."""
    if program.inputs[0].shape[0] is not None:
        return given
    return max(1, min(given, int(MACS_TO_COMPARE / max(program.cost().macs, 1))))


def check_parity(artifact: Artifact, runner: Runner, samples: tuple[Tensor, ...]) -> Parity:
    """Compare what an artifact computes with what it must; `runner` has the file open as users run it.

    A quantized one is compared value by value: each value's codes, as the runtime has them, with the integer
    simulation fed with the runtime's own codes of what that value is computed from, so that no error hides behind
    an earlier one; its float outputs likewise. Where handing out codes changes the target's kernels, outputs are those of such a file,
    and the user's file must be within twice the rounding noise of them. One that rounds values while it runs is compared wherever it rounds, each time
    going on from the runtime's own numbers. A float one is compared by its outputs with the program.
    Shapes: samples (N, ...) for each input. Raises FileError where the runtime gives a value another shape than the network does.
    """
    if any(node.op in ROUNDED for node in artifact.program.graph.nodes):
        return _rounded_parity(artifact, runner, samples)
    if artifact.program.quantizers:
        return _code_parity(artifact, runner, samples)
    return _float_parity(artifact.program, runner, samples)


def parity_problems(parity: Parity, artifact: Artifact, whose: str) -> list[str]:
    """What is farther apart than the target's stated tolerance, one sentence each; `whose` says of which file."""
    problems = []
    allowed = tolerance_steps(artifact.program, specs[artifact.target]) if artifact.program.quantizers else {}
    bad = [layer for layer in parity.layers if layer.max_steps > allowed[layer.name]]
    bad.sort(key=lambda layer: allowed[layer.name] - layer.max_steps)
    for layer in bad[:MOST_NAMED]:
        problems.append(
            f"Parity of {whose}: {layer.name!r} is {layer.max_steps} code steps from the simulation, allowed is {allowed[layer.name]}."
        )
    if len(bad) > MOST_NAMED:
        problems.append(f"Parity of {whose}: {len(bad) - MOST_NAMED} more values are farther from the simulation than allowed.")
    if not parity.output_error <= FLOAT_TOLERANCE:
        problems.append(
            f"The outputs of {whose} differ from what they must be by {parity.output_error:.2g} (relative), allowed is {FLOAT_TOLERANCE:.2g}."
        )
    return problems


def tolerance_steps(program: Program, spec: TargetSpec) -> dict[str, int]:
    """How many code steps each quantized value may be from the simulation.

    What an Add makes, what other ops on integers make and how inputs are coded: the target's own tolerances. What is computed in float and coded
    afterwards: 1.
    """
    made_by = Simulator(program).made_by
    allowed = {}
    for name in program.quantizers:
        if name in made_by:
            allowed[name] = spec.add_tolerance_steps if op_of(made_by[name]).onnx == "Add" else spec.tolerance_steps
        else:
            allowed[name] = FLOAT_TOLERANCE_STEPS if name in program.graph.by_name else spec.tolerance_steps
    return allowed


def _code_parity(artifact: Artifact, runner: Runner, samples: tuple[Tensor, ...]) -> Parity:
    exposing = open_artifact(artifact, threads=1, values=True)
    if not specs[artifact.target].one_sample:
        return _parity_of_codes(artifact, runner, exposing, samples)
    # a runtime for one sample cannot say where the samples of a value lie whose first axis is not the batch
    pieces = [tuple(tensor[at : at + 1] for tensor in samples) for at in range(len(samples[0]))]
    found = [_parity_of_codes(artifact, runner, exposing, piece) for piece in pieces]
    layers = zip(*(parity.layers for parity in found), strict=True)
    return Parity(
        max_steps=max(parity.max_steps for parity in found),
        values_compared=sum(parity.values_compared for parity in found),
        output_error=max(parity.output_error for parity in found),
        layers=tuple(LayerParity(layer[0].name, max(one.max_steps for one in layer), sum(one.values for one in layer)) for layer in layers),
    )


def _parity_of_codes(artifact: Artifact, runner: Runner, exposing: Runner, samples: tuple[Tensor, ...]) -> Parity:
    arrays = [tensor.numpy() for tensor in samples]
    program = artifact.program
    seen = exposing.run_values(*arrays)
    runtime = {name: codes for name, codes in seen.items() if name in program.quantizers}
    simulated = Simulator(program).run(*samples, codes=runtime)
    layers = tuple(_compare(artifact, name, runtime[name], codes) for name, codes in simulated.codes.items() if name in runtime)
    got = _tensor(runner.run(*arrays))
    error = relative_error(got, simulated.outputs[0])
    if error > FLOAT_TOLERANCE and not specs[artifact.target].exposed_as_run:
        exposed = _tensor(next(iter(seen.values())))
        apart = relative_error(got, exposed)
        error = relative_error(exposed, simulated.outputs[0])
        error = error if apart <= NOISE_FACTOR * _rounding_noise(program, samples, exposed) else apart
    return Parity(
        max_steps=max((layer.max_steps for layer in layers), default=0),
        values_compared=got.numel() + sum(layer.values for layer in layers),
        output_error=error,
        layers=layers,
    )


def _rounding_noise(program: Program, samples: tuple[Tensor, ...], outputs: Tensor) -> float:
    """How far outputs are from those of the same network with the same weights whose values are not rounded."""
    plain = program.with_graph(program.graph, quantizers={}).eval()
    with torch.no_grad():
        expected = plain(*(tensor.to(program.device) for tensor in samples))
    return relative_error(outputs, (expected[0] if isinstance(expected, tuple) else expected).cpu())


def _compare(artifact: Artifact, name: str, codes: Array, expected: Tensor) -> LayerParity:
    got = _tensor(codes).to(torch.float32)
    if got.shape != expected.shape:
        raise FileError(
            artifact.path,
            f"{artifact.target} gives {name!r} the shape {tuple(got.shape)}, where the network has {tuple(expected.shape)}",
            "its runtime computes this network wrongly, please report it",
        )
    apart = (got - expected).abs().max() if got.numel() else torch.zeros(())
    return LayerParity(name, int(apart), got.numel())


def _float_parity(program: Program, runner: Runner, samples: tuple[Tensor, ...]) -> Parity:
    program = program.copy().eval() if program.training else program
    with torch.no_grad():
        expected = program(*(tensor.to(program.device) for tensor in samples))
    expected = (expected[0] if isinstance(expected, tuple) else expected).cpu()
    got = _tensor(runner.run(*(tensor.numpy() for tensor in samples)))
    return Parity(max_steps=0, values_compared=got.numel(), output_error=relative_error(got, expected))


def _rounded_parity(artifact: Artifact, runner: Runner, samples: tuple[Tensor, ...]) -> Parity:
    """Go on from the runtime's own numbers wherever they are rounded: a last bit may decide a tie, which is no difference."""
    arrays = [tensor.numpy() for tensor in samples]
    program = artifact.program.copy().eval()
    runtime = targets[artifact.target].open(artifact.path, threads=1, values=True).run_values(*arrays)
    rounded = {node.uses[0] for node in program.graph.nodes if node.op in ROUNDED} & runtime.keys()
    errors: list[float] = []
    compared = 0

    def replace(name: str, value: Any) -> Tensor:
        nonlocal compared
        got = _tensor(runtime[name])
        errors.append(relative_error(got, value.cpu()))
        compared += got.numel()
        return got.to(value.device)

    with torch.no_grad():
        outputs = program.run(*(tensor.to(program.device) for tensor in samples), observe=dict.fromkeys(rounded, replace))
    got = _tensor(runner.run(*arrays))
    errors.append(relative_error(got, (outputs[0] if isinstance(outputs, tuple) else outputs).cpu()))
    return Parity(max_steps=0, values_compared=compared + got.numel(), output_error=max(errors))


def _tensor(array: Array) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array))
