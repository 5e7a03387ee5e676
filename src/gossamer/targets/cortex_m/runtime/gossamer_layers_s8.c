/* Convolutions and linear layers of 8-bit codes: with the DSP extension two products at once, else one. */
#include <string.h>

#include "gossamer_kernels.h"

#ifndef GS_MVE
#if defined(__ARM_FEATURE_DSP) && __ARM_FEATURE_DSP && defined(__GNUC__) && defined(__OPTIMIZE__)
#include <arm_acle.h>
#define GS_DSP 1
#ifndef __clang__
#pragma GCC optimize("omit-frame-pointer") /* GS_STEPS takes all registers but one */
#endif
static inline uint32_t word(const int8_t *bytes) {
  uint32_t found;
  memcpy(&found, bytes, 4);
  return found;
}
/* Bytes 0 and 2, or 1 and 3, as two numbers of 16 bits, added to another two; the compiler's own intrinsics rotate in a step of its own. */
static inline uint32_t even(uint32_t bytes) { return (uint32_t)__sxtb16((int8x4_t)bytes); }
static inline uint32_t odd(uint32_t bytes) {
  uint32_t found;
  __asm("sxtb16 %0, %1, ror #8" : "=r"(found) : "r"(bytes));
  return found;
}
static inline uint32_t even_from(uint32_t offset, uint32_t bytes) { return (uint32_t)__sxtab16((int16x2_t)offset, (int8x4_t)bytes); }
static inline uint32_t odd_from(uint32_t offset, uint32_t bytes) {
  uint32_t found;
  __asm("sxtab16 %0, %1, %2, ror #8" : "=r"(found) : "r"(offset), "r"(bytes));
  return found;
}
static inline uint32_t twice(int32_t number) { return ((uint32_t)number & 0xFFFFu) | ((uint32_t)number << 16); }
#endif

#ifdef GS_DSP
/* One row's products of four codes. */
#define GS_ROW(FROM, SUM)                           \
  "ldr %[row], " FROM "\n\t"                        \
  "sxtb16 %[part], %[row]\n\t"                      \
  "smlad %[" SUM "], %[first], %[part], %[" SUM "]\n\t" \
  "sxtb16 %[part], %[row], ror #8\n\t"              \
  "smlad %[" SUM "], %[second], %[part], %[" SUM "]\n\t"
/* Four codes by four rows. */
#define GS_FOUR                                                                                       \
  "ldr %[second], [%[a]], #4\n\t"                                                                     \
  "sxtab16 %[first], %[offset], %[second]\n\t"                                                        \
  "sxtab16 %[second], %[offset], %[second], ror #8\n\t"                                               \
  GS_ROW("[%[w], %[step]]", "s1") GS_ROW("[%[w], %[step], lsl #1]", "s2") "add %[row], %[w], %[step]\n\t" GS_ROW("[%[row], %[step], lsl #1]", "s3") \
  GS_ROW("[%[w]], #4", "s0")
/* Repeats them, and `MORE` each time, until `end`. Written by hand: there are 13 registers, and compilers run out of them. */
#define GS_STEPS(END, MORE)                                                                                     \
  do {                                                                                                          \
    const int8_t *until = END;                                                                                  \
    uint32_t first, second, row, part;                                                                          \
    __asm("1:\n\t" GS_FOUR MORE "cmp %[a], %[until]\n\tbne 1b"                                                      \
          : [a] "+r"(a), [w] "+r"(w), [s0] "+r"(s0), [s1] "+r"(s1), [s2] "+r"(s2), [s3] "+r"(s3),               \
            [first] "=&r"(first), [second] "=&r"(second), [row] "=&r"(row), [part] "=&r"(part)                  \
          : [step] "r"(step), [offset] "r"(twice(-zero)), [until] "r"(until)             \
          : "cc", "memory");                                                                                    \
  } while (0)
#endif

#ifdef GS_DSP
static inline int8_t clamped(int32_t value) { return (int8_t)__ssat(value, 8); }
#else
static inline int8_t clamped(int32_t value) {
  return (int8_t)(value < -128 ? -128 : value > 127 ? 127 : value);
}
#endif

/* Four sums, one for each of four rows of weights. */
typedef struct {
  int32_t s0, s1, s2, s3;
} sums4;

