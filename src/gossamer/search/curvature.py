"""Damage of a format from curvature: half the mean curvature of the outputs' divergence in a layer's weights, times their rounding error.

Nothing is run at any format, so the cost does not grow with their number; rounded values and interactions are not seen.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from gossamer.numerics.distance import decibels
from gossamer.program.program import Program
from gossamer.progress import Progress
from gossamer.search.diagnosis.damage import with_classes
from gossamer.search.diagnosis.findings import Damage
from gossamer.search.sensitivity import Candidates, Evidence, sensitivities

PROBES, SEED = 8, 0  # random vectors of Hutchinson's estimate for each part of the samples


@sensitivities.add("hawq", source="Dong et al. 2019 (HAWQ-V2), arXiv:1911.03852; Hutchinson's estimate of the trace")
def estimated_damages(found: Candidates, evidence: Evidence) -> Sequence[Damage]:
    """For each trial tr(H) / (2 n) * |Q(W) - W|^2 summed over its weights of n numbers.

    H is the Hessian in W of the mean KL divergence from the float network's own outputs, where it is J' (diag p - pp') J: no labels are
    needed, and the damage is in nats like the measured one. Noise per signal is estimated likewise, with J' J.
    """
    names = list(dict.fromkeys(name for trial in found.trials for name in trial.unit.weights))
    traces = traces_of(found.twin, names, evidence)
    damages = []
    for trial in found.trials:
        errors = {name: _squared_error(trial.state.get(name), found.twin.state[name]) for name in trial.unit.weights}
        noise = sum(traces.noise[name] * error for name, error in errors.items())
        kl = None if traces.kl is None else sum(traces.kl[name] * error for name, error in errors.items()) / 2
        damages.append(Damage(decibels(1.0, noise) if noise else math.inf, kl))
    return damages


class Traces:
    """Mean curvature of a weight's numbers: trace / n. kl: of the mean KL in nats, None for outputs without classes; noise: of the
    noise per signal."""

    def __init__(self, names: Sequence[str]) -> None:
        self.kl: dict[str, float] | None = dict.fromkeys(names, 0.0)
        self.noise = dict.fromkeys(names, 0.0)


def traces_of(program: Program, names: Sequence[str], evidence: Evidence) -> Traces:
    """Hutchinson's estimate for each named weight: the mean square of J' L e with random signs e, where L L' is the outputs' curvature."""
    state = {name: nn.Parameter(tensor.detach()) if name in names else tensor.detach() for name, tensor in program.state.items()}
    traced = Program(program.graph, program.inputs, state)
    weights = [traced.state[name] for name in names]
    generator = torch.Generator().manual_seed(SEED)
    traces, positions, signal = Traces(names), 0, 0.0
    parts = evidence.parts(program)
    for done, inputs in enumerate(parts):
        evidence.on_progress(Progress("curvature", done, len(parts)))
        with torch.inference_mode(False), torch.enable_grad():
            outputs = traced(*(tensor.clone() for tensor in inputs))
            outputs = tuple(outputs) if isinstance(outputs, tuple) else (outputs,)
            signal += sum(float(out.detach().double().square().sum()) for out in outputs)
            classes = with_classes(outputs[0])
            if classes is None:
                traces.kl = None
            else:
                positions += classes.numel() // classes.shape[1]
            for probe in range(PROBES):
                last = probe + 1 == PROBES
                if traces.kl is not None:
                    vector = _root(outputs[0], generator)
                    _add(traces.kl, names, torch.autograd.grad(outputs[0], weights, vector, retain_graph=True, allow_unused=True))
                signs = [_signs(out, generator) for out in outputs]
                _add(traces.noise, names, torch.autograd.grad(outputs, weights, signs, retain_graph=not last, allow_unused=True))
    evidence.on_progress(Progress("curvature", 1, 1))
    for place, name in enumerate(names):
        numbers = PROBES * weights[place].numel()
        traces.noise[name] /= numbers * max(signal, 1e-300)
        if traces.kl is not None:
            traces.kl[name] /= numbers * max(positions, 1)
    return traces


def _root(outputs: Tensor, generator: torch.Generator) -> Tensor:
    """L e for L = diag(sqrt p) - p sqrt(p)', so that L L' = diag(p) - pp', at each position."""
    axis = -1 if outputs.dim() == 3 else 1
    shares = outputs.detach().softmax(axis)
    signed = shares.sqrt() * _signs(outputs, generator)
    return signed - shares * signed.sum(axis, keepdim=True)


def _signs(like: Tensor, generator: torch.Generator) -> Tensor:
    return (torch.randint(0, 2, like.shape, generator=generator) * 2 - 1).to(like)


def _add(sums: dict[str, float], names: Sequence[str], grads: Sequence[Tensor | None]) -> None:
    for name, square in _squares(names, grads):
        sums[name] += square


def _squares(names: Sequence[str], grads: Sequence[Tensor | None]) -> Iterator[tuple[str, float]]:
    for name, grad in zip(names, grads, strict=True):
        yield name, 0.0 if grad is None else float(grad.double().square().sum())


def _squared_error(changed: Tensor | None, true: Tensor) -> float:
    return 0.0 if changed is None else float((changed.double() - true.detach().double()).square().sum())
