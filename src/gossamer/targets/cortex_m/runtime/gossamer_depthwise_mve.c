/* Depthwise convolutions of 8-bit codes on cores with vectors (MVE): eight channels at once, each with one kernel. */
#include <stddef.h>
#include <string.h>

#include "gossamer_mve.h"

#ifdef GS_MVE
/* Sums of eight channels: those with even and with odd numbers. */
typedef struct {
  int32x4_t even, odd;
} sums8;

/* What a block of up to eight channels has. */
typedef struct {
  sums8 bias;
  gs_factors4 even, odd;
  mve_pred16_t there;
} block;

static inline block block_of_eight(const int32_t *bias, const int32_t *multiplier, const int8_t *shift) {
  int32x4x2_t biases = vld2q_s32(bias), multipliers = vld2q_s32(multiplier);
  int16x8_t shifts = vldrbq_s16(shift);
  return (block){{biases.val[0], biases.val[1]},
                 gs_factors4_of(multipliers.val[0], vmovlbq_s16(shifts)),
                 gs_factors4_of(multipliers.val[1], vmovltq_s16(shifts)),
                 0xFFFF};
}

/* Rectangle of results that read the same rows and columns of the kernel, and how codes and weights lie there. */
typedef struct {
  int high, wide, rows, columns;
  int step_y, step_x, line, channels, down, across, row;
} area;

/* Biases less what the zero point adds to the part of the kernel that is read. */
static sums8 without_zero(const block *b, int in_zero, const area *r, const int8_t *weight) {
  sums8 found = b->bias;
  if (in_zero == 0) return found;
  int16x8_t zero = vdupq_n_s16((int16_t)in_zero);
  for (int ky = 0; ky < r->rows; ++ky) {
    for (int kx = 0; kx < r->columns; ++kx) {
      int16x8_t of = vldrbq_z_s16(weight + ky * r->row + kx * r->channels, b->there);
      found = (sums8){vsubq_s32(found.even, vmullbq_int_s16(of, zero)), vsubq_s32(found.odd, vmulltq_int_s16(of, zero))};
    }
  }
  return found;
}

static inline __attribute__((always_inline)) int16x8_t loaded(const int8_t *from, mve_pred16_t there, int all) {
  return all ? vldrbq_s16(from) : vldrbq_z_s16(from, there);
}

static inline __attribute__((always_inline)) sums8 tap(const int8_t *codes, const int8_t *weight, mve_pred16_t there, int all, sums8 sums) {
  int16x8_t code = loaded(codes, there, all), of = loaded(weight, there, all);
  return (sums8){vaddq_s32(sums.even, vmullbq_int_s16(code, of)), vaddq_s32(sums.odd, vmulltq_int_s16(code, of))};
}

static inline __attribute__((always_inline)) void store8(sums8 sums, const block *b, int out_zero, int all, int8_t *out) {
  int16x8_t codes = vqmovnbq_s32(vdupq_n_s16(0), gs_scaled4(sums.even, b->even));
  codes = vqaddq_n_s16(vqmovntq_s32(codes, gs_scaled4(sums.odd, b->odd)), (int16_t)out_zero);
  codes = vreinterpretq_s16_s8(vqmovnbq_s16(vreinterpretq_s8_s16(codes), codes));
  if (all) {
    vstrbq_s16(out, codes);
  } else {
    vstrbq_p_s16(out, codes, b->there);
  }
}

/* One result of each channel. */
static inline __attribute__((always_inline)) void place_of(const area *r, const block *b, sums8 sums, int out_zero, int all, const int8_t *codes,
                                                           const int8_t *w, int8_t *out) {
  int down = r->down, across = r->across, row = r->row, channels = r->channels;
  if (r->columns == 3) {
    for (int ky = r->rows; ky > 0; --ky, codes += down, w += row) {
      sums = tap(codes, w, b->there, all, sums);
      sums = tap(codes + across, w + channels, b->there, all, sums);
      sums = tap(codes + 2 * across, w + 2 * channels, b->there, all, sums);
    }
  } else {
    for (int ky = r->rows; ky > 0; --ky, codes += down, w += row) {
      for (int kx = 0; kx < r->columns; ++kx) sums = tap(codes + kx * across, w + kx * channels, b->there, all, sums);
    }
  }
  store8(sums, b, out_zero, all, out);
}

