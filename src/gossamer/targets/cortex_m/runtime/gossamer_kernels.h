/* Kernels for networks of 8-bit codes and of floats. No allocation, no global state. */
#ifndef GOSSAMER_KERNELS_H
#define GOSSAMER_KERNELS_H
#include <stdint.h>

/* Cores with vectors (Helium, MVE) have kernels of their own in gossamer_*_mve.c, which compute the same bits as those in plain C. */
#if defined(__ARM_FEATURE_MVE) && (__ARM_FEATURE_MVE & 1) && defined(__GNUC__) && defined(__OPTIMIZE__)
#define GS_MVE 1
#endif

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

/* out[row][column] = the sum over k of a[row * a_row + k * a_inner] b[k * b_inner + column * b_column], `batches` times. */
typedef struct {
  int batches, rows, inner, columns, a_batch, b_batch, a_row, a_inner, b_inner, b_column;
} gs_product;

/* value / 2^bits, halves away from zero. */
static inline int32_t gs_scaled_by_power(int32_t value, int bits) {
  if (bits == 0) return value;
  if (bits > 31) return 0;
  int32_t mask = (int32_t)((INT64_C(1) << bits) - 1);
  int32_t threshold = (mask >> 1) + (value < 0);
  return (value >> bits) + ((value & mask) > threshold);
}

/* value * multiplier * 2^(shift - 31), rounded to 31 bits and after the shift again, halves away from zero. */
static inline int32_t gs_scaled(int32_t value, gs_factor factor) {
  if (factor.shift > 0) value = (int32_t)((uint32_t)value << factor.shift);
  int32_t high = (int32_t)(((int64_t)value * factor.multiplier + (INT64_C(1) << 30)) >> 31); /* exact halves below zero go up */
  if (factor.shift >= 0) return high;
  if (factor.shift < -31) return 0;
  return (((high + (high >> 31)) >> (-factor.shift - 1)) + 1) >> 1; /* and here away from zero; 31 bits leave room for the 1 */
}

/* A layer of codes: its numbers by output channel. Weights are -127 to 127; value * multiplier * 2^(shift - 31) makes a result of a sum. */
typedef struct {
  const int8_t *weight;
  const int32_t *bias, *multiplier;
  const int8_t *shift;
  int in_zero, out_zero;
} gs_layer;

/* Part of a kernel that lies on the image: from the first to behind the last; nothing where `to` is not behind `from`. */
typedef struct {
  int from, to;
} gs_span;
static inline gs_span gs_on_image(int start, int kernel, int dilation, int size) {
  if (start >= 0 && start + (kernel - 1) * dilation < size) return (gs_span){0, kernel};
  gs_span found = {start < 0 ? (-start + dilation - 1) / dilation : 0, kernel};
  if (start + (kernel - 1) * dilation >= size) found.to = start >= size ? 0 : (size - start + dilation - 1) / dilation;
  return found;
}

void gs_conv_s8(const gs_window *size, const gs_layer *layer, const int8_t *in, int8_t *out);
void gs_depthwise_s8(const gs_window *size, const gs_layer *layer, const int8_t *in, int8_t *out);
void gs_linear_s8(int rows, int inputs, int outputs, const gs_layer *layer, const int8_t *in, int8_t *out);
void gs_add_s8(int count, int8_t a_zero, int8_t b_zero, int8_t out_zero, gs_factor a_factor, gs_factor b_factor, gs_factor factor,
               const int8_t *a, const int8_t *b, int8_t *out);
/* b has one number for each of the last `repeat` positions of a, or as many as a where repeat == count. */
void gs_mul_s8(int count, int repeat, int8_t a_zero, int8_t b_zero, int8_t out_zero, gs_factor factor, const int8_t *a,
               const int8_t *b, int8_t *out);
