"""OpenVINO on CPUs, which runs the same ONNX files, quantized as its own kernels like it. Importing this needs neither package."""

from pathlib import Path

from gossamer.files import write_bytes
from gossamer.program.program import Program
from gossamer.targets.onnx.emit import to_onnx
from gossamer.targets.onnx.saturation import saturation_note, signed_note
from gossamer.targets.onnx.weights import count_zeros
from gossamer.targets.openvino.cpu import exact_weights
from gossamer.targets.openvino.run import open_model
from gossamer.targets.openvino.spec import SPEC
from gossamer.targets.target import Target, add_target


def emit(program: Program, path: Path) -> None:
    """Write a program as ONNX, as OpenVINO computes it right. Raises as gossamer.targets.onnx.emit.emit."""
    write_bytes(Path(path), to_onnx(program, spec=SPEC))


def notes(program: Program) -> tuple[str, ...]:
    """What users of the file must know."""
    return (*saturation_note(program, "quantize with weights='int7'"), *signed_note(program))


TARGET = Target(spec=SPEC, suffix=".onnx", emit=emit, open=open_model, count_zeros=count_zeros, notes=notes, exact_weights=exact_weights)
add_target(TARGET, source="runtime models of OpenVINO 2026.4 on x86-64")
