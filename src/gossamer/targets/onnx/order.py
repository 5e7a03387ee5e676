"""The order of ops that ONNX Runtime runs fastest, where another order computes the same.

Its graph optimizer moves a QuantizeLinear in front of a max pool. When what the pool reads was computed in float, the
pool then runs on codes in channels-first layout, forty times slower than the float pool (measured with version 1.32). A
clamp between the pool and the QuantizeLinear keeps them apart, and clamping after the pool gives the same numbers.
"""

from __future__ import annotations

from dataclasses import replace

from gossamer.program.clamps import clip_limits
from gossamer.program.graph import Node, Ref
from gossamer.program.ops import op_of
from gossamer.program.program import Program


def clamps_behind_pools(program: Program) -> Program:
    """Swap clamp and max pool wherever the clamp's result is float and the pool's result has codes."""
    graph, quantizers = program.graph, program.quantizers
    swaps: dict[str, tuple[Node, Node]] = {}
    for pool in graph.nodes:
        clamp = graph.by_name.get(pool.uses[0]) if op_of(pool).onnx == "MaxPool" and pool.name in quantizers else None
        if clamp is None or clamp.name in quantizers or clip_limits(clamp) is None or graph.sole_user(clamp.name) is None:
            continue
        first = replace(pool, name=f"{clamp.name}.pooled", args=(clamp.args[0], *pool.args[1:]))
        swaps[clamp.name] = swaps[pool.name] = (first, replace(clamp, name=pool.name, args=(Ref(first.name), *clamp.args[1:])))
    if not swaps:
        return program
    nodes: list[Node] = []
    for node in graph.nodes:
        pair = swaps.get(node.name)
        if pair is None:
            nodes.append(node)
        elif node.name == pair[1].name:  # at the pool's place
            nodes += pair
    return program.with_graph(replace(graph, nodes=tuple(nodes)))


def keeps_pool_and_codes_apart(node: Node, program: Program) -> bool:
    """Whether a clamp must stay although codes would clip like it: it stands behind a float max pool."""
    source = program.graph.by_name.get(node.uses[0])
    return source is not None and op_of(source).onnx == "MaxPool" and source.uses[0] not in program.quantizers
