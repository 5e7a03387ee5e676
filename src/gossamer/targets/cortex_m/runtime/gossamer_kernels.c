#include "gossamer_kernels.h"

#include <math.h>
#include <string.h>

#if defined(__ARM_FEATURE_DSP) && __ARM_FEATURE_DSP && !(defined(__ARM_FEATURE_MVE) && __ARM_FEATURE_MVE)
#include <arm_acle.h>
#define GS_DSP 1
static inline uint32_t rotated(uint32_t bytes) { return (bytes >> 8) | (bytes << 24); }
#endif

/* sum + the products of (a - zero) and w: on cores with the DSP extension two at a time. */
static inline int32_t dot(const int8_t *a, const int8_t *w, int count, int32_t zero, int32_t sum) {
#ifdef GS_DSP
  int16x2_t offset = (int16x2_t)(((uint32_t)-zero & 0xFFFFu) | ((uint32_t)-zero << 16));
  for (; count >= 4; count -= 4, a += 4, w += 4) {
    uint32_t codes, weights;
    memcpy(&codes, a, 4);
    memcpy(&weights, w, 4);
    sum = __smlad(__sxtab16(offset, (int8x4_t)codes), __sxtb16((int8x4_t)weights), sum);
    sum = __smlad(__sxtab16(offset, (int8x4_t)rotated(codes)), __sxtb16((int8x4_t)rotated(weights)), sum);
  }
#endif
  for (int i = 0; i < count; ++i) sum += (a[i] - zero) * w[i];
  return sum;
}

static inline int8_t clamped(int32_t value) {
  return (int8_t)(value < -128 ? -128 : value > 127 ? 127 : value);
}

/* One sum of a convolution. Where a kernel's row lies in one piece, it is one product of vectors, cut off at the image's ends. */
static inline int32_t window_sum(const gs_window *s, int y, int x, int32_t zero, const int8_t *in, const int8_t *w, int32_t sum) {
  int left = x * s->stride_w - s->pad_w, row = s->kernel_w * s->in_c;
  for (int ky = 0; ky < s->kernel_h; ++ky, w += row) {
    int iy = y * s->stride_h - s->pad_h + ky * s->dilation_h;
    if (iy < 0 || iy >= s->in_h) continue;
    const int8_t *line = in + iy * s->in_w * s->in_c;
    if (s->dilation_w == 1) {
      int from = left < 0 ? -left : 0, to = left + s->kernel_w > s->in_w ? s->in_w - left : s->kernel_w;
      sum = dot(line + (left + from) * s->in_c, w + from * s->in_c, (to - from) * s->in_c, zero, sum);
      continue;
    }
    for (int kx = 0; kx < s->kernel_w; ++kx) {
      int ix = left + kx * s->dilation_w;
      if (ix >= 0 && ix < s->in_w) sum = dot(line + ix * s->in_c, w + kx * s->in_c, s->in_c, zero, sum);
    }
  }
  return sum;
}

void gs_conv_s8(const gs_window *s, int8_t in_zero, int8_t out_zero, const int8_t *in, const int8_t *weight, const int32_t *bias,
                const gs_factor *factor, int8_t *out) {
  int size = s->kernel_h * s->kernel_w * s->in_c;
  for (int y = 0; y < s->out_h; ++y) {
    for (int x = 0; x < s->out_w; ++x) {
      for (int o = 0; o < s->out_c; ++o) {
        int32_t sum = window_sum(s, y, x, in_zero, in, weight + o * size, bias[o]);
        *out++ = clamped(gs_scaled(sum, factor[o]) + out_zero);
      }
    }
  }
}

/* Sums of `width` neighbouring channels at one position, one channel each. */
static void depthwise_run(const gs_window *s, int y, int x, int first, int width, int8_t in_zero, const int8_t *in, const int8_t *weight,
                          int32_t *sums) {
  for (int ky = 0; ky < s->kernel_h; ++ky) {
    int iy = y * s->stride_h - s->pad_h + ky * s->dilation_h;
    if (iy < 0 || iy >= s->in_h) continue;
    for (int kx = 0; kx < s->kernel_w; ++kx) {
      int ix = x * s->stride_w - s->pad_w + kx * s->dilation_w;
      if (ix < 0 || ix >= s->in_w) continue;
      const int8_t *codes = in + (iy * s->in_w + ix) * s->in_c + first;
      const int8_t *w = weight + (ky * s->kernel_w + kx) * s->out_c + first;
      for (int i = 0; i < width; ++i) sums[i] += (codes[i] - in_zero) * w[i];
    }
  }
}

