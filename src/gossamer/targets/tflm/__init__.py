"""LiteRT for Microcontrollers: the same .tflite file, run by the interpreter that microcontrollers run."""

from gossamer.targets.target import Target, add_target
from gossamer.targets.tflm.emit import emit, emit_coded
from gossamer.targets.tflm.run import notes, open_file
from gossamer.targets.tflm.spec import SPEC

TARGET = Target(
    spec=SPEC,
    suffix=".tflite",
    emit=emit,
    open=open_file,
    notes=notes,
    emit_coded=emit_coded,
    package="tflite-micro",
    install="pip install --pre tflite-micro",
)
add_target(TARGET, source="reference kernels of tflite-micro, October 2026")
