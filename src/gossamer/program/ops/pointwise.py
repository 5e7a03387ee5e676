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
    "floor.default": "Floor",
    "ceil.default": "Ceil",
    "round.default": "Round",
    "reciprocal.default": "Reciprocal",
    "sign.default": "Sign",
    "mish.default": "Mish",
    "logical_not.default bitwise_not.default": "Not",
    "mul.Tensor mul.Scalar": "Mul",
    "div.Tensor div.Scalar": "Div",
    "maximum.default": "Max",
    "minimum.default": "Min",
    "eq.Tensor eq.Scalar": "Equal",
    "gt.Tensor gt.Scalar": "Greater",
    "ge.Tensor ge.Scalar": "GreaterOrEqual",
    "lt.Tensor lt.Scalar": "Less",
    "le.Tensor le.Scalar": "LessOrEqual",
    "pow.Tensor_Scalar pow.Tensor_Tensor": "Pow",
    "logical_and.default bitwise_and.Tensor": "And",
    "logical_or.default bitwise_or.Tensor": "Or",
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
add("masked_fill.Scalar", Pointwise(), onnx="MaskedFill")
add("to.dtype to.dtype_layout to.device to.other _to_copy.default type_as.default", Pointwise(), onnx="Cast")
add("floor_divide.default div.Tensor_mode remainder.Scalar remainder.Tensor", Pointwise())
add("zeros_like.default ones_like.default full_like.default", Pointwise())
add("dropout.default", Pointwise(), onnx="Identity", training="train")
add("feature_dropout.default", Pointwise(), onnx="Identity", training="train")
add("alpha_dropout.default", Pointwise(), onnx="Identity", training="train")

add("arange.default arange.start arange.start_step", Factory())
add("zeros.default ones.default empty.memory_format full.default", Factory(sizes=("size",)))
add("new_zeros.default new_ones.default new_full.default new_empty.default", Factory(sizes=("size",)))
add("scalar_tensor.default eye.default linspace.default", Factory())