/* Adds the products of (a - zero) and each of four rows of w, which lie `step` apart: the codes are widened once for all four. */
static inline __attribute__((always_inline)) sums4 dot4(const int8_t *a, const int8_t *w, int step, int count, int32_t zero, sums4 sums) {
  int32_t s0 = sums.s0, s1 = sums.s1, s2 = sums.s2, s3 = sums.s3;
#ifdef GS_DSP
  if (count & 4) GS_STEPS(a + 4, "");
  if (count & ~7) GS_STEPS(a + (count & ~7), GS_FOUR);
  count &= 3;
#endif
  for (int i = 0; i < count; ++i) {
    int32_t code = a[i] - zero;
    s0 += code * w[i], s1 += code * w[step + i], s2 += code * w[2 * step + i], s3 += code * w[3 * step + i];
  }
  return (sums4){s0, s1, s2, s3};
}

static inline int32_t dot1(const int8_t *a, const int8_t *w, int count, int32_t zero, int32_t sum) {
  for (int i = 0; i < count; ++i) sum += (a[i] - zero) * w[i];
  return sum;
}

static __attribute__((noinline)) int8_t result(const gs_layer *layer, int channel, int32_t sum) {
  return clamped(gs_scaled(sum, (gs_factor){layer->multiplier[channel], layer->shift[channel]}) + layer->out_zero);
}

static inline sums4 biases(const gs_layer *layer, int channel) {
  const int32_t *bias = layer->bias + channel;
  return (sums4){bias[0], bias[1], bias[2], bias[3]};
}

/* result() where the shift is -32 to -1, which needs no look at it. */
static inline int8_t usual_result(const gs_layer *layer, int channel, int32_t sum) {
  int32_t high = (int32_t)(((int64_t)sum * layer->multiplier[channel] + (INT64_C(1) << 30)) >> 31);
  return clamped(((((high + (high >> 31)) >> (-layer->shift[channel] - 1)) + 1) >> 1) + layer->out_zero);
}

static inline void store4(const gs_layer *layer, int channel, sums4 sums, int8_t *out) {
  uint32_t shifts;
  memcpy(&shifts, layer->shift + channel, 4);
  if ((shifts & 0xE0E0E0E0u) != 0xE0E0E0E0u) { /* not all of them are -32 to -1 */
    const int32_t each[] = {sums.s0, sums.s1, sums.s2, sums.s3};
    for (int i = 0; i < 4; ++i) out[i] = result(layer, channel + i, each[i]);
    return;
  }
  out[0] = usual_result(layer, channel, sums.s0);
  out[1] = usual_result(layer, channel + 1, sums.s1);
  out[2] = usual_result(layer, channel + 2, sums.s2);
  out[3] = usual_result(layer, channel + 3, sums.s3);
}

/* `rows` vectors of `inputs` codes, `step` apart, by all outputs: linear layers and 1x1 convolutions. */
__attribute__((noinline)) static void points(int rows, int step, int inputs, int outputs, const gs_layer *layer, const int8_t *in, int8_t *out) {
  int o = 0;
  for (; o + 4 <= outputs; o += 4) {
    const int8_t *weight = layer->weight + o * inputs, *codes = in;
    int8_t *to = out + o;
    for (int row = 0; row < rows; ++row, codes += step, to += outputs) {
      store4(layer, o, dot4(codes, weight, inputs, inputs, layer->in_zero, biases(layer, o)), to);
    }
  }
  for (; o < outputs; ++o) {
    for (int row = 0; row < rows; ++row) {
      out[row * outputs + o] = result(layer, o, dot1(in + row * step, layer->weight + o * inputs, inputs, layer->in_zero, layer->bias[o]));
    }
  }
}

void gs_linear_s8(int rows, int inputs, int outputs, const gs_layer *layer, const int8_t *in, int8_t *out) {
  points(rows, inputs, inputs, outputs, layer, in, out);
}

