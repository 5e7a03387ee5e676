"""What the kernels compute is held by test_simulate against the runtime; here: that there is one for every op."""

import pytest
import torch

from gossamer.numerics.affine import Quantizer
from gossamer.numerics.formats import IntFormat, PerTensor
from gossamer.plan.spec import specs
from gossamer.program.graph import Node, Ref
from gossamer.targets import onnx as onnx
from gossamer.targets.float32_kernels import CodeCall, kernels, pass_on


@pytest.mark.parametrize("entry", [entry for entry in specs if entry.value.requantization == "float32-half-even"], ids=lambda e: e.name)
def test_every_integer_op_has_a_kernel(entry):
    assert entry.value.integer_ops - entry.value.same_scale_ops <= set(kernels.names())


def test_padding_of_codes_is_padding_with_zero():
    quantizer = Quantizer(IntFormat(bits=8, signed=False), PerTensor(), (0.5,), (7,))
    node = Node("pad", "aten.constant_pad_nd.default", (Ref("x"), (1, 0), 0.0))
    call = CodeCall(node, {"x": (torch.tensor([[9.0, 3.0]]), quantizer)}, {}, {}, {}, quantizer)
    assert pass_on(call).tolist() == [[7, 9, 3]]
