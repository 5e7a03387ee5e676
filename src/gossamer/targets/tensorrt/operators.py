"""The ONNX operators that TensorRT's parser reads, and the cases of them that it refuses, as its support matrix lists them.

Source: onnx-tensorrt, docs/operators.md, for TensorRT 10.15 (opsets 9 to 24).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from gossamer.targets.tensorrt.view import View, attribute

OPSETS = (9, 24)

SUPPORTED = frozenset(
    """
    Abs Acos Acosh Add And ArgMax ArgMin Asin Asinh Atan Atanh Attention AveragePool BatchNormalization BlackmanWindow Cast CastLike
    Ceil Celu Clip Concat Constant ConstantOfShape Conv ConvTranspose Cos Cosh CumSum DeformConv DepthToSpace DequantizeLinear Div
    Dropout Einsum Elu Equal Erf Exp Expand EyeLike Flatten Floor Gather GatherElements GatherND Gelu Gemm GlobalAveragePool
    GlobalLpPool GlobalMaxPool Greater GreaterOrEqual GridSample GroupNormalization GRU HammingWindow HannWindow HardSigmoid HardSwish
    Hardmax Identity If ImageScaler InstanceNormalization IsInf IsNaN LayerNormalization LeakyRelu Less LessOrEqual Log LogSoftmax
    Loop LRN LSTM LpNormalization LpPool MatMul Max MaxPool Mean MeanVarianceNormalization Min Mish Mod Mul Neg NonMaxSuppression
    NonZero Not OneHot Or Pad ParametricSoftplus Pow PRelu QuantizeLinear RandomNormal RandomNormalLike RandomUniform
    RandomUniformLike Range Reciprocal ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd
    ReduceSum ReduceSumSquare Relu Reshape Resize ReverseSequence RMSNormalization RNN RoiAlign RotaryEmbedding Round STFT ScaledTanh
    Scan Scatter ScatterElements ScatterND Selu Shape Shrink Sigmoid Sign Sin Sinh Size Slice Softmax Softplus Softsign SpaceToDepth
    Split Sqrt Squeeze Sub Sum Tan Tanh TensorScatter ThresholdedRelu Tile TopK Transpose Trilu Unsqueeze Upsample Where Xor
    """.split()
)

# integer operators of other runtimes, with what TensorRT reads in their place
INSTEAD = {
    "QLinearConv": "DequantizeLinear, Conv and QuantizeLinear",
    "QLinearMatMul": "DequantizeLinear, MatMul and QuantizeLinear",
    "ConvInteger": "DequantizeLinear and Conv",
    "MatMulInteger": "DequantizeLinear and MatMul",
    "DynamicQuantizeLinear": "QuantizeLinear with a constant scale",
}

CAST_TYPES = {1: "FLOAT", 2: "UINT8", 6: "INT32", 7: "INT64", 9: "BOOL", 10: "FLOAT16", 11: "DOUBLE", 16: "BFLOAT16"}


def refused_form(view: View, node: Any) -> str:
    """Why TensorRT refuses this use of an operator that it reads, or ""."""
    check = _FORMS.get(node.op_type)
    return "" if check is None else check(view, node)


def _pool(view: View, node: Any) -> str:
    if len(attribute(node, "kernel_shape", (1, 1))) not in (2, 3):
        return "it pools over one axis; only two or three are read"
    if any(step != 1 for step in attribute(node, "dilations", ())):
        return "its dilations are not all 1"
    return "it hands out indices" if len(node.output) > 1 and node.output[1] else ""


def _cast(view: View, node: Any) -> str:
    kind = attribute(node, "to", 1)
    stored = view.stored(node.input[0])
    kinds = [kind] if stored is None else [kind, stored.data_type]
    return next(
        (f"it casts from or to type {kind} of TensorProto, which only codes can have" for kind in kinds if kind not in CAST_TYPES), ""
    )


def _resize(view: View, node: Any) -> str:
    mode, transform = (attribute(node, key, default).decode() for key, default in (("mode", b"nearest"), _HALF_PIXEL))
    if mode not in ("nearest", "linear"):
        return f"its mode is {mode!r}; nearest and linear are read"
    if transform not in ("half_pixel", "pytorch_half_pixel", "tf_half_pixel_for_nn", "asymmetric", "align_corners"):
        return f"its coordinates are {transform!r}"
    return "it smooths first (antialias)" if attribute(node, "antialias", 0) else ""


def _lstm(view: View, node: Any) -> str:
    return "its input_forget or layout is not 0" if attribute(node, "input_forget", 0) or attribute(node, "layout", 0) else ""


def _scatter(view: View, node: Any) -> str:
    kind = attribute(node, "reduction", b"none").decode()
    return "" if kind == "none" else f"its reduction is {kind!r}"


def _axes(view: View, node: Any) -> str:
    given = len(node.input) > 1 and node.input[1]
    return "its axes are computed, not constant" if given and not view.is_constant(node.input[1]) else ""


def _depth(view: View, node: Any) -> str:
    return "" if view.is_constant(node.input[1]) else "its second input is computed, not constant"


def _norm(view: View, node: Any) -> str:
    return "it hands out more than the normalized values" if any(node.output[1:]) else ""


_HALF_PIXEL = ("coordinate_transformation_mode", b"half_pixel")
_FORMS: dict[str, Callable[[View, Any], str]] = {
    "AveragePool": _pool,
    "MaxPool": _pool,
    "LpPool": _pool,
    "Cast": _cast,
    "Resize": _resize,
    "LSTM": _lstm,
    "ScatterND": _scatter,
    "LayerNormalization": _norm,
    "OneHot": _depth,
    "CumSum": _depth,
    "Squeeze": _axes,
    "Unsqueeze": _axes,
    **dict.fromkeys(("ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMean", "ReduceMin"), _axes),
    **dict.fromkeys(("ReduceProd", "ReduceSum", "ReduceSumSquare"), _axes),
}
