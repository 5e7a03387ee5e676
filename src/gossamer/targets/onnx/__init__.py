"""The ONNX file and ONNX Runtime, its runtime on CPUs. Importing this needs neither onnx nor onnxruntime."""

from gossamer.targets.onnx.emit import emit, emit_coded
from gossamer.targets.onnx.run import open_session
from gossamer.targets.onnx.saturation import saturation_notes
from gossamer.targets.onnx.spec import SPEC
from gossamer.targets.onnx.weights import count_zeros
from gossamer.targets.target import Target, add_target

TARGET = Target(
    spec=SPEC, suffix=".onnx", emit=emit, open=open_session, count_zeros=count_zeros, notes=saturation_notes, emit_coded=emit_coded
)
add_target(TARGET, source="optimized graphs of ONNX Runtime 1.32 on x86-64")
