"""Rows of the pointwise ops, and of the factories that feed them."""

from gossamer.program.ops.kinds import Factory, Pointwise
from gossamer.program.ops.table import add

_SIMPLE = {
    "relu.default": "Relu",
    "sigmoid.default": "Sigmoid",
    "tanh.default": "Tanh",
    "exp.default": "Exp",
    "log.default": "Log",
    "sqrt.default": "Sqrt",
    "abs.default": "Abs",
    "neg.default": "Neg",
    "erf.default": "Erf",
    "sin.default": "Sin",
    "cos.default": "Cos",
    "tan.default": "Tan",
    "atan.default": "Atan",
    "floor.default": "Floor",
    "ceil.default": "Ceil",
    "round.default": "Round",
    "reciprocal.default": "Reciprocal",
    "sign.default": "Sign",
    "mish.default": "Mish",
    "isnan.default": "IsNaN",
    "isinf.default": "IsInf",
    "logical_not.default bitwise_not.default": "Not",
    "mul.Tensor mul.Scalar": "Mul",
    "div.Tensor div.Scalar": "Div",
    "maximum.default max.other": "Max",
    "minimum.default min.other": "Min",
    "eq.Tensor eq.Scalar": "Equal",
    "gt.Tensor gt.Scalar": "Greater",
    "ge.Tensor ge.Scalar": "GreaterOrEqual",
    "lt.Tensor lt.Scalar": "Less",
    "le.Tensor le.Scalar": "LessOrEqual",
    "pow.Tensor_Scalar pow.Tensor_Tensor pow.Scalar": "Pow",
    "logical_and.default bitwise_and.Tensor __and__.Tensor": "And",
    "logical_or.default bitwise_or.Tensor __or__.Tensor": "Or",
    "where.self where.ScalarOther": "Where",
}
for _names, _onnx in _SIMPLE.items():
    add(_names, Pointwise(), onnx=_onnx)

# these need more than their arguments in order: alpha, limits, or a formula
add("add.Tensor add.Scalar", Pointwise(), onnx="Add")
add("sub.Tensor sub.Scalar", Pointwise(), onnx="Sub")
add("rsub.Scalar rsub.Tensor", Pointwise(), onnx="Rsub")
add("relu6.default hardtanh.default clamp.default clamp_min.default clamp_max.default", Pointwise(), onnx="Clip")
add("leaky_relu.default", Pointwise(), onnx="LeakyRelu")
add("elu.default", Pointwise(), onnx="Elu")
add("selu.default", Pointwise(), onnx="Selu")
add("gelu.default", Pointwise(), onnx="Gelu")
add("silu.default", Pointwise(), onnx="Silu")
add("hardswish.default", Pointwise(), onnx="HardSwish")
add("hardsigmoid.default", Pointwise(), onnx="HardSigmoid")
add("softplus.default", Pointwise(), onnx="Softplus")
add("square.default", Pointwise(), onnx="Square")
add("rsqrt.default", Pointwise(), onnx="Rsqrt")
add("ne.Tensor ne.Scalar", Pointwise(), onnx="NotEqual")
add("masked_fill.Scalar masked_fill.Tensor", Pointwise(), onnx="MaskedFill")
add("to.dtype to.dtype_layout to.device to.other _to_copy.default type_as.default", Pointwise(), onnx="Cast")
add("floor_divide.default div.Tensor_mode div.Scalar_mode", Pointwise(), onnx="Modulo")
add("remainder.Scalar remainder.Tensor fmod.Scalar fmod.Tensor", Pointwise(), onnx="Modulo")
add("zeros_like.default ones_like.default full_like.default", Pointwise(), onnx="Full")
add("copy.default", Pointwise(), onnx="Copy")
add("fill.Scalar fill.Tensor zero.default", Pointwise(), onnx="Full")
add("clamp.Tensor clamp_min.Tensor clamp_max.Tensor", Pointwise(), onnx="Clamp")
add("addcmul.default addcdiv.default", Pointwise(), onnx="AddProduct")
add("lerp.Scalar lerp.Tensor", Pointwise(), onnx="Lerp")
add("log1p.default expm1.default log2.default log_sigmoid.default logit.default", Pointwise(), onnx="Logarithms")
add("celu.default", Pointwise(), onnx="Celu")
add("softshrink.default hardshrink.default threshold.default", Pointwise(), onnx="Threshold")
add("logical_xor.default bitwise_xor.Tensor __xor__.Tensor", Pointwise(), onnx="Xor")
add("dropout.default", Pointwise(), onnx="Identity", training="train")
add("feature_dropout.default", Pointwise(), onnx="Identity", training="train")
add("alpha_dropout.default", Pointwise(), onnx="Identity", training="train")

add("arange.default arange.start arange.start_step", Factory(), onnx="Range")
add("zeros.default ones.default empty.memory_format full.default", Factory(sizes=("size",)), onnx="Full")
add("new_zeros.default new_ones.default new_full.default new_empty.default", Factory(sizes=("size",)), onnx="Full")
add("scalar_tensor.default eye.default eye.m linspace.default", Factory(), onnx="Constant")
