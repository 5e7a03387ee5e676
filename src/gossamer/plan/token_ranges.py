"""Ranges of values that linear layers read token by token: those that change what the layers hand out least, each token by its own measure.

In a transformer a norm behind the layers brings every token to one size, so that an error counts by the size of its own token's result. A few
tokens with numbers far beyond the others' (in MiniLM behind GELU: 24 where others stay below 5) would otherwise make the steps of all of them.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from gossamer.numerics.affine import Quantizer, fake_quantize, from_range
from gossamer.numerics.formats import IntFormat, PerTensor
from gossamer.plan.calibrate import Calibration
from gossamer.plan.placement import Group, Placement
from gossamer.program.program import Program

PROBES = 64  # random sums of a layer's outputs, whose errors are measured in place of those of all outputs
STEPS, NARROWEST = 15, 0.3  # shares of the range that are tried


def token_quantizers(
    program: Program, placement: Placement, seen: Calibration, chosen: Mapping[str, Quantizer], *, symmetric: bool
) -> dict[str, Quantizer]:
    """A quantizer for each value that linear layers read token by token, and no kernel's codes prescribe; by value.

    Searched from the full range along shrinking both ends, then each end alone, on sampled tokens (seen.tokens).
    Cost: about 3 * STEPS * PROBES multiplications for each number of a value's sample.
    Source: error of the reading layer's output as in Nagel et al. 2020, arXiv:2004.10568; random projections of Johnson and Lindenstrauss 1984;
    differs: ranges of activations, each token's error relative to its result.
    """
    found: dict[str, Quantizer] = {}
    for group in placement.groups:
        layers = [layer for layer in placement.layers if layer.source in group.values]
        fmt = chosen[group.roots[0]].format
        if (
            not layers
            or any(layer.node not in seen.tokens for layer in layers)
            or _is_fixed(placement, group)
            or not isinstance(fmt, IntFormat)
        ):
            continue
        rows = seen.tokens[layers[0].node]
        spread = [seen.spreads[name] for name in group.roots]
        low, high = min(0.0, *(state.low for state in spread)), max(0.0, *(state.high for state in spread))
        weight = torch.cat([program.state[layer.weight].detach().cpu() for layer in layers])
        found.update(dict.fromkeys(group.values, least_token_error(rows, weight, low, high, fmt, symmetric=symmetric)))
    return found


def least_token_error(rows: Tensor, weight: Tensor, low: float, high: float, fmt: IntFormat, *, symmetric: bool) -> Quantizer:
    """The quantizer with the least sum over tokens of |error of the output|^2 / |output|^2. Shapes: rows (n, K), weight (O, K)."""
    probes = torch.randn(PROBES, weight.shape[0], generator=torch.Generator().manual_seed(0), dtype=weight.dtype) @ weight
    sizes = (rows @ probes.T).square().sum(1).clamp_min(1e-12)

    def error(quantizer: Quantizer) -> float:
        return float((((fake_quantize(rows, quantizer) - rows) @ probes.T).square().sum(1) / sizes).sum())

    def quantizer(low: float, high: float) -> Quantizer:
        return from_range(torch.tensor(low), torch.tensor(high), fmt, PerTensor(), symmetric=symmetric)

    best = (low, high)
    shares = torch.linspace(1.0, NARROWEST, STEPS).tolist()
    for down, up in ((True, True),) if symmetric else ((True, True), (True, False), (False, True)):
        ranges = [(best[0] * (share if down else 1), best[1] * (share if up else 1)) for share in shares]
        best = min(ranges, key=lambda ends: error(quantizer(*ends)))  # the first of equals: the widest
    return quantizer(*best)


def _is_fixed(placement: Placement, group: Group) -> bool:
    """Whether a target prescribes the group's codes, or a product wants them around 0."""
    return not (placement.gates | placement.factors).isdisjoint(group.values)