void gs_max_pool_s8(const gs_window *size, const int8_t *in, int8_t *out);
void gs_mean_s8(int positions, int channels, int8_t in_zero, int8_t out_zero, gs_factor factor, const int8_t *in, int8_t *out);
/* table: the result of each code, the lowest first. */
void gs_lookup_s8(int count, const int8_t *table, const int8_t *in, int8_t *out);
/* a + sign * b; each operand repeats after so many numbers. zeros, factors: of a, of b, of the result. */
void gs_combine_s8(int count, int a_repeat, int b_repeat, int sign, const int8_t zeros[3], const gs_factor factors[3], const int8_t *a,
                   const int8_t *b, int8_t *out);
/* Means of what lies inside of the image; in and out have the same codes. */
void gs_average_pool_s8(const gs_window *size, const int8_t *in, int8_t *out);
void gs_matmul_s8(const gs_product *size, const int8_t zeros[3], gs_factor factor, const int8_t *a, const int8_t *b, int8_t *out);
/* Results have the scale 1/256 and begin at -128; codes that are `least` below a row's largest count nothing. */
void gs_softmax_s8(int rows, int columns, gs_factor factor, int least, const int8_t *in, int8_t *out);
/* rows, columns: for each of out the two pixels of in around it, and the share of the second in steps of 1/1024. */
void gs_resize_bilinear_s8(int out_h, int out_w, int in_w, int channels, const int16_t *rows, const int16_t *columns, const int8_t *in,
                           int8_t *out);
/* rows, columns: for each of out the pixel of in, which has `bytes` bytes. */
void gs_pick(int out_h, int out_w, int in_w, int bytes, const int16_t *rows, const int16_t *columns, const void *in, void *out);
/* out is filled in order, from numbers that lie `steps` bytes apart along each axis. */
void gs_move(const int sizes[5], const int steps[5], int bytes, const void *in, void *out);
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
float gs_hard_swish(float x);
float gs_elu(float x);
float gs_gelu(float x);
float gs_gelu_tanh(float x);
void gs_apply_f32(int count, float (*function)(float), const float *in, float *out);
void gs_leaky_relu_f32(int count, float slope, const float *in, float *out);
void gs_subtract_f32(int count, int a_repeat, int b_repeat, const float *a, const float *b, float *out);
void gs_average_pool_f32(const gs_window *size, const float *in, float *out);
void gs_softmax_f32(int rows, int columns, const float *in, float *out);
void gs_matmul_f32(const gs_product *size, const float *a, const float *b, float *out);
/* rows, columns: for each of out the two pixels of in around it; down, across: the share of the second. */
void gs_resize_bilinear_f32(int out_h, int out_w, int in_w, int channels, const int16_t *rows, const int16_t *columns, const float *down,
                            const float *across, const float *in, float *out);
void gs_quantize_f32(int count, float scale, int8_t zero, const float *in, int8_t *out);
void gs_dequantize_s8(int count, float scale, int8_t zero, const int8_t *in, float *out);

/* Moves whole numbers of `bytes` bytes. */
void gs_pad(int in_h, int in_w, int channels, int before_h, int before_w, int out_h, int out_w, int bytes, const void *filler,
            const void *in, void *out);
/* A number for each channel, which serves `inner` positions in a row. factors: of positive codes, of negative ones times a slope. */
void gs_prelu_s8(int count, int inner, int channels, int in_zero, int out_zero, const gs_factor factors[2], const int8_t *slopes,
                 const int8_t *in, int8_t *out);
void gs_prelu_f32(int count, int inner, int channels, const float *slopes, const float *in, float *out);
float gs_rsqrt(float x);
/* Rows times a factor, or less a number, of their own. */
void gs_scale_rows_f32(int rows, int columns, const float *in, const float *factors, float *out);
void gs_shift_rows_f32(int rows, int columns, const float *in, const float *shifts, float *out);
/* Means over the middle one of three axes. */
void gs_mean_between_f32(int outer, int count, int inner, const float *in, float *out);
/* One part of a join: `runs` runs of `length` bytes, to `out` in steps of `step` bytes. */
void gs_join(int runs, int length, int step, const void *in, void *out);

#ifdef __cplusplus
}
#endif
#endif