/* One line of results. Where a kernel's row lies in one piece, it is one product of vectors, cut off at the image's ends. */
static void conv_line(const gs_window *s, const gs_layer *layer, int y, const int8_t *in, int8_t *out) {
  int top = y * s->stride_h - s->pad_h, row = s->kernel_w * s->in_c, size = s->kernel_h * row, line = s->in_w * s->in_c;
  int down = s->dilation_h * line, across = s->dilation_w * s->in_c, whole = s->dilation_w == 1;
  gs_span rows = gs_on_image(top, s->kernel_h, s->dilation_h, s->in_h);
  for (int o = 0; o < s->out_c; o += 4) {
    int8_t *to = out + o;
    for (int x = 0; x < s->out_w; ++x, to += s->out_c) {
      int left = x * s->stride_w - s->pad_w;
      gs_span columns = gs_on_image(left, s->kernel_w, s->dilation_w, s->in_w);
      int wide = columns.to - columns.from, parts = whole ? 1 : wide, length = whole ? wide * s->in_c : s->in_c;
      const int8_t *codes = in + (top + rows.from * s->dilation_h) * line + (left + columns.from * s->dilation_w) * s->in_c;
      const int8_t *weight = layer->weight + o * size + rows.from * row + columns.from * s->in_c;
      if (o + 4 > s->out_c) {
        for (int i = 0; o + i < s->out_c; ++i) {
          int32_t sum = layer->bias[o + i];
          for (int ky = 0; ky < rows.to - rows.from; ++ky) {
            for (int part = 0; part < parts; ++part) {
              sum = dot1(codes + ky * down + part * across, weight + i * size + ky * row + part * s->in_c, length, layer->in_zero, sum);
            }
          }
          to[i] = result(layer, o + i, sum);
        }
        continue;
      }
      sums4 sums = biases(layer, o);
      for (int ky = rows.from; ky < rows.to; ++ky, codes += down, weight += row) {
        for (int part = 0; part < parts; ++part) {
          sums = dot4(codes + part * across, weight + part * s->in_c, size, length, layer->in_zero, sums);
        }
      }
      store4(layer, o, sums, to);
    }
  }
}

/* One line of results of a kernel with short rows: the codes under it are brought together first, so that they make one product. */
enum { SHORT = 16, TOGETHER = 192 };
static void conv_short(const gs_window *s, const gs_layer *layer, int y, const int8_t *in, int8_t *out) {
  int8_t codes[TOGETHER];
  int top = y * s->stride_h - s->pad_h, row = s->kernel_w * s->in_c, size = s->kernel_h * row;
  gs_span rows = gs_on_image(top, s->kernel_h, s->dilation_h, s->in_h);
  for (int x = 0; x < s->out_w; ++x, out += s->out_c) {
    int left = x * s->stride_w - s->pad_w;
    gs_span columns = gs_on_image(left, s->kernel_w, 1, s->in_w);
    int length = (columns.to - columns.from) * s->in_c;
    if (length < row || rows.to - rows.from < s->kernel_h) memset(codes, layer->in_zero, (size_t)size);
    for (int ky = rows.from; ky < rows.to; ++ky) {
      const int8_t *from = in + ((top + ky * s->dilation_h) * s->in_w + left + columns.from) * s->in_c;
      int8_t *to = codes + ky * row + columns.from * s->in_c;
      int i = 0;
      for (; i + 4 <= length; i += 4) memcpy(to + i, from + i, 4);
      for (; i < length; ++i) to[i] = from[i];
    }
    points(1, 0, size, s->out_c, layer, codes, out);
  }
}

void gs_conv_s8(const gs_window *s, const gs_layer *layer, const int8_t *in, int8_t *out) {
  int point = s->kernel_h == 1 && s->kernel_w == 1 && s->pad_h == 0 && s->pad_w == 0;
  int row = s->kernel_w * s->in_c, shallow = s->dilation_w == 1 && row <= SHORT && row * s->kernel_h <= TOGETHER;
  if (point && s->stride_h == 1 && s->stride_w == 1 && s->in_w == s->out_w) {
    points(s->out_h * s->out_w, s->in_c, s->in_c, s->out_c, layer, in, out);
    return;
  }
  for (int y = 0; y < s->out_h; ++y, out += s->out_w * s->out_c) {
    if (point && y * s->stride_h < s->in_h && (s->out_w - 1) * s->stride_w < s->in_w) {
      points(s->out_w, s->stride_w * s->in_c, s->in_c, s->out_c, layer, in + y * s->stride_h * s->in_w * s->in_c, out);
    } else if (shallow) {
      conv_short(s, layer, y, in, out);
    } else {
      conv_line(s, layer, y, in, out);
    }
  }
}

