"""As much of TensorRT's Python API as our runner calls, over ONNX Runtime on the CPU: it shows that the calls fit together, nothing else."""

from __future__ import annotations

import ctypes
from enum import IntEnum

import numpy as np
import onnx
import onnxruntime


class TensorIOMode(IntEnum):
    INPUT = 1
    OUTPUT = 2


class NetworkDefinitionCreationFlag(IntEnum):
    STRONGLY_TYPED = 1


class BuilderFlag(IntEnum):
    TF32 = 7


class Logger:
    ERROR = 1

    def __init__(self, severity):
        self.severity = severity


def nptype(kind):
    return onnx.helper.tensor_dtype_to_np_dtype(kind).type


class Port:
    def __init__(self, info):
        self.name = info.name
        self.shape = tuple(size.dim_value if size.HasField("dim_value") else -1 for size in info.type.tensor_type.shape.dim)


class Network:
    model = None

    def __init__(self, flags):
        assert flags == 1 << NetworkDefinitionCreationFlag.STRONGLY_TYPED

    @property
    def num_inputs(self):
        return len(self.model.graph.input)

    def get_input(self, place):
        return Port(self.model.graph.input[place])


class OnnxParser:
    refuses = ""

    def __init__(self, network, logger):
        self.network = network
        self.num_errors = 1

    def parse(self, data):
        self.network.model = onnx.load_from_string(data)
        return not self.refuses

    def get_error(self, place):
        return self.refuses


class Profile:
    def __init__(self):
        self.shapes = {}

    def set_shape(self, name, least, usual, most):
        self.shapes[name] = (least, usual, most)


class Config:
    def __init__(self):
        self.profiles, self.cleared = [], set()

    def clear_flag(self, flag):
        self.cleared.add(flag)

    def add_optimization_profile(self, profile):
        self.profiles.append(profile)


class Builder:
    built = 0

    def __init__(self, logger):
        pass

    create_network = staticmethod(Network)
    create_builder_config = staticmethod(Config)
    create_optimization_profile = staticmethod(Profile)

    def build_serialized_network(self, network, config):
        assert BuilderFlag.TF32 in config.cleared
        type(self).built += 1
        return network.model.SerializeToString(), config.profiles[0].shapes


class Runtime:
    def __init__(self, logger):
        pass

    def deserialize_cuda_engine(self, plan):
        return Engine(*plan)


class Engine:
    def __init__(self, data, limits):
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        self.model, self.limits = onnx.load_from_string(data), limits
        self.session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
        self.ports = [*self.model.graph.input, *self.model.graph.output]
        self.num_io_tensors = len(self.ports)

    def get_tensor_name(self, place):
        return self.ports[place].name

    def get_tensor_mode(self, name):
        return TensorIOMode.INPUT if name in {port.name for port in self.model.graph.input} else TensorIOMode.OUTPUT

    def get_tensor_dtype(self, name):
        return next(port.type.tensor_type.elem_type for port in self.ports if port.name == name)

    def create_execution_context(self):
        return Context(self)


class Context:
    def __init__(self, engine):
        self.engine, self.shapes, self.places = engine, {}, {}

    def set_input_shape(self, name, shape):
        least, _, most = self.engine.limits[name]
        fits = len(shape) == len(most) and all(low <= size <= high for low, size, high in zip(least, shape, most, strict=True))
        self.shapes[name] = shape
        return fits

    def get_tensor_shape(self, name):
        given = {key: np.zeros(shape, nptype(self.engine.get_tensor_dtype(key))) for key, shape in self.shapes.items()}
        return self.engine.session.run([name], given)[0].shape

    def set_tensor_address(self, name, address):
        self.places[name] = address

    def execute_async_v3(self, stream):
        given = {name: self._at(name, shape).copy() for name, shape in self.shapes.items()}
        names = [port.name for port in self.engine.model.graph.output]
        for name, found in zip(names, self.engine.session.run(names, given), strict=True):
            self._at(name, found.shape)[...] = found
        return True

    def _at(self, name, shape):
        kind = np.dtype(nptype(self.engine.get_tensor_dtype(name)))
        size = int(np.prod(shape)) * kind.itemsize
        return np.frombuffer((ctypes.c_char * size).from_address(self.places[name]), kind).reshape(shape)
