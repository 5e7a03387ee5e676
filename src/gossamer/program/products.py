"""Products with a parameter as linear layers, which is what they are: x @ w, x @ w.T, torch.mm, torch.addmm.

Layers are coupled, pruned, quantized and counted as such; a product of two values has none of it. Outer products, which sum
nothing, become pointwise ones; of products with something added, the product and the addition become ops of their own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from gossamer.program.graph import Arg, Graph, Node, Ref
from gossamer.program.ops import bind

_PRODUCTS = {"aten.matmul.default": "other", "aten.mm.default": "mat2", "aten.addmm.default": "mat2"}
_SUMS = {  # op -> its product and the names of what that multiplies
    "aten.addmm.default": ("aten.mm.default", "mat1", "mat2"),
    "aten.baddbmm.default": ("aten.bmm.default", "batch1", "batch2"),
}
_TRANSPOSES = ("aten.t.default", "aten.numpy_T.default", "aten.transpose.int")


def with_plain_products(graph: Graph, ranks: Mapping[str, int]) -> Graph:
    """All of it. `ranks` as below."""
    layers = products_as_layers(graph, ranks)  # first, since what they add may be a bias
    return outer_products_as_pointwise(products_as_layers(sums_apart(layers), ranks))


def products_as_layers(graph: Graph, ranks: Mapping[str, int]) -> Graph:
    """Replace each product with a matrix of the state on its right by a linear layer, and what was added by its bias.

    ranks  number of axes of each float state tensor, by name

    A matrix (I, O) is transposed in front of the layer, by a node that takes its name with "_t" behind.
    """
    made = {node.name: node for node in graph.nodes}
    taken = {*made, *graph.inputs, *graph.state_names}
    weights: dict[str, Ref] = {}  # matrix -> it transposed
    nodes: list[Node] = []
    for node in graph.nodes:
        right = bind(node)[_PRODUCTS[node.op]] if node.op in _PRODUCTS else None
        transposed = _transposed(made[right.name], ranks) if isinstance(right, Ref) and right.name in made else None
        if not isinstance(right, Ref) or (transposed is None and ranks.get(right.name) != 2) or not _is_layer(node, ranks):
            nodes.append(node)
            continue
        if transposed is None:
            if right.name not in weights:
                name = _free_name(f"{right.name}_t", taken)
                weights[right.name] = Ref(name)
                nodes.append(Node(name, "aten.t.default", (right,), module=node.module, source=node.source))
            transposed = weights[right.name]
        bound = bind(node)
        data, bias = (bound["mat1"], bound["self"]) if node.op == "aten.addmm.default" else (bound["self"], None)
        nodes.append(replace(node, op="aten.linear.default", args=(data, transposed, bias), kwargs=()))
    return replace(graph, nodes=tuple(nodes))


def outer_products_as_pointwise(graph: Graph) -> Graph:
    """Replace torch.outer(a, b) by a[:, None] * b."""
    taken = {node.name for node in graph.nodes} | {*graph.inputs, *graph.state_names}
    nodes: list[Node] = []
    for node in graph.nodes:
        if node.op == "aten.outer.default":
            left, right = node.args
            name = _free_name(f"{node.name}_left", taken)
            nodes.append(replace(node, name=name, op="aten.unsqueeze.default", args=(left, 1), kwargs=()))
            node = replace(node, op="aten.mul.Tensor", args=(Ref(name), right), kwargs=())
        nodes.append(node)
    return replace(graph, nodes=tuple(nodes))


def sums_apart(graph: Graph) -> Graph:
    """Replace each addmm and baddbmm, beta * c + alpha * (a @ b), by the product and what is done to it."""
    taken = {node.name for node in graph.nodes} | {*graph.inputs, *graph.state_names}
    nodes: list[Node] = []
    for node in graph.nodes:
        if node.op not in _SUMS:
            nodes.append(node)
            continue
        op, left, right = _SUMS[node.op]
        bound = bind(node)
        steps: list[tuple[str, tuple[Arg, ...], tuple[tuple[str, Arg], ...]]] = [(op, (bound[left], bound[right]), ())]
        if bound["alpha"] != 1:
            steps.append(("aten.mul.Tensor", (bound["alpha"],), ()))
        if bound["beta"] != 0:  # else what is added may hold anything, such as memory that was never written
            steps.append(("aten.add.Tensor", (bound["self"],), (("alpha", bound["beta"]),) if bound["beta"] != 1 else ()))
        for place, (step, args, kwargs) in enumerate(steps):
            name = _free_name(f"{node.name}_product", taken) if place < len(steps) - 1 else node.name
            nodes.append(replace(node, name=name, op=step, args=(Ref(nodes[-1].name), *args) if place else args, kwargs=kwargs))
    return replace(graph, nodes=tuple(nodes))


def _free_name(name: str, taken: set[str]) -> str:
    """The name, with underscores behind it until it is not taken; it is from then on."""
    while name in taken:
        name += "_"
    taken.add(name)
    return name


def _transposed(node: Node, ranks: Mapping[str, int]) -> Ref | None:
    """The matrix of the state that a node transposes, or None."""
    source = node.args[0] if node.op in _TRANSPOSES else None
    if not isinstance(source, Ref) or ranks.get(source.name) != 2:
        return None
    swaps = node.op != "aten.transpose.int" or node.args[1] % 2 != node.args[2] % 2
    return source if swaps else None


def _is_layer(node: Node, ranks: Mapping[str, int]) -> bool:
    """Whether the product has what a layer has: data on the left, and a plain vector added to it at most."""
    bound = bind(node)
    left = bound["mat1"] if node.op == "aten.addmm.default" else bound["self"]
    if not isinstance(left, Ref) or left.name in ranks:
        return False
    if node.op != "aten.addmm.default":
        return True
    bias = bound["self"]
    return isinstance(bias, Ref) and ranks.get(bias.name) == 1 and bound["beta"] == 1 and bound["alpha"] == 1
