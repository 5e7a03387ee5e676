"""TensorRT on NVIDIA GPUs: an ONNX file in its symmetric form, checked against its documented rules. Importing this needs no package of it."""

from gossamer.targets.onnx.weights import count_zeros
from gossamer.targets.target import Target, add_target
from gossamer.targets.tensorrt import kernels as kernels
from gossamer.targets.tensorrt.emit import emit
from gossamer.targets.tensorrt.lint import lint
from gossamer.targets.tensorrt.run import INSTALL, PACKAGE, find_version, notes, open_file, stands_in
from gossamer.targets.tensorrt.spec import SPEC

TARGET = add_target(
    Target(
        spec=SPEC,
        suffix=".onnx",
        emit=emit,
        open=open_file,
        count_zeros=count_zeros,
        notes=notes,
        package=PACKAGE,
        install=INSTALL,
        find_version=find_version,
        lint=lint,
        stands_in=stands_in,
    ),
    source="documentation of NVIDIA TensorRT 10.15; not measured",
)