/* The results of a block in a rectangle. */
static inline __attribute__((always_inline)) void block_in(const area *r, const block *b, sums8 start, int out_zero, int all, const int8_t *in,
                                                           const int8_t *weight, int8_t *out) {
  for (int y = r->high; y > 0; --y, in += r->step_y, out += r->line) {
    const int8_t *codes = in;
    int8_t *to = out;
    for (int x = r->wide; x > 0; --x, codes += r->step_x, to += r->channels) place_of(r, b, start, out_zero, all, codes, weight, to);
  }
}

__attribute__((noinline)) static void eight_in(const area *r, const gs_layer *layer, int channel, const int8_t *in, const int8_t *weight,
                                               int8_t *out) {
  block b = block_of_eight(layer->bias + channel, layer->multiplier + channel, layer->shift + channel);
  block_in(r, &b, without_zero(&b, layer->in_zero, r, weight), layer->out_zero, 1, in, weight, out);
}

__attribute__((noinline)) static void fewer_in(const area *r, const gs_layer *layer, int channel, const int8_t *in, const int8_t *weight,
                                               int8_t *out) {
  int32_t bias[8] = {0}, multiplier[8] = {0};
  int8_t shift[8] = {0};
  size_t count = (size_t)(r->channels - channel);
  memcpy(bias, layer->bias + channel, count * 4);
  memcpy(multiplier, layer->multiplier + channel, count * 4);
  memcpy(shift, layer->shift + channel, count);
  block b = block_of_eight(bias, multiplier, shift);
  b.there = vctp16q(count);
  block_in(r, &b, without_zero(&b, layer->in_zero, r, weight), layer->out_zero, 0, in, weight, out);
}

/* Sums of sixteen channels: of those whose numbers leave the rest 0, 2, 1, 3 when divided by four. */
typedef struct {
  int32x4_t s0, s2, s1, s3;
} sums16;

/* Adds products of 16 bits, of even channels in q2 and of odd ones in q3. */
#define WIDEN                                                       \
  "vmovlb.s16 q0, q2\n\tvmovlt.s16 q2, q2\n\t"                      \
  "vadd.i32 %q[s0], %q[s0], q0\n\tvadd.i32 %q[s2], %q[s2], q2\n\t"  \
  "vmovlb.s16 q0, q3\n\tvmovlt.s16 q3, q3\n\t"                      \
  "vadd.i32 %q[s1], %q[s1], q0\n\tvadd.i32 %q[s3], %q[s3], q3"
#define SUMS [s0] "+w"(sums.s0), [s1] "+w"(sums.s1), [s2] "+w"(sums.s2), [s3] "+w"(sums.s3)

static inline __attribute__((always_inline)) sums16 tap16(const int8_t *code, const int8_t *of, sums16 sums) {
  __asm("vldrb.8 q0, [%[code]]\n\tvldrb.8 q1, [%[of]]\n\tvmullb.s8 q2, q0, q1\n\tvmullt.s8 q3, q0, q1\n\t" WIDEN
        : SUMS
        : [code] "r"(code), [of] "r"(of), "m"(*(const int8_t(*)[16])code), "m"(*(const int8_t(*)[16])of)
        : "q0", "q1", "q2", "q3");
  return sums;
}

/* Two taps: 16 bits hold the sum of two products, since weights are -127 to 127. There are four registers to work in, so codes are read twice. */
static inline __attribute__((always_inline)) sums16 two_taps16(const int8_t *code, const int8_t *of, const int8_t *next, const int8_t *next_of,
                                                               sums16 sums) {
  __asm volatile(
      "vldrb.8 q0, [%[code]]\n\tvldrb.8 q1, [%[of]]\n\tvmullb.s8 q2, q0, q1\n\tvmullt.s8 q3, q0, q1\n\t"
      "vldrb.8 q0, [%[next]]\n\tvldrb.8 q1, [%[next_of]]\n\tvmullb.s8 q0, q0, q1\n\tvadd.i16 q2, q2, q0\n\t"
      "vldrb.8 q0, [%[next]]\n\tvmullt.s8 q0, q0, q1\n\tvadd.i16 q3, q3, q0\n\t" WIDEN
      : SUMS
      : [code] "r"(code), [of] "r"(of), [next] "r"(next), [next_of] "r"(next_of)
      : "q0", "q1", "q2", "q3", "memory");
  return sums;
}

/* Sixteen channels: sums to start from, and their factors in the order of their sums; `raised` where one has a shift to the left. */
typedef struct {
  sums16 start, multiplier, left, right;
  int raised;
} block16;

static inline sums16 by_remainder(int32x4x4_t numbers) { return (sums16){numbers.val[0], numbers.val[2], numbers.val[1], numbers.val[3]}; }

