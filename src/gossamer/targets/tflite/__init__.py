"""The .tflite file and LiteRT, its runtime on phones and CPUs. Importing this needs neither flatbuffers nor ai-edge-litert."""

from gossamer.targets.target import Target, add_target
from gossamer.targets.tflite.emit import emit, emit_coded
from gossamer.targets.tflite.run import open_file
from gossamer.targets.tflite.spec import SPEC

TARGET = Target(spec=SPEC, suffix=".tflite", emit=emit, open=open_file, emit_coded=emit_coded, package="ai-edge-litert")
add_target(TARGET, source="kernels of LiteRT 2.3.0 with XNNPACK on x86-64")
