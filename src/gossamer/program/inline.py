"""Subgraphs that torch.export wraps around `with torch.no_grad()` and `with torch.autocast(enabled=False)`, put back in line."""

from __future__ import annotations

from typing import Any

from torch import fx
from torch.export import ExportedProgram

from gossamer.errors import CaptureError

_AUTOCAST = "wrap_with_autocast"  # (device, dtype, enabled, cache_enabled, subgraph, *arguments)
_GRAD = "wrap_with_set_grad_enabled"  # (enabled, subgraph, *arguments)


def inline_subgraphs(exported: ExportedProgram) -> None:
    """Replace each such call by the nodes of its subgraph, in place. Raises CaptureError where autocast lowers precision."""
    _inline(exported.graph_module)


def _inline(module: fx.GraphModule) -> None:
    for node in list(module.graph.nodes):
        name = getattr(node.target, "__name__", "") if node.op == "call_function" else ""
        if name == _AUTOCAST and node.args[2] is not False:
            raise CaptureError("it computes under torch.autocast", way_out="export it in the precision of its weights, without autocast")
        if name in (_AUTOCAST, _GRAD):
            _inline_call(module, node)


def _inline_call(module: fx.GraphModule, node: fx.Node) -> None:
    place = next(index for index, arg in enumerate(node.args) if isinstance(arg, fx.Node) and arg.op == "get_attr")
    holder: Any = node.args[place]
    inner: fx.GraphModule = getattr(module, holder.target)
    _inline(inner)
    inputs = [each for each in inner.graph.nodes if each.op == "placeholder"]
    values: dict[fx.Node, Any] = dict(zip(inputs, node.args[place + 1 :], strict=True))
    with module.graph.inserting_before(node):
        results: Any = module.graph.graph_copy(inner.graph, values)
    for user in list(node.users):  # each picks one of the results
        user.replace_all_uses_with(results[user.args[1]])  # type: ignore[index]
        module.graph.erase_node(user)
    module.graph.erase_node(node)
