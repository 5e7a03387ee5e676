"""OpenVINO on CPUs, which runs the same ONNX files, quantized as its own kernels like it. Importing this needs neither package."""

from gossamer.targets.onnx.emit import emit
from gossamer.targets.onnx.weights import count_zeros
from gossamer.targets.openvino.run import open_model
from gossamer.targets.openvino.spec import NAME, SPEC
from gossamer.targets.target import Target, targets

TARGET = Target(spec=SPEC, suffix=".onnx", emit=emit, open=open_model, count_zeros=count_zeros)
targets.add(NAME)(TARGET)
