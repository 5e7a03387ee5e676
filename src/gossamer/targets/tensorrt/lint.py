"""Checking an ONNX file against TensorRT's documented rules, without TensorRT: what its parser and builder would refuse or run in float.

A file without findings has the documented form. Only building it on a GPU shows that TensorRT takes it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gossamer.targets.findings import Finding
from gossamer.targets.onnx.expose import parse, read
from gossamer.targets.tensorrt.rules import rules
from gossamer.targets.tensorrt.view import View, name_of


def lint(path: str | Path) -> tuple[Finding, ...]:
    """All breaches in a file, rule by rule; empty for a file of the documented form.

    Raises: FileError for a file that is missing or no ONNX; MissingRuntime without onnx.
    """
    path = Path(path)
    return lint_model(parse(path, read(path)))


def lint_model(model: Any) -> tuple[Finding, ...]:
    """Likewise for a ModelProto."""
    view = View(model)
    return tuple(Finding(entry.name, name_of(node), sentence) for entry in rules for node, sentence in entry.value(view))
