/* What kernels for cores with vectors (MVE) share: sums of products, and results of sums as gs_scaled makes them. */
#ifndef GOSSAMER_MVE_H
#define GOSSAMER_MVE_H
#include "gossamer_kernels.h"

#ifdef GS_MVE
#include <arm_mve.h>

/* Factors of four sums: multipliers, and shifts to the left and (negative) to the right. */
typedef struct {
  int32x4_t multiplier, left, right;
} gs_factors4;

static inline gs_factors4 gs_factors4_of(int32x4_t multiplier, int32x4_t shift) {
  return (gs_factors4){multiplier, vmaxq_s32(shift, vdupq_n_s32(0)), vminq_s32(shift, vdupq_n_s32(0))};
}

/* high * 2^shift for a shift <= 0: a rounding shift takes halves up, so a number below zero that is shifted is made one less first. */
static inline int32x4_t gs_shifted4(int32x4_t high, int32x4_t shift) {
  return vrshlq_s32(vaddq_s32(high, vshrq_n_s32(vandq_s32(high, shift), 31)), shift);
}

/* gs_scaled of four sums. */
static inline int32x4_t gs_scaled4(int32x4_t value, gs_factors4 factors) {
  return gs_shifted4(vqrdmulhq_s32(vshlq_s32(value, factors.left), factors.multiplier), factors.right);
}

/* gs_scaled of four sums with one factor. */
static inline int32x4_t gs_scaled4_by(int32x4_t value, gs_factor factor) {
  int32_t left = factor.shift > 0 ? factor.shift : 0, right = factor.shift < 0 ? factor.shift : 0;
  return gs_shifted4(vqrdmulhq_n_s32(vshlq_r_s32(value, left), factor.multiplier), vdupq_n_s32(right));
}

/* Numbers that fit a code, in the lowest byte of each lane. */
static inline int32x4_t gs_clamped4(int32x4_t value) {
  int16x8_t half = vqmovnbq_s32(vreinterpretq_s16_s32(value), value);
  return vreinterpretq_s32_s8(vqmovnbq_s16(vreinterpretq_s8_s16(half), half));
}

/* Copies bytes, or fills them with one. */
static inline void gs_copy(int8_t *to, const int8_t *from, int count) {
  __asm volatile(
      "wlstp.8 lr, %[count], 2f\n1:\n\tvldrb.8 q0, [%[from]], #16\n\tvstrb.8 q0, [%[to]], #16\n\tletp lr, 1b\n2:"
      : [to] "+r"(to), [from] "+r"(from)
      : [count] "r"(count)
      : "q0", "lr", "memory");
}
static inline void gs_fill(int8_t *to, int8_t code, int count) {
  __asm volatile(
      "vdup.8 q0, %[code]\n\twlstp.8 lr, %[count], 2f\n1:\n\tvstrb.8 q0, [%[to]], #16\n\tletp lr, 1b\n2:"
      : [to] "+r"(to)
      : [count] "r"(count), [code] "r"(code)
      : "q0", "lr", "memory");
}
#endif
#endif
