"""From a program to a .pte file: exported by torch.export, lowered by ExecuTorch, its XNNPACK parts in one delegate or several."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gossamer.errors import GossamerError, UnsupportedOp
from gossamer.files import write_bytes
from gossamer.plan.coded import coded_nodes
from gossamer.program.capture import relative_error
from gossamer.program.fold import fold_batch_norms
from gossamer.program.graph import Node
from gossamer.program.ops import op_of
from gossamer.program.program import Program
from gossamer.targets.executorch.network import Network
from gossamer.targets.executorch.packages import part, quiet
from gossamer.targets.executorch.spec import NAME, SPEC

MOST_SAMPLES = 64  # in a call, where the batch size is free: memory for what lies between delegates is planned for this many
TOLERANCE = 1e-4  # relative; as verify allows
MOST_NAMED = 3
_MODULE = "calls."
# what a pass that cannot go on raises; torch.fx's pass manager turns most of it into a bare Exception
_FAILURES = (Exception, RuntimeError, NotImplementedError, ValueError, KeyError, TypeError, AssertionError)


def emit(program: Program, path: Path) -> None:
    """Write a program as .pte.

    Raises: UnsupportedOp for an op without a kernel, and for a layer with codes that would be computed in float; MissingRuntime without
    executorch; FileError when the file cannot be written.
    """
    write_bytes(Path(path), to_pte(program).data)


@dataclass(frozen=True, slots=True)
class Written:
    """A .pte file, and the values whose codes it hands out behind its outputs."""

    data: bytes
    handed_out: tuple[str, ...]


def to_pte(program: Program, *, hand_out: bool = False) -> Written:
    """The bytes of the file. Batch norms of a float program are folded where possible; `hand_out` adds codes to its outputs."""
    exir = part("exir")
    partitioner = part("backends.xnnpack.partition.xnnpack_partitioner")
    program = program if program.quantizers else fold_batch_norms(program)
    network = Network(program, hand_out=hand_out).eval()
    with quiet(), torch.no_grad():
        exported = _export(program, network)
        try:
            lowered = exir.to_edge_transform_and_lower(
                exported,
                partitioner=[partitioner.XnnpackPartitioner()],
                compile_config=exir.EdgeCompileConfig(_check_ir_validity=False),
            )
            _check(program, network, lowered.exported_program().graph)
            data = bytes(lowered.to_executorch().buffer)
        except Exception as error:
            if isinstance(error, GossamerError) or type(error) not in _FAILURES:
                raise
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise GossamerError(
                f"ExecuTorch cannot lower this network ({reason}); export to another target, such as onnxruntime."
            ) from error
        left = [node for node, op in _left(network, lowered.exported_program().graph) if node is not None and not _is_coding(op)]
        _try(program, data, left)
        return Written(data, network.handed_out)


def _export(program: Program, network: Network) -> Any:
    """The network as torch.export's graph, with a batch size of 1 to MOST_SAMPLES where it is free."""
    examples = tuple(spec.example(2) for spec in program.inputs)
    free = [spec.shape[0] is None if spec.shape else False for spec in program.inputs]
    batch = torch.export.Dim("batch", min=1, max=MOST_SAMPLES)
    shapes = {"inputs": tuple({0: batch} if is_free else None for is_free in free)}
    return torch.export.export(network, examples, dynamic_shapes=shapes if any(free) else None, strict=False)


def _check(program: Program, network: Network, graph: Any) -> None:
    """Raise UnsupportedOp for what was not delegated and is either a layer on codes or has no portable kernel."""
    kernels = {name.partition(".")[0] for name in part("runtime").Runtime.get().operator_registry.operator_names}
    coded = coded_nodes(program)
    for node, op in _left(network, graph):
        if node is not None and node.name in coded and op_of(node).onnx not in SPEC.same_scale_ops and not _is_coding(op):
            raise UnsupportedOp(
                node.op, node.where, needed=f"integer {NAME}", way_out=f"keep it float with rules={{{node.module or node.name!r}: 'float'}}"
            )
        if op not in kernels:
            raise UnsupportedOp(
                op if node is None else node.op,
                "" if node is None else node.where,
                needed=NAME,
                way_out="rewrite that line, or export to another target, such as onnxruntime",
            )


def _try(program: Program, data: bytes, left: list[Node]) -> None:
    """Run the file: portable kernels tell only then which forms of an op they have, and some compute another one. Raises UnsupportedOp."""
    fault = ""
    try:
        method = part("runtime").Runtime.get().load_program(data).load_method("forward")
        for batch in (1, 3):  # some kernels run at the batch size of the export alone, which was 2
            examples = [spec.example(batch, torch.Generator().manual_seed(position)) for position, spec in enumerate(program.inputs)]
            found = method.execute(examples)
            fault = fault or ("" if program.quantizers else _difference(program, examples, found))
    except RuntimeError as error:
        fault = f"a trial run fails ({str(error).splitlines()[0]})"
    if fault:
        suspects = ", ".join(f"{node.op} at {node.where}" for node in left[:MOST_NAMED])
        raise UnsupportedOp(
            left[0].op if left else "one of XNNPACK's ops",
            left[0].where if left else "",
            needed=f"working {NAME}",
            way_out=f"{fault}, and this is what XNNPACK did not take: {suspects or 'nothing'}; export to another target, such as onnxruntime",
        )


def _difference(program: Program, examples: list[Tensor], found: Sequence[Tensor]) -> str:
    """What is wrong with a float file's outputs, in words; "" where nothing is."""
    with torch.no_grad():
        expected = program.copy().eval().cpu()(*examples)
    expected = expected if isinstance(expected, tuple) else (expected,)
    pairs = zip(found, expected, strict=False)
    error = max(relative_error(torch.nan_to_num(one), torch.nan_to_num(two)) for one, two in pairs)
    return "" if error <= TOLERANCE else f"a trial run gives numbers that are wrong by {error:.2g} (relative)"


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
