"""Rows of the ops that contract, normalize, pool or reduce."""

from gossamer.program.ops.kinds import (
    Attention,
    BatchNorm,
    ChannelScale,
    Convolution,
    Einsum,
    Embedding,
    Glu,
    Insert,
    Linear,
    MatMul,
    Mixing,
    Opaque,
    Pool,
    Recurrent,
    Reduction,
    Softmax,
    StatisticsNorm,
)
from gossamer.program.ops.table import add

add("conv1d.default conv1d.padding conv2d.default conv2d.padding conv3d.default conv3d.padding", Convolution(), onnx="Conv")
add("conv_transpose1d.default conv_transpose2d.input conv_transpose3d.input", Convolution(transposed=True), onnx="ConvTranspose")
add("linear.default", Linear(), onnx="Gemm")
add("matmul.default", MatMul(right="other"), onnx="MatMul")
add("einsum.default", Einsum(), onnx="Einsum")
add("bmm.default mm.default", MatMul(), onnx="MatMul")
add("scaled_dot_product_attention.default", Attention(), onnx="Attention", training="")
add("embedding.default", Embedding(), onnx="Gather")

add("batch_norm.default", BatchNorm(), onnx="BatchNormalization", training="training")
add("layer_norm.default", StatisticsNorm(), onnx="LayerNormalization")
add("group_norm.default", StatisticsNorm(), onnx="GroupNormalization")
add("rms_norm.default", StatisticsNorm(), onnx="RMSNormalization")
add("instance_norm.default", StatisticsNorm(), onnx="InstanceNormalization", training="use_input_stats")

add("max_pool1d.default", Pool(1), onnx="MaxPool")
add("max_pool2d.default", Pool(2), onnx="MaxPool")
add("max_pool3d.default", Pool(3), onnx="MaxPool")
add("avg_pool1d.default", Pool(1), onnx="AveragePool")
add("avg_pool2d.default", Pool(2), onnx="AveragePool")
add("avg_pool3d.default", Pool(3), onnx="AveragePool")
add("adaptive_avg_pool1d.default", Pool(1), onnx="AdaptiveAveragePool")
add("adaptive_avg_pool2d.default", Pool(2), onnx="AdaptiveAveragePool")
add("adaptive_avg_pool3d.default", Pool(3), onnx="AdaptiveAveragePool")
add("adaptive_max_pool1d.default", Pool(1), onnx="AdaptiveMaxPool")
add("adaptive_max_pool2d.default", Pool(2), onnx="AdaptiveMaxPool")
add("adaptive_max_pool3d.default", Pool(3), onnx="AdaptiveMaxPool")
add("upsample_nearest1d.vec upsample_linear1d.vec _upsample_nearest_exact1d.vec", Pool(1), onnx="Resize")
add("_upsample_nearest_exact2d.vec _upsample_bilinear2d_aa.vec _upsample_bicubic2d_aa.vec", Pool(2), onnx="Resize")
add("upsample_nearest3d.vec upsample_trilinear3d.vec _upsample_nearest_exact3d.vec", Pool(3), onnx="Resize")
add("upsample_nearest2d.vec upsample_nearest2d.default", Pool(2), onnx="Resize")
add("upsample_bilinear2d.vec upsample_bilinear2d.default", Pool(2), onnx="Resize")
add("upsample_bicubic2d.vec upsample_bicubic2d.default", Pool(2), onnx="Resize")

add("mean.dim", Reduction(), onnx="ReduceMean")
add("mean.default", Reduction(), onnx="ReduceMean")
add("sum.dim_IntList sum.default", Reduction(), onnx="ReduceSum")
add("amax.default max.dim max.default", Reduction(), onnx="ReduceMax")
add("amin.default min.dim min.default", Reduction(), onnx="ReduceMin")
add("var.correction var_mean.correction std.correction", Reduction(), onnx="Variance")
add("var.dim std.dim var_mean.dim", Reduction(), onnx="Variance")
add("linalg_vector_norm.default norm.ScalarOpt_dim", Reduction(), onnx="VectorNorm")
add("argmax.default", Reduction(), onnx="ArgMax")
add("argmin.default", Reduction(), onnx="ArgMin")
add("prod.dim_int prod.default", Reduction(), onnx="ReduceProd")
add("any.default any.dim any.dims", Reduction(), onnx="Any")
add("all.default all.dim all.dims", Reduction(), onnx="All")
add("logsumexp.default", Reduction(), onnx="LogSumExp")
add("cumsum.default", Softmax(), onnx="CumSum")
add("softmax.int _softmax.default", Softmax(), onnx="Softmax")
add("log_softmax.int", Softmax(), onnx="LogSoftmax")

add("slice_scatter.default select_scatter.default", Insert(), onnx="Insert")

add("glu.default", Glu(), onnx="Glu")
add("prelu.default", ChannelScale(), onnx="PRelu")

# they run and export; what they do to pruned channels is not known yet
add("addmm.default baddbmm.default", Opaque())  # capture takes them apart
add("triu.default tril.default", Mixing(), onnx="Trilu")
add("grid_sampler.default", Mixing(), onnx="GridSample")
add("topk.default", Mixing(), onnx="TopK")
add("one_hot.default", Mixing(), onnx="OneHot")
add("col2im.default", Mixing(), onnx="Col2Im")
add("lstm.input", Recurrent(), onnx="LSTM", training="train")
add("gru.input", Recurrent(), onnx="GRU", training="train")
add("rnn_tanh.input rnn_relu.input", Recurrent(), onnx="RNN", training="train")
add("diff.default", Mixing(), onnx="Difference")
add("_weight_norm.default", Mixing(), onnx="WeightNorm")