/* gs_scaled of four sums whose shift is none to the left; by hand, since compilers keep the address of each vector in memory. */
#define SCALED(AT)                                                                                                         \
  __asm("vldrw.32 q0, [%[b], %[multiplier]]\n\tvqrdmulh.s32 %q[sum], %q[sum], q0\n\tvldrw.32 q0, [%[b], %[right]]\n\t"      \
        "vand q1, %q[sum], q0\n\tvshr.s32 q1, q1, #31\n\tvadd.i32 %q[sum], %q[sum], q1\n\tvrshl.s32 %q[sum], %q[sum], q0" \
        : [sum] "+w"(sums.AT)                                                                                              \
        : [b] "r"(b), "m"(*b), [multiplier] "i"(offsetof(block16, multiplier.AT)), [right] "i"(offsetof(block16, right.AT)) \
        : "q0", "q1")

static inline __attribute__((always_inline)) void store16(sums16 sums, const block16 *b, int out_zero, int8_t *out) {
  if (b->raised) {
    sums.s0 = vshlq_s32(sums.s0, b->left.s0), sums.s1 = vshlq_s32(sums.s1, b->left.s1);
    sums.s2 = vshlq_s32(sums.s2, b->left.s2), sums.s3 = vshlq_s32(sums.s3, b->left.s3);
  }
  SCALED(s0);
  SCALED(s1);
  SCALED(s2);
  SCALED(s3);
  int16x8_t even = vqmovntq_s32(vqmovnbq_s32(vreinterpretq_s16_s32(sums.s0), sums.s0), sums.s2);
  int16x8_t odd = vqmovntq_s32(vqmovnbq_s32(vreinterpretq_s16_s32(sums.s1), sums.s1), sums.s3);
  even = vqaddq_n_s16(even, (int16_t)out_zero), odd = vqaddq_n_s16(odd, (int16_t)out_zero);
  vstrbq_s8(out, vqmovntq_s16(vqmovnbq_s16(vreinterpretq_s8_s16(even), even), odd));
}

static block16 block16_of(const area *r, const gs_layer *layer, int channel, const int8_t *weight) {
  int32x4_t none = vdupq_n_s32(0);
  int8x16_t shift = vldrbq_s8(layer->shift + channel);
  int16x8_t even = vmovlbq_s8(shift), odd = vmovltq_s8(shift);
  sums16 shifts = {vmovlbq_s16(even), vmovltq_s16(even), vmovlbq_s16(odd), vmovltq_s16(odd)};
  block16 b = {by_remainder(vld4q_s32(layer->bias + channel)), by_remainder(vld4q_s32(layer->multiplier + channel)),
               {vmaxq_s32(shifts.s0, none), vmaxq_s32(shifts.s2, none), vmaxq_s32(shifts.s1, none), vmaxq_s32(shifts.s3, none)},
               {vminq_s32(shifts.s0, none), vminq_s32(shifts.s2, none), vminq_s32(shifts.s1, none), vminq_s32(shifts.s3, none)},
               vmaxvq_s8(0, shift) > 0};
  for (int ky = 0; layer->in_zero != 0 && ky < r->rows; ++ky) {
    for (int kx = 0; kx < r->columns; ++kx) {
      int8x16_t of = vldrbq_s8(weight + ky * r->row + kx * r->channels);
      int16x8_t zero = vdupq_n_s16((int16_t)layer->in_zero), evens = vmovlbq_s8(of), odds = vmovltq_s8(of);
      b.start.s0 = vsubq_s32(b.start.s0, vmullbq_int_s16(evens, zero)), b.start.s2 = vsubq_s32(b.start.s2, vmulltq_int_s16(evens, zero));
      b.start.s1 = vsubq_s32(b.start.s1, vmullbq_int_s16(odds, zero)), b.start.s3 = vsubq_s32(b.start.s3, vmulltq_int_s16(odds, zero));
    }
  }
  return b;
}

__attribute__((noinline)) static void sixteen_in(const area *r, const gs_layer *layer, int channel, const int8_t *in, const int8_t *weight,
                                                 int8_t *out) {
  block16 made = block16_of(r, layer, channel, weight);
  const block16 *b = &made;
  __asm("" : "+r"(b) : : "memory"); /* compilers else find each vector's address anew */
  int across = r->across, c = r->channels;
  for (int y = r->high; y > 0; --y, in += r->step_y, out += r->line) {
    const int8_t *place = in;
    int8_t *to = out;
    for (int x = r->wide; x > 0; --x, place += r->step_x, to += c) {
      const int8_t *codes = place, *w = weight;
      sums16 sums = b->start;
      for (int ky = r->rows; ky > 0; --ky, codes += r->down, w += r->row) {
        if (r->columns == 3) {
          sums = tap16(codes + 2 * across, w + 2 * c, two_taps16(codes, w, codes + across, w + c, sums));
          continue;
        }
        const int8_t *code = codes, *of = w;
        int kx = r->columns;
        for (; kx > 1; kx -= 2, code += 2 * across, of += 2 * c) sums = two_taps16(code, of, code + across, of + c, sums);
        if (kx) sums = tap16(code, of, sums);
      }
      store16(sums, b, layer->out_zero, to);
    }
  }
}

