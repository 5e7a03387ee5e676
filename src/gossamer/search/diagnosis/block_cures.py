"""Cures for weights in blocks, whose values stay float: other plans, each made anew with one thing changed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from gossamer.batches import Batches
from gossamer.errors import PlanError
from gossamer.numerics.formats import PerBlock
from gossamer.plan.calibrate import Calibration
from gossamer.plan.placement import Placement
from gossamer.plan.plan import Plan
from gossamer.plan.rules import FLOAT, layer_name
from gossamer.plan.scheme import BlockScheme
from gossamer.plan.site import has_weight
from gossamer.plan.spec import specs
from gossamer.plan.weight_only import plan_weight_quantization
from gossamer.program.ops import bind
from gossamer.program.ops.own import ROUNDED
from gossamer.program.program import Program
from gossamer.search.diagnosis.cures import KEEP_FLOAT, Candidate
from gossamer.search.diagnosis.evidence import Item
from gossamer.search.diagnosis.findings import WEIGHT
from gossamer.search.diagnosis.patient import Patient

_WHOLE = {  # name -> what differs from the plan as it is; all use data
    "rounding with data": {},
    "ranges: hqq, rounding with data": {"scheme": BlockScheme(ranges="hqq")},
    "equalization: awq, rounding with data": {"scheme": BlockScheme(equalization="awq")},
}
_SMALLER = 16


def admit_blocks(original: Program, plan: Plan | None, quantized: Program) -> Patient:
    """A patient of whom nothing but the plan is looked at. Raises: PlanError for a network without weights in blocks."""
    if not _blocks(quantized):
        raise PlanError("cures are for static quantization and for weights in blocks; this network rounds its values while it runs.")
    known = plan or Plan((), original.digest, original.weights_digest(), quantized.target)
    nothing = Placement((), frozenset(), (), frozenset(), ())
    return Patient(original, known, original, nothing, Calibration({}, {}), specs[quantized.target])


def block_cures(original: Program, quantized: Program, items: Sequence[Item], batches: Batches) -> Iterator[Candidate]:
    """Rounding by data, other ranges, scale moved, smaller blocks, and each of the worst weights kept float."""
    formats = [(name, size) for name, size in _blocks(quantized).values()]
    name, size = max(set(formats), key=formats.count)
    kept = dict.fromkeys(_uncoded(quantized), FLOAT)
    round_inputs = any(node.op in ROUNDED for node in quantized.graph.nodes)

    def made(**changes: object) -> Callable[[Plan], Plan]:
        settings = {"weights": name, "block": size, "round_inputs": round_inputs, "rules": kept, **changes}
        return lambda _: plan_weight_quantization(original, quantized.target, calibration=batches, **settings)  # type: ignore[arg-type]

    for title, changes in _WHOLE.items():
        yield Candidate("", title, made(**changes), replaces=True)
    if size > _SMALLER:
        yield Candidate("", f"blocks of {_SMALLER}, rounding with data", made(block=_SMALLER), replaces=True)
    for item in items:
        if item.kind == WEIGHT and item.name in _blocks(quantized):
            readers = [layer_name(quantized.graph.by_name[node]) for node in item.nodes]
            yield Candidate(item.name, KEEP_FLOAT, made(rules={**kept, **dict.fromkeys(readers, FLOAT)}), replaces=True)


def _blocks(program: Program) -> dict[str, tuple[str, int]]:
    """Format and block size of each weight in blocks."""
    return {
        name: (quantizer.format.name, quantizer.granularity.size)
        for name, quantizer in program.quantizers.items()
        if isinstance(quantizer.granularity, PerBlock)
    }


def _uncoded(program: Program) -> Iterator[str]:
    """Layers whose weights have no codes."""
    for node in program.graph.nodes:
        if has_weight(node) and bind(node)["weight"].name in program.state and bind(node)["weight"].name not in program.quantizers:
            yield layer_name(node)
