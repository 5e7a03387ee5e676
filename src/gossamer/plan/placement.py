"""Which values of a network get quantizers, so that a target computes as much of it as it can in integers.

Integer work spreads from the layers with weights: their inputs and results get codes, and so does whatever the target
can compute between them on codes. Dropout passes values on, so it is looked through.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from gossamer.plan.integer_cases import why_float
from gossamer.plan.plan import Frozen
from gossamer.plan.residuals import residual_inputs
from gossamer.plan.site import Layer, Site, has_weight, site_of
from gossamer.plan.spec import TargetSpec
from gossamer.program.clamps import clip_limits
from gossamer.program.graph import Node
from gossamer.program.ops import op_of
from gossamer.program.ops.kinds import Factory, Scalar
from gossamer.program.ops.own import COPY
from gossamer.program.program import Program


@dataclass(frozen=True, slots=True)
class Group:
    """Values that share one quantizer: `roots` are computed, the others pass on what those hold."""

    values: tuple[str, ...]
    roots: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Placement:
    """What runs on codes.

    groups   values that share one quantizer, in order of execution
    gates    values in [0, 1] whose quantizer the target prescribes, and, in signed_gates, those in [-1, 1]
    factors  values of products, where the target wants their zero points at 0; second_factors are the right ones of them
    integer  nodes that run on codes
    frozen   what stays float, and why
    """

    groups: tuple[Group, ...]
    gates: frozenset[str]
    layers: tuple[Layer, ...]
    integer: frozenset[str]
    frozen: tuple[Frozen, ...]
    signed_gates: frozenset[str] = frozenset()
    factors: frozenset[str] = frozenset()
    second_factors: frozenset[str] = frozenset()


def place_quantizers(
    program: Program, spec: TargetSpec, *, kept_float: Mapping[str, str] | None = None, code_ends: bool = False
) -> Placement:
    """Decide for a float program with batch norms folded.

    kept_float  why layers that could run on codes must not, by node
    code_ends   float inputs and outputs get codes, whatever computes them
    """
    site = site_of(program, spec)
    reasons = {node.name: reason for node in site.graph.nodes if (reason := why_float(site, node))}
    reasons = {**(kept_float or {}), **reasons}  # and those that spreading finds
    integer, coded = _spread(site, reasons)
    if spec.coded_residuals:
        layers = {node.name for node in site.graph.nodes if node.name in integer and has_weight(node)}
        coded |= {name for name in residual_inputs(site.graph, spec, layers, coded) if site.is_float(name)}
    if code_ends:
        coded.update(
            name for name in (*site.graph.inputs, *site.graph.outputs) if site.is_float(name) and name not in site.graph.state_names
        )
    nodes = [node for node in site.graph.nodes if node.name in integer]
    return Placement(
        groups=_groups(site, nodes, coded),
        gates=frozenset(node.name for node in nodes if op_of(node).onnx in spec.gate_ops | spec.signed_gate_ops),
        signed_gates=frozenset(node.name for node in nodes if op_of(node).onnx in spec.signed_gate_ops),
        layers=tuple(site.layer(node) for node in nodes if has_weight(node)),
        integer=frozenset(integer),
        frozen=tuple(_frozen(site, integer, coded, reasons)),
        factors=frozenset(name for node in nodes if site.is_factored(node) for name in site.inputs(node)),
        second_factors=frozenset(site.inputs(node)[-1] for node in nodes if site.is_factored(node)),
    )


_POOLS = {"MaxPool", "AveragePool", "Resize"}  # they compute, though their results have the codes of their inputs


def _spread(site: Site, reasons: dict[str, str]) -> tuple[set[str], set[str]]:
    """Nodes that run on codes and values that have codes: from the layers outwards, until nothing changes."""
    integer: set[str] = set()
    coded: set[str] = set()
    handed: set[str] = set()  # float results of layers, which could have codes at no cost
    possible = [node for node in site.graph.nodes if node.name not in reasons]
    growing = True
    while growing:
        growing = False
        for node in possible:
            inputs, results, name = site.inputs(node), site.results(node), op_of(node).onnx
            reached = has_weight(node) or site.is_factored(node) or any(value in coded for value in inputs)
            # a pool computes: behind a float layer it stays float, and what it hands on gets codes
            moves = name in site.spec.same_scale_ops - _POOLS and site.is_sole_part(node)
            backwards = moves and any(value in coded for value in results)
            between = any(value in coded for value in results) and all(value in coded or value in handed for value in inputs)
            if node.name in integer or not inputs or not (reached or backwards or between):
                continue
            integer.add(node.name)
            handed.update(results if name in site.spec.float_result_ops else ())
            coded.update(_codes_of(site, node))
            growing = True
    left = _leave_ends(site, integer)
    if left:
        reasons.update(left)
        return _spread(site, reasons)  # anew: what was only reached through them stays float, too
    return integer, coded


def _codes_of(site: Site, node: Node) -> tuple[str, ...]:
    """Values that must have codes for a node to run on codes."""
    inputs = site.inputs(node)
    return inputs if op_of(node).onnx in site.spec.float_result_ops else (*inputs, *site.results(node))


def _leave_ends(site: Site, integer: set[str]) -> dict[str, str]:
    """What would run on codes between float ops, where rounding buys nothing.

    Sums and products that only float ops read, behind layers that can hand out floats: in a transformer the residual additions in front of
    layer norms, whose few large numbers leave few codes for the rest. And joins that only float ops read, of values that were coded for
    them alone: a small class token beside the patches of an image would have one or two codes of the scale of those.
    """
    kept = set(integer)
    left: dict[str, str] = {}
    made_by = {value: node for node in site.graph.nodes if node.name in integer for value in site.results(node)}

    def read(value: str) -> bool:
        return any(user.name in kept and value in site.inputs(user) for user in site.graph.users.get(value, ()))

    def free(value: str) -> bool:
        maker = made_by.get(value)
        return maker is None or op_of(maker).onnx in site.spec.float_result_ops or read(value)

    def coded_for_it(value: str) -> bool:
        return value not in made_by and not read(value)

    for node in reversed(site.graph.nodes):
        name, inputs = op_of(node).onnx, site.inputs(node)
        if node.name not in kept or any(map(read, site.results(node))):
            continue
        kept.remove(node.name)
        sums = name in ("Add", "Sub", "Rsub", "Mul", "Div") and all(map(free, inputs))
        joins = name == "Concat" and node.name not in site.graph.outputs and any(map(coded_for_it, inputs))
        if sums or joins:
            left[node.name] = "only float ops read it, so that codes would cost accuracy and save nothing"
        else:
            kept.add(node.name)
    return left


def _groups(site: Site, nodes: list[Node], coded: set[str]) -> tuple[Group, ...]:
    """Values tied by ops that only pass codes on."""
    leader: dict[str, str] = {}
    passed_on: set[str] = set()

    def find(name: str) -> str:
        while leader.get(name, name) != name:
            name = leader[name]
        return name

    for node in nodes:
        if op_of(node).onnx in site.spec.same_scale_ops:
            first, *others = (*site.inputs(node), *site.results(node))
            passed_on.update(site.results(node))
            for other in others:
                leader[find(other)] = find(first)
    for node in site.graph.nodes:
        source = site.graph.by_name.get(node.uses[0]) if _is_clamp(site, node) else None
        if source is not None and _is_clamp(site, source) and {source.name, node.name} <= coded and site.graph.sole_user(source.name):
            leader[find(source.name)] = find(node.name)  # a runtime may leave out the first codes, and does so where both are alike
            passed_on.add(source.name)
    groups: dict[str, list[str]] = {}
    for name in (*site.graph.inputs, *(node.name for node in site.graph.nodes)):
        if name in coded:
            groups.setdefault(find(name), []).append(name)
    return tuple(Group(tuple(names), tuple(name for name in names if name not in passed_on)) for names in groups.values())


def _is_clamp(site: Site, node: Node) -> bool:
    return op_of(node).onnx in site.spec.absorbed_ops and clip_limits(node) is not None


def _frozen(site: Site, integer: set[str], coded: set[str], reasons: Mapping[str, str]) -> Iterator[Frozen]:
    """What computes in float: unsupported ops, and supported ones that no integer layer reaches."""
    absorbed = {result for node in site.graph.nodes if node.name in integer for result in site.results(node)} & coded
    fused = set(integer)
    for node in site.graph.nodes:
        op = op_of(node).onnx
        if (op in site.spec.fused_ops or op in site.spec.transparent_ops) and any(name in fused or name in coded for name in node.uses):
            fused.add(node.name)
    for node in site.graph.nodes:
        silent = node.op == COPY or isinstance(op_of(node).kind, (Scalar, Factory)) or isinstance(site.metas[node.name], (int, float, bool))
        if silent or node.name in fused or node.name in absorbed:
            continue
        where = f"{node.module or node.source or node.name} ({op_of(node).onnx or node.op})"
        yield Frozen(where, reasons.get(node.name, "no layer that runs on integers is next to it"))