static void area_of(const area *r, const gs_layer *layer, const int8_t *in, const int8_t *weight, int8_t *out) {
  int channel = 0;
  for (; channel + 16 <= r->channels; channel += 16) sixteen_in(r, layer, channel, in + channel, weight + channel, out + channel);
  for (; channel + 8 <= r->channels; channel += 8) eight_in(r, layer, channel, in + channel, weight + channel, out + channel);
  if (channel < r->channels) fewer_in(r, layer, channel, in + channel, weight + channel, out + channel);
}

/* How many places from `at` on read the same part of the kernel along one axis. */
static int alike(int at, int count, int stride, int pad, int kernel, int dilation, int size) {
  int start = at * stride - pad, reach = (kernel - 1) * dilation + 1;
  int found = start < 0 || start + reach > size ? 1 : (size - reach - start) / stride + 1;
  return found < count - at ? found : count - at;
}

/* Each channel has one result: the image in rectangles, of which the one in the middle is the largest. */
static void each_by_itself(const gs_window *s, const gs_layer *layer, const int8_t *in, int8_t *out) {
  int c = s->out_c, line = s->in_w * c;
  area r = {0, 0, 0, 0, s->stride_h * line, s->stride_w * c, s->out_w * c, c, s->dilation_h * line, s->dilation_w * c, s->kernel_w * c};
  for (int y = 0; y < s->out_h; y += r.high) {
    int top = y * s->stride_h - s->pad_h;
    gs_span rows = gs_on_image(top, s->kernel_h, s->dilation_h, s->in_h);
    r.high = alike(y, s->out_h, s->stride_h, s->pad_h, s->kernel_h, s->dilation_h, s->in_h), r.rows = rows.to - rows.from;
    for (int x = 0; x < s->out_w; x += r.wide) {
      int left = x * s->stride_w - s->pad_w;
      gs_span columns = gs_on_image(left, s->kernel_w, s->dilation_w, s->in_w);
      r.wide = alike(x, s->out_w, s->stride_w, s->pad_w, s->kernel_w, s->dilation_w, s->in_w), r.columns = columns.to - columns.from;
      const int8_t *codes = in + ((top + rows.from * s->dilation_h) * s->in_w + left + columns.from * s->dilation_w) * c;
      area_of(&r, layer, codes, layer->weight + (rows.from * s->kernel_w + columns.from) * c, out + (y * s->out_w + x) * c);
    }
  }
}

/* Several results read one channel. */
static void one_by_one(const gs_window *s, const gs_layer *layer, const int8_t *in, int8_t *out) {
  int multiple = s->out_c / s->in_c;
  for (int y = 0; y < s->out_h; ++y) {
    int top = y * s->stride_h - s->pad_h;
    gs_span rows = gs_on_image(top, s->kernel_h, s->dilation_h, s->in_h);
    for (int x = 0; x < s->out_w; ++x) {
      int left = x * s->stride_w - s->pad_w;
      gs_span columns = gs_on_image(left, s->kernel_w, s->dilation_w, s->in_w);
      for (int o = 0; o < s->out_c; ++o) {
        int32_t sum = layer->bias[o];
        for (int ky = rows.from; ky < rows.to; ++ky) {
          for (int kx = columns.from; kx < columns.to; ++kx) {
            int place = (top + ky * s->dilation_h) * s->in_w + left + kx * s->dilation_w;
            sum += (in[place * s->in_c + o / multiple] - layer->in_zero) * layer->weight[(ky * s->kernel_w + kx) * s->out_c + o];
          }
        }
        int32_t code = gs_scaled(sum, (gs_factor){layer->multiplier[o], layer->shift[o]}) + layer->out_zero;
        *out++ = (int8_t)(code < -128 ? -128 : code > 127 ? 127 : code);
      }
    }
  }
}

void gs_depthwise_s8(const gs_window *s, const gs_layer *layer, const int8_t *in, int8_t *out) {
  if (s->out_c == s->in_c) {
    each_by_itself(s, layer, in, out);
  } else {
    one_by_one(s, layer, in, out);
  }
}
#endif
