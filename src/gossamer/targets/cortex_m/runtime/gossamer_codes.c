/* Kernels of codes beside layers: functions, pools, softmax, products, resizing, moving. Bit for bit as the reference kernels of LiteRT for
 * Microcontrollers. */
#include <string.h>

#include "gossamer_kernels.h"

static inline int8_t clamped(int32_t value) {
  return (int8_t)(value < -128 ? -128 : value > 127 ? 127 : value);
}

#ifndef GS_MVE
void gs_lookup_s8(int count, const int8_t *table, const int8_t *in, int8_t *out) {
  for (int i = 0; i < count; ++i) out[i] = table[in[i] + 128];
}

void gs_average_pool_s8(const gs_window *s, const int8_t *in, int8_t *out) {
  for (int y = 0; y < s->out_h; ++y) {
    int top = y * s->stride_h - s->pad_h, bottom = top + s->kernel_h;
    top = top < 0 ? 0 : top;
    bottom = bottom > s->in_h ? s->in_h : bottom;
    for (int x = 0; x < s->out_w; ++x) {
      int left = x * s->stride_w - s->pad_w, right = left + s->kernel_w;
      left = left < 0 ? 0 : left;
      right = right > s->in_w ? s->in_w : right;
      int32_t count = (bottom - top) * (right - left);
      for (int c = 0; c < s->in_c; ++c) {
        int32_t sum = 0;
        for (int iy = top; iy < bottom; ++iy) {
          for (int ix = left; ix < right; ++ix) sum += in[(iy * s->in_w + ix) * s->in_c + c];
        }
        *out++ = (int8_t)((sum + (sum > 0 ? count / 2 : -(count / 2))) / count);
      }
    }
  }
}
#endif

void gs_combine_s8(int count, int a_repeat, int b_repeat, int sign, const int8_t zeros[3], const gs_factor factors[3], const int8_t *a,
                   const int8_t *b, int8_t *out) {
  for (int i = 0; i < count; ++i) {
    int32_t sum = gs_scaled((a[i % a_repeat] - zeros[0]) * (1 << 20), factors[0]) +
                  sign * gs_scaled((b[i % b_repeat] - zeros[1]) * (1 << 20), factors[1]);
    out[i] = clamped(gs_scaled(sum, factors[2]) + zeros[2]);
  }
}

void gs_matmul_s8(const gs_product *s, const int8_t zeros[3], gs_factor factor, const int8_t *a, const int8_t *b, int8_t *out) {
  for (int batch = 0; batch < s->batches; ++batch, a += s->a_batch, b += s->b_batch) {
    for (int row = 0; row < s->rows; ++row) {
      for (int column = 0; column < s->columns; ++column) {
        int32_t sum = 0;
        for (int k = 0; k < s->inner; ++k) {
          sum += (a[row * s->a_row + k * s->a_inner] - zeros[0]) * (b[k * s->b_inner + column * s->b_column] - zeros[1]);
        }
        *out++ = clamped(gs_scaled(sum, factor) + zeros[2]);
      }
    }
  }
}

/* a * b / 2^31 of numbers of 31 bits behind the point, rounded. */
static inline int32_t times(int32_t a, int32_t b) {
  int64_t product = (int64_t)a * b;
  return (int32_t)((product + (product >= 0 ? (INT64_C(1) << 30) : 1 - (INT64_C(1) << 30))) / (INT64_C(1) << 31));
}

static inline int32_t halved(int32_t value, int bits) { return gs_scaled_by_power(value, bits); }

static inline int32_t doubled(int32_t value, int bits) {
  int64_t wide = (int64_t)value * (INT64_C(1) << bits);
  return wide > INT32_MAX ? INT32_MAX : wide < INT32_MIN ? INT32_MIN : (int32_t)wide;
}

