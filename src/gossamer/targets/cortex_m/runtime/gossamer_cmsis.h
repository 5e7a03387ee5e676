/* Calls of CMSIS-NN with the sizes that our own kernels take. Each returns 0, or 1 where the working memory does not suffice. */
#ifndef GOSSAMER_CMSIS_H
#define GOSSAMER_CMSIS_H
#include "arm_nnfunctions.h"
#include "gossamer_kernels.h"

static inline int gs_cmsis_conv(const gs_window *s, int8_t in_zero, int8_t out_zero, const int8_t *in, const int8_t *weight,
                                const int32_t *bias, const int32_t *multiplier, const int32_t *shift, void *scratch, int bytes,
                                int8_t *out) {
  const cmsis_nn_conv_params params = {
      -in_zero, out_zero, {s->stride_w, s->stride_h}, {s->pad_w, s->pad_h}, {s->dilation_w, s->dilation_h}, {-128, 127}};
  const cmsis_nn_per_channel_quant_params factors = {(int32_t *)multiplier, (int32_t *)shift};
  const cmsis_nn_dims in_dims = {1, s->in_h, s->in_w, s->in_c}, out_dims = {1, s->out_h, s->out_w, s->out_c};
  const cmsis_nn_dims kernel = {s->out_c, s->kernel_h, s->kernel_w, s->in_c}, channels = {1, 1, 1, s->out_c};
  const cmsis_nn_context context = {scratch, bytes};
  if (arm_convolve_wrapper_s8_get_buffer_size(&params, &in_dims, &kernel, &out_dims) > bytes) return 1;
  return arm_convolve_wrapper_s8(&context, &params, &factors, &in_dims, in, &kernel, weight, &channels, bias, &out_dims, out) !=
         ARM_CMSIS_NN_SUCCESS;
}

/* CMSIS-NN 4.0.0 has no fully connected kernel with a factor for each output: cores with vectors take a 1x1 convolution, others ours. */
static inline int gs_cmsis_linear(int rows, int inputs, int outputs, const gs_layer *layer, const int32_t *shift, const int8_t *in,
                                  int8_t *out) {
#if defined(ARM_MATH_MVEI)
  const gs_window size = {1, rows, inputs, 1, rows, outputs, 1, 1, 1, 1, 1, 1, 0, 0};
  return gs_cmsis_conv(&size, (int8_t)layer->in_zero, (int8_t)layer->out_zero, in, layer->weight, layer->bias, layer->multiplier, shift,
                       0, 0, out);
#else
  (void)shift;
  gs_linear_s8(rows, inputs, outputs, layer, in, out);
  return 0;
#endif
}

static inline int gs_cmsis_depthwise(const gs_window *s, int8_t in_zero, int8_t out_zero, const int8_t *in, const int8_t *weight,
                                     const int32_t *bias, const int32_t *multiplier, const int32_t *shift, void *scratch, int bytes,
                                     int8_t *out) {
  const cmsis_nn_dw_conv_params params = {-in_zero,
                                          out_zero,
                                          s->out_c / s->in_c,
                                          {s->stride_w, s->stride_h},
                                          {s->pad_w, s->pad_h},
                                          {s->dilation_w, s->dilation_h},
                                          {-128, 127}};
  const cmsis_nn_per_channel_quant_params factors = {(int32_t *)multiplier, (int32_t *)shift};
  const cmsis_nn_dims in_dims = {1, s->in_h, s->in_w, s->in_c}, out_dims = {1, s->out_h, s->out_w, s->out_c};
  const cmsis_nn_dims kernel = {1, s->kernel_h, s->kernel_w, s->out_c}, channels = {1, 1, 1, s->out_c};
  const cmsis_nn_context context = {scratch, bytes};
  if (arm_depthwise_conv_wrapper_s8_get_buffer_size(&params, &in_dims, &kernel, &out_dims) > bytes) return 1;
  return arm_depthwise_conv_wrapper_s8(&context, &params, &factors, &in_dims, in, &kernel, weight, &channels, bias, &out_dims,
                                       out) != ARM_CMSIS_NN_SUCCESS;
}

static inline void gs_cmsis_max_pool(const gs_window *s, const int8_t *in, int8_t *out) {
  const cmsis_nn_pool_params params = {{s->stride_w, s->stride_h}, {s->pad_w, s->pad_h}, {-128, 127}};
  const cmsis_nn_dims in_dims = {1, s->in_h, s->in_w, s->in_c}, out_dims = {1, s->out_h, s->out_w, s->out_c};
  const cmsis_nn_dims kernel = {1, s->kernel_h, s->kernel_w, 1};
  const cmsis_nn_context context = {0, 0};
  arm_max_pool_s8(&context, &params, &in_dims, in, &kernel, &out_dims, out);
}
#endif
