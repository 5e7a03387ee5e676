#include "gossamer_kernels.h"

#include <math.h>
#include <string.h>

static inline int8_t clamped(int32_t value) {
  return (int8_t)(value < -128 ? -128 : value > 127 ? 127 : value);
}

#ifndef GS_MVE
void gs_add_s8(int count, int8_t a_zero, int8_t b_zero, int8_t out_zero, gs_factor a_factor, gs_factor b_factor, gs_factor factor,
               const int8_t *a, const int8_t *b, int8_t *out) {
  for (int i = 0; i < count; ++i) {
    int32_t sum = gs_scaled((a[i] - a_zero) * (1 << 20), a_factor) + gs_scaled((b[i] - b_zero) * (1 << 20), b_factor);
    out[i] = clamped(gs_scaled(sum, factor) + out_zero);
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
#endif

void gs_mul_s8(int count, int repeat, int8_t a_zero, int8_t b_zero, int8_t out_zero, gs_factor factor, const int8_t *a,
               const int8_t *b, int8_t *out) {
  for (int i = 0; i < count; ++i) {
    out[i] = clamped(gs_scaled((a[i] - a_zero) * (b[i % repeat] - b_zero), factor) + out_zero);
  }
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
#ifndef GS_MVE
MAX_POOL(gs_max_pool_s8, int8_t, INT8_MIN)
#endif
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
