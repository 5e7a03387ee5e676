"""Networks that are not one XNNPACK graph: exported by torch.export and lowered by ExecuTorch, in several delegates with its own kernels between."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from gossamer.errors import GossamerError, UnsupportedOp
from gossamer.plan.coded import coded_nodes
from gossamer.plan.site import has_weight
from gossamer.program.graph import Node
from gossamer.program.ops import op_of
from gossamer.program.program import Program
from gossamer.targets.executorch.calls import MOST_SAMPLES
from gossamer.targets.executorch.network import Network
from gossamer.targets.executorch.packages import RUNTIME, part, quiet
from gossamer.targets.executorch.spec import NAME, SPEC

_MODULE = "calls."
_WAY_OUT = "rewrite that line, or export to another target, such as onnxruntime"
# what a pass that cannot go on raises; torch.fx's pass manager turns most of it into a bare Exception
_FAILURES = (Exception, RuntimeError, NotImplementedError, ValueError, KeyError, TypeError, AssertionError)


@dataclass(frozen=True, slots=True)
class Lowered:
    """A .pte file, the values whose codes it hands out behind its outputs, and the nodes that XNNPACK did not take."""

    data: bytes
    handed_out: tuple[str, ...]
    left: tuple[Node, ...]


def lowered(program: Program, *, hand_out: bool = False) -> Lowered:
    """Through ExecuTorch's passes. `hand_out` adds codes to the outputs.

    Raises: UnsupportedOp for an op without a kernel, and for a layer with codes that would be computed in float; GossamerError for what a
    pass runs into; MissingRuntime without executorch.
    """
    exir = part("exir")
    partitioner = part("backends.xnnpack.partition.xnnpack_partitioner")
    network = Network(program, hand_out=hand_out).eval()
    with quiet(), torch.no_grad():
        exported = _export(program, network)
        try:
            edge = exir.to_edge_transform_and_lower(
                exported,
                partitioner=[partitioner.XnnpackPartitioner()],
                compile_config=exir.EdgeCompileConfig(_check_ir_validity=False),
            )
            _check(program, network, edge.exported_program().graph)
            data = bytes(edge.to_executorch().buffer)
        except Exception as error:
            if isinstance(error, GossamerError) or type(error) not in _FAILURES:
                raise
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise GossamerError(
                f"ExecuTorch cannot lower this network ({reason}); export to another target, such as onnxruntime."
            ) from error
        graph = edge.exported_program().graph
        left = tuple(node for node, op in _left(network, graph) if node is not None and not _is_coding(op))
        return Lowered(data, network.handed_out, left)


def _export(program: Program, network: Network) -> Any:
    """The network as torch.export's graph, with a batch size of 1 to MOST_SAMPLES where it is free."""
    examples = tuple(spec.example(2) for spec in program.inputs)
    free = [spec.shape[0] is None if spec.shape else False for spec in program.inputs]
    batch = torch.export.Dim("batch", min=1, max=MOST_SAMPLES)
    shapes = {"inputs": tuple({0: batch} if is_free else None for is_free in free)}
    return torch.export.export(network, examples, dynamic_shapes=shapes if any(free) else None, strict=False)


def _check(program: Program, network: Network, graph: Any) -> None:
    """Raise UnsupportedOp for what was not delegated and is either a layer on codes or has no portable kernel."""
    kernels = {name.partition(".")[0] for name in part(RUNTIME)._get_operator_names()}
    coded = coded_nodes(program)
    for node, op in _left(network, graph):
        if node is not None and node.name in coded and op_of(node).onnx not in SPEC.same_scale_ops and not _is_coding(op):
            kept = f"keep it float with rules={{{node.module or node.name!r}: 'float'}}"
            raise UnsupportedOp(node.op, node.where, needed=f"integer {NAME}", way_out=kept if has_weight(node) else _WAY_OUT)
        if op not in kernels:
            raise UnsupportedOp(
                op if node is None else node.op,
                "" if node is None else node.where,
                needed=NAME,
                way_out=_WAY_OUT,
            )


def _left(network: Network, graph: Any) -> Iterator[tuple[Node | None, str]]:
    """(the program's node, the op's name) of each op that no delegate took."""
    for node in graph.nodes:
        schema = getattr(node.target, "_schema", None)
        if node.op == "call_function" and schema is not None and not schema.name.startswith(("executorch_prim", "higher_order")):
            yield _origin(network, node), schema.name


def _origin(network: Network, node: Any) -> Node | None:
    for path, _ in reversed(node.meta.get("nn_module_stack", {}).values()):
        if _MODULE in path:
            return network.nodes[int(path.split(_MODULE)[1].split(".")[0])]
    return None


def _is_coding(op: str) -> bool:
    return op.startswith("quantized_decomposed::")
