/* Convolutions and linear layers of 8-bit codes on cores with vectors (MVE): 16 products at once, four outputs for each code that is read.
 *
 * Sums are of codes as they are: what the zero point adds is taken from the bias first, once for each output, and positions outside of an image
 * hold the zero point. */
#include "gossamer_mve.h"

#ifdef GS_MVE
/* Rows of weights of four outputs; where there are fewer, the last one takes the place of those that are missing. */
typedef struct {
  const int8_t *w0, *w1, *w2, *w3;
} rows4;

typedef struct {
  int32_t s0, s1, s2, s3;
} sums4;

/* What a group of up to four outputs has: rows, sums to start from, factors, and how many outputs there are. */
typedef struct {
  gs_factors4 factors;
  int32x4_t start;
  rows4 rows;
  mve_pred16_t there;
} group;

static inline rows4 rows_of(const gs_layer *layer, int channel, int channels, int size) {
  int last = channels - 1 - channel;
  const int8_t *first = layer->weight + channel * size;
  return (rows4){first, first + (last < 1 ? last : 1) * size, first + (last < 2 ? last : 2) * size, first + (last < 3 ? last : 3) * size};
}

static inline rows4 behind(rows4 rows, int offset) {
  return (rows4){rows.w0 + offset, rows.w1 + offset, rows.w2 + offset, rows.w3 + offset};
}

/* Adds the products of `count` > 0 codes and each row. The counter has its register by name: compilers run out of them otherwise. */
static inline __attribute__((always_inline)) sums4 dot4(const int8_t *a, rows4 rows, int count, sums4 sums) {
  register int left __asm("lr") = count;
  __asm volatile(
      "dlstp.8 lr, %[left]\n1:\n\t"
      "vldrb.8 q0, [%[a]], #16\n\t"
      "vldrb.8 q1, [%[w0]], #16\n\tvmladava.s8 %[s0], q0, q1\n\t"
      "vldrb.8 q2, [%[w1]], #16\n\tvmladava.s8 %[s1], q0, q2\n\t"
      "vldrb.8 q1, [%[w2]], #16\n\tvmladava.s8 %[s2], q0, q1\n\t"
      "vldrb.8 q2, [%[w3]], #16\n\tvmladava.s8 %[s3], q0, q2\n\t"
      "letp lr, 1b"
      : [left] "+r"(left), [a] "+r"(a), [w0] "+r"(rows.w0), [w1] "+r"(rows.w1), [w2] "+r"(rows.w2), [w3] "+r"(rows.w3),
        [s0] "+Te"(sums.s0), [s1] "+Te"(sums.s1), [s2] "+Te"(sums.s2), [s3] "+Te"(sums.s3)
      :
      : "q0", "q1", "q2", "memory");
  return sums;
}

/* The same where all codes are one. */
static inline __attribute__((always_inline)) sums4 dot4_of_one(int8_t code, rows4 rows, int count, sums4 sums) {
  register int left __asm("lr") = count;
  __asm volatile(
      "vdup.8 q0, %[code]\n\tdlstp.8 lr, %[left]\n1:\n\t"
      "vldrb.8 q1, [%[w0]], #16\n\tvmladava.s8 %[s0], q0, q1\n\t"
      "vldrb.8 q2, [%[w1]], #16\n\tvmladava.s8 %[s1], q0, q2\n\t"
      "vldrb.8 q1, [%[w2]], #16\n\tvmladava.s8 %[s2], q0, q1\n\t"
      "vldrb.8 q2, [%[w3]], #16\n\tvmladava.s8 %[s3], q0, q2\n\t"
      "letp lr, 1b"
      : [left] "+r"(left), [w0] "+r"(rows.w0), [w1] "+r"(rows.w1), [w2] "+r"(rows.w2), [w3] "+r"(rows.w3), [s0] "+Te"(sums.s0),
        [s1] "+Te"(sums.s1), [s2] "+Te"(sums.s2), [s3] "+Te"(sums.s3)
      : [code] "r"(code)
      : "q0", "q1", "q2", "memory");
  return sums;
}

static inline int32x4_t vector_of(sums4 sums) {
  int32x4_t found;
  __asm("vmov %q[found][2], %q[found][0], %[s0], %[s2]\n\tvmov %q[found][3], %q[found][1], %[s1], %[s3]"
        : [found] "=w"(found)
        : [s0] "r"(sums.s0), [s1] "r"(sums.s1), [s2] "r"(sums.s2), [s3] "r"(sums.s3));
  return found;
}

static inline sums4 no_sums(void) { return (sums4){0, 0, 0, 0}; }