/* exp of a number <= 0 with 5 digits before the point: a series on [-1/4, 0), then one factor for each higher bit. */
static int32_t exp_of_negative(int32_t value) {
  static const int32_t steps[] = {1672461947, 1302514674, 790015084, 290630308, 39332535, 720401, 242};
  if (value == 0) return INT32_MAX;
  int32_t quarter = 1 << 24, rest = (value & (quarter - 1)) - quarter, above = rest - value;
  int32_t x = doubled(rest, 5) + (1 << 28), square = times(x, x), cube = times(square, x), fourth = times(square, square);
  int32_t higher = times(halved(fourth, 2) + cube, 715827883) + square;
  int32_t result = 1895147668 + times(1895147668, x + halved(higher, 1));
  for (int k = 0; k < 7; ++k) {
    if (above & (1 << (24 + k))) result = times(result, steps[k]);
  }
  return result;
}

/* 1 / (1 + x) for x in [0, 1): three steps of Newton's method. */
static int32_t one_over_one_plus(int32_t value) {
  int32_t half = (int32_t)(((int64_t)value + INT32_MAX + 1) / 2), x = 1515870810 + times(half, -1010580540);
  for (int i = 0; i < 3; ++i) x += doubled(times(x, (1 << 29) - times(half, x)), 2);
  return doubled(x, 1);
}

void gs_softmax_s8(int rows, int columns, gs_factor factor, int least, const int8_t *in, int8_t *out) {
  for (; rows > 0; --rows, in += columns, out += columns) {
    int most = -128;
    int32_t sum = 0;
    for (int c = 0; c < columns; ++c) most = in[c] > most ? in[c] : most;
    for (int c = 0; c < columns; ++c) {
      if (in[c] - most >= least) sum += halved(exp_of_negative(gs_scaled(in[c] - most, factor)), 12);
    }
    int free_bits = 0;
    while (!((uint32_t)sum << free_bits & UINT32_C(0x80000000))) ++free_bits;
    int32_t inverse = one_over_one_plus((int32_t)(((uint32_t)sum << free_bits) - UINT32_C(0x80000000)));
    for (int c = 0; c < columns; ++c) {
      int32_t share = 0;
      if (in[c] - most >= least) {
        share = halved(times(inverse, exp_of_negative(gs_scaled(in[c] - most, factor))), 12 - free_bits + 31 - 8);
      }
      out[c] = clamped(share - 128);
    }
  }
}

void gs_resize_bilinear_s8(int out_h, int out_w, int in_w, int channels, const int16_t *rows, const int16_t *columns, const int8_t *in,
                           int8_t *out) {
  for (int y = 0; y < out_h; ++y) {
    const int8_t *above = in + rows[3 * y] * in_w * channels, *below = in + rows[3 * y + 1] * in_w * channels;
    int32_t down = rows[3 * y + 2];
    for (int x = 0; x < out_w; ++x) {
      int left = columns[3 * x] * channels, right = columns[3 * x + 1] * channels;
      int32_t across = columns[3 * x + 2];
      for (int c = 0; c < channels; ++c) {
        int32_t upper = above[left + c] * (1024 - across) + above[right + c] * across;
        int32_t lower = below[left + c] * (1024 - across) + below[right + c] * across;
        int32_t sum = upper * (1024 - down) + lower * down;
        *out++ = (int8_t)((sum + (sum > 0 ? 1 << 19 : -(1 << 19))) / (1 << 20));
      }
    }
  }
}

void gs_pick(int out_h, int out_w, int in_w, int bytes, const int16_t *rows, const int16_t *columns, const void *in, void *out) {
  char *to = out;
  for (int y = 0; y < out_h; ++y) {
    const char *line = (const char *)in + rows[y] * in_w * bytes;
    for (int x = 0; x < out_w; ++x, to += bytes) memcpy(to, line + columns[x] * bytes, (size_t)bytes);
  }
}

void gs_move(const int sizes[5], const int steps[5], int bytes, const void *in, void *out) {
  char *to = out;
  for (int a = 0; a < sizes[0]; ++a) {
    for (int b = 0; b < sizes[1]; ++b) {
      for (int c = 0; c < sizes[2]; ++c) {
        for (int d = 0; d < sizes[3]; ++d) {
          const char *from = (const char *)in + a * steps[0] + b * steps[1] + c * steps[2] + d * steps[3];
          for (int e = 0; e < sizes[4]; ++e, from += steps[4], to += bytes) memcpy(to, from, (size_t)bytes);
        }
      }
    }
  }
}
