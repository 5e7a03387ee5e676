"""Where quantization hurts: the error of each quantized value against the float network, in decibels."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gossamer.apply.quantize import restructure
from gossamer.batches import as_batches
from gossamer.errors import PlanError
from gossamer.numerics.distance import decibels
from gossamer.plan.plan import Plan
from gossamer.program.attention import split_attention, whole_attention
from gossamer.program.coded_copies import copies_in, with_copies
from gossamer.program.fold import fold_batch_norms, foldable_batch_norms
from gossamer.program.gates import gated_activations, split_gates
from gossamer.program.norm_convolutions import convolve_batch_norms, convolved_batch_norms
from gossamer.program.program import Program
from gossamer.program.transposed import split_transposed, transposed_convolutions

MOST_SAMPLES = 16  # enough for a figure in whole decibels, cheap enough for a report
CHUNK = 4  # samples whose values are all held at once


def value_errors(
    quantized: Program, reference: Program, data: Any, *, plan: Plan | None = None, samples: int = MOST_SAMPLES
) -> dict[str, float]:
    """SQNR in dB of every quantized value, by name, over the first `samples` samples; errors of earlier layers included.

    `reference` is the float program that was quantized, `plan` what quantized it: without it, scale that the plan moved between
    channels counts as error. Quantized values round in float here, as in training.
    Raises: PlanError for a reference that lacks values of the quantized program; DataError for data that cannot be used.
    """
    float_program = aligned(reference.copy().eval(), quantized) if plan is None else restructure(reference, plan.edits).eval()
    quantized = quantized.copy().eval()
    names = [name for name in quantized.quantizers if name not in quantized.graph.state_names]
    missing = [name for name in names if name not in {*float_program.graph.inputs, *float_program.graph.by_name}]
    if missing:
        raise PlanError(f"the reference has no value {missing[0]!r}; compare with the float network that was quantized.")
    energies = _Energies(names)
    left = samples
    with torch.inference_mode():
        for inputs, _ in as_batches(data, what="reference", batch_size=CHUNK):
            for chunk in zip(*(torch.split(tensor, CHUNK if _any_batch(quantized) else tensor.shape[0]) for tensor in inputs), strict=True):
                float_program.run(*_moved(chunk, float_program), observe=dict.fromkeys(names, energies.note))
                quantized.run(*_moved(chunk, quantized), observe=dict.fromkeys(names, energies.compare))
                left -= chunk[0].shape[0]
                if left <= 0:
                    return energies.decibels()
    return energies.decibels()


class _Energies:
    """Sums of squares of true values and of what differs from them."""

    def __init__(self, names: list[str]) -> None:
        self._signal = dict.fromkeys(names, 0.0)
        self._noise = dict.fromkeys(names, 0.0)
        self._true: dict[str, Tensor] = {}

    def note(self, name: str, value: Tensor) -> None:
        """A true value, kept until its approximation comes."""
        self._true[name] = value

    def compare(self, name: str, value: Tensor) -> None:
        """An approximate value."""
        true = self._true.pop(name).to(value.device)
        self._signal[name] += float(torch.linalg.vector_norm(true)) ** 2
        self._noise[name] += float(torch.linalg.vector_norm(true - value)) ** 2

    def decibels(self) -> dict[str, float]:
        """SQNR of each."""
        return {name: decibels(signal, self._noise[name]) for name, signal in self._signal.items()}


def aligned(reference: Program, quantized: Program) -> Program:
    """The reference with the same batch norms folded or made convolutions, gates, attention and transposed convolutions split and
    values copied, so that equal names mean equal values."""
    folds = tuple(name for name in foldable_batch_norms(reference) if name not in quantized.graph.by_name)
    folded = fold_batch_norms(reference, folds)
    folded = convolve_batch_norms(folded, convolved_batch_norms(folded, quantized))
    split = tuple(name for name in gated_activations(folded) if name not in gated_activations(quantized))
    whole = tuple(name for name in whole_attention(folded) if name not in whole_attention(quantized))
    transposed = tuple(name for name in transposed_convolutions(folded) if name not in transposed_convolutions(quantized))
    parted = split_attention(split_gates(split_transposed(folded, transposed), split), whole)
    known = parted.graph.by_name
    return with_copies(parted, [(value, tuple(name for name in readers if name in known)) for value, readers in copies_in(quantized)])


def _any_batch(program: Program) -> bool:
    return all(spec.shape and spec.shape[0] is None for spec in program.inputs)


def _moved(inputs: tuple[Tensor, ...], program: Program) -> tuple[Tensor, ...]:
    return tuple(tensor.to(program.device) for tensor in inputs)
