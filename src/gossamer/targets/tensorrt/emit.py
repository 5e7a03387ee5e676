"""Writing the ONNX file that TensorRT reads: the common writer's, checked against the rules before anything is written."""

from __future__ import annotations

from pathlib import Path

from gossamer.errors import PlanError, UnsupportedOp
from gossamer.files import write_bytes
from gossamer.program.graph import Node
from gossamer.program.program import Program
from gossamer.targets.findings import Finding
from gossamer.targets.onnx.emit import to_onnx
from gossamer.targets.onnx.expose import parse
from gossamer.targets.tensorrt.lint import lint_model
from gossamer.targets.tensorrt.rules import OPERATOR
from gossamer.targets.tensorrt.view import View

WAY_OUT = "write that part of the model with other operations, or export for another target, such as onnxruntime"


def emit(program: Program, path: Path) -> None:
    """Write a program as ONNX in the form that TensorRT documents.

    Raises: UnsupportedOp for an op without an ONNX form or that TensorRT does not read (names op, layer, and the way out); PlanError
    for quantizers that break its rules, such as zero points; FileError when the file cannot be written.
    """
    data = to_onnx(program)
    model = parse(path, data)
    for finding in lint_model(model):
        raise _error(finding, program, View(model))
    write_bytes(Path(path), data)


def _error(finding: Finding, program: Program, view: View) -> UnsupportedOp | PlanError:
    node = _origin(finding.node, program, view)
    at = node.where if node is not None else finding.node
    if finding.rule == OPERATOR:
        return UnsupportedOp(
            f"{node.op if node is not None else finding.node} ({finding.sentence})", at, needed="TensorRT", way_out=WAY_OUT
        )
    return PlanError(f"TensorRT's rule {finding.rule!r} is broken at {at}: {finding.sentence}; plan the network anew for 'tensorrt'.")


def _origin(tensor: str, program: Program, view: View) -> Node | None:
    """The op of the program that an ONNX node is part of: the first one whose value is made on the way from there to the outputs."""
    waiting, seen = [tensor], {tensor}
    while waiting:
        name = waiting.pop(0)
        if name in view.outputs:
            place = [port.name for port in view.model.graph.output].index(name)
            return program.graph.by_name.get(program.graph.outputs[place])
        found = program.graph.by_name.get(name.split("/")[0])
        if found is not None:
            return found
        for reader in view.readers(name):
            fresh = [made for made in reader.output if made not in seen]
            seen.update(fresh)
            waiting += fresh
    return None