/* Biases of up to four outputs less what the zero point adds to the whole of each row. */
static inline int32x4_t without_zero(const gs_layer *layer, int channel, mve_pred16_t there, rows4 rows, int size) {
  int32x4_t bias = vldrwq_z_s32(layer->bias + channel, there);
  if (layer->in_zero == 0) return bias;
  return vmlaq_n_s32(bias, vector_of(dot4_of_one(1, rows, size, no_sums())), -layer->in_zero);
}

static inline gs_factors4 factors_of(const gs_layer *layer, int channel, mve_pred16_t there) {
  return gs_factors4_of(vldrwq_z_s32(layer->multiplier + channel, there), vldrbq_z_s32(layer->shift + channel, there));
}

static inline group group_of(const gs_layer *layer, int channel, int channels, int size) {
  mve_pred16_t there = vctp32q((uint32_t)(channels - channel));
  rows4 rows = rows_of(layer, channel, channels, size);
  return (group){factors_of(layer, channel, there), without_zero(layer, channel, there, rows, size), rows, there};
}

static inline int32x4_t codes4(int32x4_t sums, gs_factors4 factors, int out_zero) {
  return gs_clamped4(vaddq_n_s32(gs_scaled4(sums, factors), out_zero));
}

/* `rows` vectors of `inputs` codes, `step` apart, by all outputs: linear layers and 1x1 convolutions. */
static void points(int rows, int step, int inputs, int outputs, const gs_layer *layer, const int8_t *in, int8_t *out) {
  for (int o = 0; o < outputs; o += 4) {
    group g = group_of(layer, o, outputs, inputs);
    const int8_t *codes = in;
    int8_t *to = out + o;
    for (int row = 0; row < rows; ++row, codes += step, to += outputs) {
      int32x4_t sums = vaddq_s32(g.start, vector_of(dot4(codes, g.rows, inputs, no_sums())));
      vstrbq_p_s32(to, codes4(sums, g.factors, layer->out_zero), g.there);
    }
  }
}

void gs_linear_s8(int rows, int inputs, int outputs, const gs_layer *layer, const int8_t *in, int8_t *out) {
  points(rows, inputs, inputs, outputs, layer, in, out);
}

/* As gs_on_image; a kernel with no part on the image lies behind it. */
static inline gs_span on_image(int start, int kernel, int dilation, int size) {
  gs_span found = gs_on_image(start, kernel, dilation, size);
  return found.from < found.to ? found : (gs_span){0, 0};
}

/* Brings the codes under a kernel together. */
static void patch_of(const gs_window *s, int in_zero, int y, int x, const int8_t *in, int8_t *patch) {
  int top = y * s->stride_h - s->pad_h, left = x * s->stride_w - s->pad_w, row = s->kernel_w * s->in_c;
  gs_span rows = on_image(top, s->kernel_h, s->dilation_h, s->in_h), columns = on_image(left, s->kernel_w, s->dilation_w, s->in_w);
  if (rows.to - rows.from < s->kernel_h || columns.to - columns.from < s->kernel_w) gs_fill(patch, (int8_t)in_zero, s->kernel_h * row);
  const int8_t *from = in + ((top + rows.from * s->dilation_h) * s->in_w + left + columns.from * s->dilation_w) * s->in_c;
  int8_t *to = patch + rows.from * row + columns.from * s->in_c;
  for (int ky = rows.from; ky < rows.to; ++ky, from += s->dilation_h * s->in_w * s->in_c, to += row) {
    if (s->dilation_w == 1) {
      gs_copy(to, from, (columns.to - columns.from) * s->in_c);
    } else {
      for (int kx = 0; kx < columns.to - columns.from; ++kx) gs_copy(to + kx * s->in_c, from + kx * s->dilation_w * s->in_c, s->in_c);
    }
  }
}

