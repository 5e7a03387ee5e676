"""Targets: the file each runtime reads, how it is run, measured and verified. Importing this registers those we have."""

from gossamer.targets import cortex_m as cortex_m
from gossamer.targets import executorch as executorch
from gossamer.targets import gemmlowp_kernels as gemmlowp_kernels
from gossamer.targets import int16_kernels as int16_kernels
from gossamer.targets import onnx as onnx
from gossamer.targets import openvino as openvino
from gossamer.targets import tensorrt as tensorrt
from gossamer.targets import tflite as tflite
from gossamer.targets import tflm as tflm
from gossamer.targets import torch_compile as torch_compile
from gossamer.targets import xnnpack_kernels as xnnpack_kernels