/* The same where several results read one channel. */
static void depthwise_shared(const gs_window *s, int y, int x, int first, int width, int8_t in_zero, const int8_t *in,
                             const int8_t *weight, int32_t *sums) {
  int multiple = s->out_c / s->in_c;
  for (int ky = 0; ky < s->kernel_h; ++ky) {
    int iy = y * s->stride_h - s->pad_h + ky * s->dilation_h;
    if (iy < 0 || iy >= s->in_h) continue;
    for (int kx = 0; kx < s->kernel_w; ++kx) {
      int ix = x * s->stride_w - s->pad_w + kx * s->dilation_w;
      if (ix < 0 || ix >= s->in_w) continue;
      const int8_t *codes = in + (iy * s->in_w + ix) * s->in_c;
      const int8_t *w = weight + (ky * s->kernel_w + kx) * s->out_c + first;
      for (int i = 0; i < width; ++i) sums[i] += (codes[(first + i) / multiple] - in_zero) * w[i];
    }
  }
}

void gs_depthwise_s8(const gs_window *s, int8_t in_zero, int8_t out_zero, const int8_t *in, const int8_t *weight, const int32_t *bias,
                     const gs_factor *factor, int8_t *out) {
  enum { WIDTH = 16 };
  int multiple = s->out_c / s->in_c;
  for (int y = 0; y < s->out_h; ++y) {
    for (int x = 0; x < s->out_w; ++x) {
      for (int first = 0; first < s->out_c; first += WIDTH) {
        int32_t sums[WIDTH];
        int width = s->out_c - first < WIDTH ? s->out_c - first : WIDTH;
        for (int i = 0; i < width; ++i) sums[i] = bias[first + i];
        if (multiple == 1) {
          depthwise_run(s, y, x, first, width, in_zero, in, weight, sums);
        } else {
          depthwise_shared(s, y, x, first, width, in_zero, in, weight, sums);
        }
        for (int i = 0; i < width; ++i) *out++ = clamped(gs_scaled(sums[i], factor[first + i]) + out_zero);
      }
    }
  }
}

void gs_linear_s8(int rows, int inputs, int outputs, int8_t in_zero, int8_t out_zero, const int8_t *in, const int8_t *weight,
                  const int32_t *bias, const gs_factor *factor, int8_t *out) {
  for (int row = 0; row < rows; ++row, in += inputs) {
    const int8_t *w = weight;
    for (int o = 0; o < outputs; ++o, w += inputs) {
      int32_t sum = dot(in, w, inputs, in_zero, bias[o]);
      *out++ = clamped(gs_scaled(sum, factor[o]) + out_zero);
    }
  }
}

void gs_add_s8(int count, int8_t a_zero, int8_t b_zero, int8_t out_zero, gs_factor a_factor, gs_factor b_factor, gs_factor factor,
               const int8_t *a, const int8_t *b, int8_t *out) {
  for (int i = 0; i < count; ++i) {
    int32_t sum = gs_scaled((a[i] - a_zero) * (1 << 20), a_factor) + gs_scaled((b[i] - b_zero) * (1 << 20), b_factor);
    out[i] = clamped(gs_scaled(sum, factor) + out_zero);
  }
}

void gs_mul_s8(int count, int repeat, int8_t a_zero, int8_t b_zero, int8_t out_zero, gs_factor factor, const int8_t *a,
               const int8_t *b, int8_t *out) {
  for (int i = 0; i < count; ++i) {
    out[i] = clamped(gs_scaled((a[i] - a_zero) * (b[i % repeat] - b_zero), factor) + out_zero);
  }
}

void gs_mean_s8(int positions, int channels, int8_t in_zero, int8_t out_zero, gs_factor factor, const int8_t *in, int8_t *out) {
  for (int c = 0; c < channels; ++c) {
    int32_t sum = 0;
    for (int i = 0; i < positions; ++i) sum += in[i * channels + c] - in_zero;
    out[c] = clamped(gs_scaled(sum, factor) + out_zero);
  }
}

void gs_convert_s8(int count, int8_t in_zero, int8_t out_zero, gs_factor factor, const int8_t *in, int8_t *out) {
  for (int i = 0; i < count; ++i) out[i] = clamped(gs_scaled(in[i] - in_zero, factor) + out_zero);
}

void gs_conv_f32(const gs_window *s, const float *in, const float *weight, const float *bias, float *out) {
  for (int y = 0; y < s->out_h; ++y) {
    for (int x = 0; x < s->out_w; ++x) {
      const float *w = weight;
      for (int o = 0; o < s->out_c; ++o) {
        float sum = bias[o];
        for (int ky = 0; ky < s->kernel_h; ++ky) {
          int iy = y * s->stride_h - s->pad_h + ky * s->dilation_h;
          for (int kx = 0; kx < s->kernel_w; ++kx, w += s->in_c) {
            int ix = x * s->stride_w - s->pad_w + kx * s->dilation_w;
            if (iy < 0 || iy >= s->in_h || ix < 0 || ix >= s->in_w) continue;
            const float *row = in + (iy * s->in_w + ix) * s->in_c;
            for (int c = 0; c < s->in_c; ++c) sum += row[c] * w[c];
          }
        }
        *out++ = sum;
      }
    }
  }
}

