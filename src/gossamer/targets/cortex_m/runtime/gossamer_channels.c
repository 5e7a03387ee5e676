/* Kernels of codes and floats with a number for each channel, or for each row. Count positions; a channel's number serves `inner` positions in a row. */
#include <math.h>

#include "gossamer_kernels.h"

static inline int8_t clamped(int32_t value) {
  return (int8_t)(value < -128 ? -128 : value > 127 ? 127 : value);
}

void gs_prelu_s8(int count, int inner, int channels, int in_zero, int out_zero, const gs_factor factors[2], const int8_t *slopes,
                 const int8_t *in, int8_t *out) {
  for (int start = 0, channel = 0; start < count; start += inner, channel = channel + 1 < channels ? channel + 1 : 0) {
    for (int i = start; i < start + inner; ++i) {
      int32_t away = in[i] - in_zero;
      int32_t value = away >= 0 ? gs_scaled(away, factors[0]) : gs_scaled(away * slopes[channel], factors[1]);
      out[i] = clamped(value + out_zero);
    }
  }
}

void gs_prelu_f32(int count, int inner, int channels, const float *slopes, const float *in, float *out) {
  for (int start = 0, channel = 0; start < count; start += inner, channel = channel + 1 < channels ? channel + 1 : 0) {
    for (int i = start; i < start + inner; ++i) out[i] = in[i] >= 0.0f ? in[i] : slopes[channel] * in[i];
  }
}

float gs_rsqrt(float x) { return 1.0f / sqrtf(x); }

void gs_scale_rows_f32(int rows, int columns, const float *in, const float *factors, float *out) {
  for (int row = 0; row < rows; ++row) {
    for (int i = 0; i < columns; ++i) *out++ = *in++ * factors[row];
  }
}

void gs_shift_rows_f32(int rows, int columns, const float *in, const float *shifts, float *out) {
  for (int row = 0; row < rows; ++row) {
    for (int i = 0; i < columns; ++i) *out++ = *in++ - shifts[row];
  }
}

void gs_mean_between_f32(int outer, int count, int inner, const float *in, float *out) {
  for (; outer > 0; --outer, in += count * inner, out += inner) {
    for (int i = 0; i < inner; ++i) {
      float sum = 0.0f;
      for (int k = 0; k < count; ++k) sum += in[k * inner + i];
      out[i] = sum / (float)count;
    }
  }
}
