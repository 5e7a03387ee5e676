"""OpenVINO on CPUs, which runs the same ONNX files, quantized as its own kernels like it. Importing this needs neither package."""

from gossamer.program.program import Program
from gossamer.targets.onnx.emit import emit
from gossamer.targets.onnx.saturation import saturation_note
from gossamer.targets.onnx.weights import count_zeros
from gossamer.targets.openvino.run import open_model
from gossamer.targets.openvino.spec import NAME, SPEC
from gossamer.targets.target import Target, targets


def notes(program: Program) -> tuple[str, ...]:
    """What users of the file must know."""
    return saturation_note(program, "quantize with weights='int7'")


TARGET = Target(spec=SPEC, suffix=".onnx", emit=emit, open=open_model, count_zeros=count_zeros, notes=notes)
targets.add(NAME)(TARGET)