/* Four neighbouring channels by one position of the kernel. */
static inline __attribute__((always_inline)) sums4 step4(const int8_t *codes, const int8_t *weight, int32_t zero, sums4 sums) {
#ifdef GS_DSP
  uint32_t offset = twice(-zero), c = word(codes), w = word(weight), code = even_from(offset, c), of = even(w);
  sums.s0 = __smlabb((int32_t)code, (int32_t)of, sums.s0), sums.s2 = __smlatt((int32_t)code, (int32_t)of, sums.s2);
  code = odd_from(offset, c), of = odd(w);
  sums.s1 = __smlabb((int32_t)code, (int32_t)of, sums.s1), sums.s3 = __smlatt((int32_t)code, (int32_t)of, sums.s3);
#else
  sums.s0 += (codes[0] - zero) * weight[0], sums.s1 += (codes[1] - zero) * weight[1];
  sums.s2 += (codes[2] - zero) * weight[2], sums.s3 += (codes[3] - zero) * weight[3];
#endif
  return sums;
}

/* Places `from` to `to` of a line, where `columns` of the kernel's columns lie on the image: four channels, each with one kernel. */
__attribute__((noinline)) static void depthwise_run(const gs_window *s, const gs_layer *layer, int channel, int rows, int columns, int places,
                                                    const int8_t *in, const int8_t *weight, int8_t *out) {
  int channels = s->in_c, down = s->dilation_h * s->in_w * channels, row = s->kernel_w * channels, across = s->stride_w * channels;
  for (; places > 0; --places, in += across, out += channels) {
    const int8_t *codes = in, *w = weight;
    sums4 sums = biases(layer, channel);
    if (columns == 3) {
      for (int ky = 0; ky < rows; ++ky, codes += down, w += row) {
        sums = step4(codes, w, layer->in_zero, sums);
        sums = step4(codes + channels, w + channels, layer->in_zero, sums);
        sums = step4(codes + 2 * channels, w + 2 * channels, layer->in_zero, sums);
      }
    } else {
      for (int ky = 0; ky < rows; ++ky, codes += down, w += row) {
        for (int kx = 0; kx < columns; ++kx) sums = step4(codes + kx * channels, w + kx * channels, layer->in_zero, sums);
      }
    }
    store4(layer, channel, sums, out);
  }
}

/* Any channel of any depthwise convolution; several results may read one channel. */
static int32_t depthwise_one(const gs_window *s, const gs_layer *layer, int y, int x, int channel, const int8_t *in) {
  int32_t sum = layer->bias[channel];
  int top = y * s->stride_h - s->pad_h, left = x * s->stride_w - s->pad_w, from = channel / (s->out_c / s->in_c);
  gs_span rows = gs_on_image(top, s->kernel_h, s->dilation_h, s->in_h), columns = gs_on_image(left, s->kernel_w, s->dilation_w, s->in_w);
  for (int ky = rows.from; ky < rows.to; ++ky) {
    for (int kx = columns.from; kx < columns.to; ++kx) {
      int place = (top + ky * s->dilation_h) * s->in_w + left + kx * s->dilation_w;
      sum += (in[place * s->in_c + from] - layer->in_zero) * layer->weight[(ky * s->kernel_w + kx) * s->out_c + channel];
    }
  }
  return sum;
}

void gs_depthwise_s8(const gs_window *s, const gs_layer *layer, const int8_t *in, int8_t *out) {
  int channels = s->in_c, together = s->out_c == channels && s->dilation_w == 1 ? channels / 4 * 4 : 0;
  for (int y = 0; y < s->out_h; ++y, out += s->out_w * s->out_c) {
    int top = y * s->stride_h - s->pad_h;
    gs_span rows = gs_on_image(top, s->kernel_h, s->dilation_h, s->in_h);
    for (int x = 0, run; x < s->out_w; x += run) { /* places with the same columns of the kernel on the image, one run after another */
      int left = x * s->stride_w - s->pad_w;
      gs_span columns = gs_on_image(left, s->kernel_w, s->dilation_w, s->in_w);
      run = left < 0 || left + s->kernel_w > s->in_w ? 1 : (s->in_w - s->kernel_w - left) / s->stride_w + 1;
      if (run > s->out_w - x) run = s->out_w - x;
      const int8_t *codes = in + ((top + rows.from * s->dilation_h) * s->in_w + left + columns.from) * channels;
      const int8_t *weight = layer->weight + (rows.from * s->kernel_w + columns.from) * channels;
      for (int o = 0; o < together; o += 4) {
        depthwise_run(s, layer, o, rows.to - rows.from, columns.to - columns.from, run, codes + o, weight + o, out + x * channels + o);
      }
    }
    for (int x = 0; x < s->out_w; ++x) {
      for (int o = together; o < s->out_c; ++o) out[x * s->out_c + o] = result(layer, o, depthwise_one(s, layer, y, x, o, in));
    }
  }
}
#endif
