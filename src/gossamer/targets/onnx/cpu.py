"""Whether this processor's integer kernels can saturate at 16 bits, found by asking the kernels.

On x86 with AVX2 or AVX-512 but without VNNI, ONNX Runtime multiplies unsigned codes with signed weights by vpmaddubsw, which adds
two products in 16 bits and clips the sum. Flags of the processor would tell less: those with SSE alone use other kernels and
are exact, and emulators hand out the flags of the machine they run on.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

WORST_CODE, WORST_WEIGHT = 255, 127
PRECISE = ("session.x64quantprecision", "1")  # ONNX Runtime then turns signed weights into unsigned ones, whose kernels are exact
EXACT = "gossamer.exact"  # key in the metadata of files whose codes cannot saturate, so that sessions need no setting
_DEPTH = 4


@lru_cache(maxsize=1)
def saturates() -> bool:
    """Whether a product of unsigned and signed 8-bit codes comes out wrong where two products exceed 16 bits.

    Measured once per process with a product of 4 by 4 numbers (a few milliseconds). Needs onnx and onnxruntime.
    """
    import onnxruntime
    from onnx import TensorProto, helper, numpy_helper

    weight = numpy_helper.from_array(np.full((_DEPTH, 4), WORST_WEIGHT, np.int8), "w")
    source = helper.make_tensor_value_info("x", TensorProto.UINT8, [4, _DEPTH])
    result = helper.make_tensor_value_info("y", TensorProto.INT32, [4, 4])
    graph = helper.make_graph([helper.make_node("MatMulInteger", ["x", "w"], ["y"])], "probe", [source], [result], [weight])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"x": np.full((4, _DEPTH), WORST_CODE, np.uint8)})
    return bool((found != WORST_CODE * WORST_WEIGHT * _DEPTH).any())
