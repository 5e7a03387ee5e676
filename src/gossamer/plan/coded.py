"""Which nodes of a quantized network run on codes: what the simulator computes and what emitters write follows from this alone."""

from __future__ import annotations

from collections.abc import Mapping

from gossamer.numerics.affine import Quantizer, clips_like
from gossamer.numerics.formats import IntFormat
from gossamer.plan.integer_cases import why_float
from gossamer.plan.site import Site, has_weight, site_of
from gossamer.plan.spec import specs
from gossamer.program.clamps import clip_limits
from gossamer.program.graph import Node
from gossamer.program.ops import bind, op_of
from gossamer.program.program import Program


def coded_site(program: Program) -> Site:
    """The graph that a quantized program's target runs, with its shapes at batch 1."""
    values = (quantizer.format for name, quantizer in program.quantizers.items() if name not in program.state)
    spec = specs[program.target].for_values(max((fmt.bits for fmt in values), default=8))
    return site_of(program, spec)


def coded_nodes(program: Program, site: Site | None = None) -> dict[str, tuple[str, ...]]:
    """Nodes that run on codes -> the values that carry the codes of their results; empty for a float program.

    A result's codes may be those of the activation behind it, which costs nothing there. One without a quantizer is handed out as floats.
    """
    if not program.quantizers:
        return {}
    site = coded_site(program) if site is None else site
    found = {}
    for node in site.graph.nodes:
        results = site.results(node)
        if why_float(site, node) or not all(value in program.quantizers for value in site.inputs(node)):
            continue
        if has_weight(node) and not has_codes(program.quantizers, bind(node)["weight"].name):
            continue
        if _hands_out(site, program.quantizers, node, results):
            found[node.name] = results
    return found


def has_codes(quantizers: Mapping[str, Quantizer], weight: str) -> bool:
    """Whether a weight has integer codes; one stored as floats of fewer bits has none."""
    quantizer = quantizers.get(weight)
    return quantizer is not None and isinstance(quantizer.format, IntFormat)


def _hands_out(site: Site, quantizers: Mapping[str, Quantizer], node: Node, results: tuple[str, ...]) -> bool:
    """Whether the results have quantizers that fit the kernel, or the kernel hands out floats."""
    name = op_of(node).onnx
    coded = [value for value in results if value in quantizers]
    if name in site.spec.same_scale_ops:
        source = quantizers[site.inputs(node)[0]]
        return len(coded) == len(results) and all(quantizers[value] == source for value in results)
    if not coded:
        return name in site.spec.float_result_ops and results == (node.name,)
    if results[0] != node.name or name in site.spec.absorbed_ops:
        limits = clip_limits(site.graph.by_name[results[0]])
        if site.spec.fused_clamps:
            return True
        return limits is not None and clips_like(quantizers[results[0]], *limits)
    return True
