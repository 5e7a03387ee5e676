/* Kernels for networks of 8-bit codes and of floats. No allocation, no global state. */
#ifndef GOSSAMER_KERNELS_H
#define GOSSAMER_KERNELS_H
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Sizes of a convolution or pool; images are stored as height, width, channels. */
typedef struct {
  int in_h, in_w, in_c, out_h, out_w, out_c;
  int kernel_h, kernel_w, stride_h, stride_w, dilation_h, dilation_w, pad_h, pad_w;
} gs_window;

/* One factor as a whole number of 31 bits and a shift: value * multiplier * 2^(shift - 31). */
typedef struct {
  int32_t multiplier;
  int32_t shift;
} gs_factor;

void gs_conv_s8(const gs_window *size, int8_t in_zero, int8_t out_zero, const int8_t *in, const int8_t *weight,
                const int32_t *bias, const gs_factor *factor, int8_t *out);
void gs_depthwise_s8(const gs_window *size, int8_t in_zero, int8_t out_zero, const int8_t *in, const int8_t *weight,
                     const int32_t *bias, const gs_factor *factor, int8_t *out);
void gs_linear_s8(int rows, int inputs, int outputs, int8_t in_zero, int8_t out_zero, const int8_t *in, const int8_t *weight,
                  const int32_t *bias, const gs_factor *factor, int8_t *out);
void gs_add_s8(int count, int8_t a_zero, int8_t b_zero, int8_t out_zero, gs_factor a_factor, gs_factor b_factor, gs_factor factor,
               const int8_t *a, const int8_t *b, int8_t *out);
/* b has one number for each of the last `repeat` positions of a, or as many as a where repeat == count. */
void gs_mul_s8(int count, int repeat, int8_t a_zero, int8_t b_zero, int8_t out_zero, gs_factor factor, const int8_t *a,
               const int8_t *b, int8_t *out);
void gs_max_pool_s8(const gs_window *size, const int8_t *in, int8_t *out);
void gs_mean_s8(int positions, int channels, int8_t in_zero, int8_t out_zero, gs_factor factor, const int8_t *in, int8_t *out);
void gs_convert_s8(int count, int8_t in_zero, int8_t out_zero, gs_factor factor, const int8_t *in, int8_t *out);

void gs_conv_f32(const gs_window *size, const float *in, const float *weight, const float *bias, float *out);
void gs_depthwise_f32(const gs_window *size, const float *in, const float *weight, const float *bias, float *out);
void gs_linear_f32(int rows, int inputs, int outputs, const float *in, const float *weight, const float *bias, float *out);
void gs_add_f32(int count, int repeat, const float *a, const float *b, float *out);
void gs_mul_f32(int count, int repeat, const float *a, const float *b, float *out);
void gs_max_pool_f32(const gs_window *size, const float *in, float *out);
void gs_mean_f32(int positions, int channels, const float *in, float *out);
void gs_clip_f32(int count, float low, float high, const float *in, float *out);
void gs_sigmoid_f32(int count, const float *in, float *out);
void gs_quantize_f32(int count, float scale, int8_t zero, const float *in, int8_t *out);
void gs_dequantize_s8(int count, float scale, int8_t zero, const int8_t *in, float *out);

/* Moves whole numbers of `bytes` bytes. */
void gs_pad(int in_h, int in_w, int channels, int before_h, int before_w, int out_h, int out_w, int bytes, const void *filler,
            const void *in, void *out);
/* One part of a join: `runs` runs of `length` bytes, to `out` in steps of `step` bytes. */
void gs_join(int runs, int length, int step, const void *in, void *out);

#ifdef __cplusplus
}
#endif
#endif
