"""What ONNX Runtime made of a file: the graph after its optimizations, and what stayed in float there."""

from __future__ import annotations

import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gossamer.targets.onnx.expose import parse, read
from gossamer.targets.onnx.run import start_session

_HEAVY = ("Conv", "Gemm", "MatMul", "FusedConv", "FusedGemm", "FusedMatMul", "Add", "ConvTranspose")


@dataclass(frozen=True, slots=True)
class FloatLayer:
    """A layer that ONNX Runtime computes in float: the operator, and the tensor that it makes."""

    op: str
    output: str


def optimized_ops(path: Path) -> dict[str, int]:
    """How many nodes of each type the optimized graph has, most frequent first.

    Raises: MissingRuntime, FileError.
    """
    return dict(Counter(node.op_type for node in _optimized(Path(path)).graph.node).most_common())


def layers_in_float(path: Path) -> tuple[FloatLayer, ...]:
    """The convolutions, linear layers and additions of a file that stay in float, in order. Raises like optimized_ops."""
    nodes = _optimized(Path(path)).graph.node
    return tuple(FloatLayer(node.op_type, node.output[0]) for node in nodes if node.op_type in _HEAVY)


def _optimized(path: Path) -> Any:
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "optimized.onnx"
        start_session(path, read(path), threads=1, optimized=target)
        return parse(target, target.read_bytes())