void gs_depthwise_f32(const gs_window *s, const float *in, const float *weight, const float *bias, float *out) {
  int multiple = s->out_c / s->in_c;
  for (int y = 0; y < s->out_h; ++y) {
    for (int x = 0; x < s->out_w; ++x) {
      for (int o = 0; o < s->out_c; ++o) {
        float sum = bias[o];
        for (int ky = 0; ky < s->kernel_h; ++ky) {
          int iy = y * s->stride_h - s->pad_h + ky * s->dilation_h;
          if (iy < 0 || iy >= s->in_h) continue;
          for (int kx = 0; kx < s->kernel_w; ++kx) {
            int ix = x * s->stride_w - s->pad_w + kx * s->dilation_w;
            if (ix < 0 || ix >= s->in_w) continue;
            sum += in[(iy * s->in_w + ix) * s->in_c + o / multiple] * weight[(ky * s->kernel_w + kx) * s->out_c + o];
          }
        }
        *out++ = sum;
      }
    }
  }
}

void gs_linear_f32(int rows, int inputs, int outputs, const float *in, const float *weight, const float *bias, float *out) {
  for (int row = 0; row < rows; ++row, in += inputs) {
    const float *w = weight;
    for (int o = 0; o < outputs; ++o, w += inputs) {
      float sum = bias[o];
      for (int c = 0; c < inputs; ++c) sum += in[c] * w[c];
      *out++ = sum;
    }
  }
}

void gs_add_f32(int count, int repeat, const float *a, const float *b, float *out) {
  for (int i = 0; i < count; ++i) out[i] = a[i] + b[i % repeat];
}

void gs_mul_f32(int count, int repeat, const float *a, const float *b, float *out) {
  for (int i = 0; i < count; ++i) out[i] = a[i] * b[i % repeat];
}

/* The largest number of each window; positions outside the image do not count. */
#define MAX_POOL(NAME, TYPE, LOWEST)                                                         \
  void NAME(const gs_window *s, const TYPE *in, TYPE *out) {                                 \
    for (int y = 0; y < s->out_h; ++y) {                                                     \
      for (int x = 0; x < s->out_w; ++x) {                                                   \
        for (int c = 0; c < s->in_c; ++c) {                                                  \
          TYPE best = LOWEST;                                                                \
          for (int ky = 0; ky < s->kernel_h; ++ky) {                                         \
            int iy = y * s->stride_h - s->pad_h + ky;                                        \
            if (iy < 0 || iy >= s->in_h) continue;                                           \
            for (int kx = 0; kx < s->kernel_w; ++kx) {                                       \
              int ix = x * s->stride_w - s->pad_w + kx;                                      \
              if (ix < 0 || ix >= s->in_w) continue;                                         \
              TYPE value = in[(iy * s->in_w + ix) * s->in_c + c];                            \
              best = value > best ? value : best;                                            \
            }                                                                                \
          }                                                                                  \
          *out++ = best;                                                                     \
        }                                                                                    \
      }                                                                                      \
    }                                                                                        \
  }
MAX_POOL(gs_max_pool_s8, int8_t, INT8_MIN)
MAX_POOL(gs_max_pool_f32, float, -INFINITY)

void gs_mean_f32(int positions, int channels, const float *in, float *out) {
  for (int c = 0; c < channels; ++c) {
    float sum = 0;
    for (int i = 0; i < positions; ++i) sum += in[i * channels + c];
    out[c] = sum / (float)positions;
  }
}

void gs_clip_f32(int count, float low, float high, const float *in, float *out) {
  for (int i = 0; i < count; ++i) out[i] = in[i] < low ? low : in[i] > high ? high : in[i];
}

void gs_sigmoid_f32(int count, const float *in, float *out) {
  for (int i = 0; i < count; ++i) out[i] = 1.0f / (1.0f + expf(-in[i]));
}

void gs_quantize_f32(int count, float scale, int8_t zero, const float *in, int8_t *out) {
  for (int i = 0; i < count; ++i) {
    float code = roundf(in[i] / scale) + (float)zero;
    out[i] = (int8_t)(code < -128.0f ? -128.0f : code > 127.0f ? 127.0f : code);
  }
}

void gs_dequantize_s8(int count, float scale, int8_t zero, const int8_t *in, float *out) {
  for (int i = 0; i < count; ++i) out[i] = (float)(in[i] - zero) * scale;
}

void gs_pad(int in_h, int in_w, int channels, int before_h, int before_w, int out_h, int out_w, int bytes, const void *filler,
            const void *in, void *out) {
  char *to = out;
  int pixel = channels * bytes;
  for (int i = 0; i < out_h * out_w * channels; ++i) memcpy(to + i * bytes, filler, (size_t)bytes);
  for (int y = 0; y < in_h; ++y) {
    memcpy(to + ((y + before_h) * out_w + before_w) * pixel, (const char *)in + y * in_w * pixel, (size_t)(in_w * pixel));
  }
}

void gs_join(int runs, int length, int step, const void *in, void *out) {
  for (int run = 0; run < runs; ++run) memcpy((char *)out + run * step, (const char *)in + run * length, (size_t)length);
}