/* Small kernels: all outputs of a place from one patch; sums to start from are found for some outputs at once. */
enum { PATCH = 320, OUTPUTS = 64 };
static void conv_patches(const gs_window *s, const gs_layer *layer, const int8_t *in, int8_t *out) {
  int8_t patch[PATCH];
  int32x4_t starts[OUTPUTS / 4];
  int size = s->kernel_h * s->kernel_w * s->in_c;
  for (int first = 0; first < s->out_c; first += OUTPUTS) {
    int behind_last = first + OUTPUTS < s->out_c ? first + OUTPUTS : s->out_c;
    for (int o = first; o < behind_last; o += 4) {
      starts[(o - first) / 4] = without_zero(layer, o, vctp32q((uint32_t)(s->out_c - o)), rows_of(layer, o, s->out_c, size), size);
    }
    int8_t *to = out;
    for (int y = 0; y < s->out_h; ++y) {
      for (int x = 0; x < s->out_w; ++x, to += s->out_c) {
        patch_of(s, layer->in_zero, y, x, in, patch);
        const int8_t *weight = layer->weight + first * size;
        int o = first;
        for (; o + 4 <= behind_last; o += 4, weight += 4 * size) {
          rows4 rows = {weight, weight + size, weight + 2 * size, weight + 3 * size};
          int32x4_t sums = vaddq_s32(starts[(o - first) / 4], vector_of(dot4(patch, rows, size, no_sums())));
          gs_factors4 factors = gs_factors4_of(vldrwq_s32(layer->multiplier + o), vldrbq_s32(layer->shift + o));
          vstrbq_s32(to + o, codes4(sums, factors, layer->out_zero));
        }
        if (o < behind_last) {
          mve_pred16_t there = vctp32q((uint32_t)(s->out_c - o));
          int32x4_t sums = vaddq_s32(starts[(o - first) / 4], vector_of(dot4(patch, rows_of(layer, o, s->out_c, size), size, no_sums())));
          vstrbq_p_s32(to + o, codes4(sums, factors_of(layer, o, there), layer->out_zero), there);
        }
      }
    }
  }
}

/* One row of a large kernel: where it leaves the image there is the zero point. */
static inline sums4 kernel_row(const gs_window *s, int in_zero, gs_span columns, const int8_t *codes, rows4 rows, sums4 sums) {
  int before = columns.from * s->in_c, after = (s->kernel_w - columns.to) * s->in_c, length = (columns.to - columns.from) * s->in_c;
  if (before) sums = dot4_of_one((int8_t)in_zero, rows, before, sums);
  rows = behind(rows, before);
  if (s->dilation_w == 1) {
    if (length) sums = dot4(codes, rows, length, sums);
  } else {
    for (int at = 0; at < length; at += s->in_c) sums = dot4(codes + at * s->dilation_w, behind(rows, at), s->in_c, sums);
  }
  return after ? dot4_of_one((int8_t)in_zero, behind(rows, length), after, sums) : sums;
}

/* Large kernels: row by row where the codes lie. */
static void conv_rows(const gs_window *s, const gs_layer *layer, const int8_t *in, int8_t *out) {
  int row = s->kernel_w * s->in_c, line = s->in_w * s->in_c, down = s->dilation_h * line;
  for (int o = 0; o < s->out_c; o += 4) {
    group g = group_of(layer, o, s->out_c, s->kernel_h * row);
    int8_t *to = out + o;
    for (int y = 0; y < s->out_h; ++y) {
      int top = y * s->stride_h - s->pad_h;
      gs_span rows = on_image(top, s->kernel_h, s->dilation_h, s->in_h);
      for (int x = 0; x < s->out_w; ++x, to += s->out_c) {
        int left = x * s->stride_w - s->pad_w;
        gs_span columns = on_image(left, s->kernel_w, s->dilation_w, s->in_w);
        const int8_t *codes = in + top * line + (left + columns.from * s->dilation_w) * s->in_c;
        sums4 sums = no_sums();
        if (rows.from) sums = dot4_of_one((int8_t)layer->in_zero, g.rows, rows.from * row, sums);
        for (int ky = rows.from; ky < rows.to; ++ky) {
          sums = kernel_row(s, layer->in_zero, columns, codes + ky * down, behind(g.rows, ky * row), sums);
        }
        if (rows.to < s->kernel_h) {
          sums = dot4_of_one((int8_t)layer->in_zero, behind(g.rows, rows.to * row), (s->kernel_h - rows.to) * row, sums);
        }
        vstrbq_p_s32(to, codes4(vaddq_s32(g.start, vector_of(sums)), g.factors, layer->out_zero), g.there);
      }
    }
  }
}

void gs_conv_s8(const gs_window *s, const gs_layer *layer, const int8_t *in, int8_t *out) {
  int inside = s->pad_h == 0 && s->pad_w == 0 && (s->out_h - 1) * s->stride_h < s->in_h && (s->out_w - 1) * s->stride_w < s->in_w;
  if (s->kernel_h == 1 && s->kernel_w == 1 && inside) {
    int together = s->stride_h == 1 && s->stride_w == 1 && s->in_w == s->out_w, lines = together ? 1 : s->out_h;
    int places = together ? s->out_h * s->out_w : s->out_w, line = s->stride_h * s->in_w * s->in_c;
    for (int y = 0; y < lines; ++y, in += line, out += places * s->out_c) {
      points(places, s->stride_w * s->in_c, s->in_c, s->out_c, layer, in, out);
    }
  } else if (s->kernel_h * s->kernel_w * s->in_c <= PATCH) {
    conv_patches(s, layer, in, out);
  } else {
    conv_rows(s, layer, in, out);
  }
}
#endif
