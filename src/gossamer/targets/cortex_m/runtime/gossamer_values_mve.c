/* Sums, products, pools and tables of 8-bit codes on cores with vectors (MVE): four or sixteen values at once. */
#include "gossamer_mve.h"

#ifdef GS_MVE
static inline int32x4_t raised(const int8_t *codes, int zero, mve_pred16_t left) {
  return vshlq_n_s32(vsubq_n_s32(vldrbq_z_s32(codes, left), zero), 20);
}

void gs_add_s8(int count, int8_t a_zero, int8_t b_zero, int8_t out_zero, gs_factor a_factor, gs_factor b_factor, gs_factor factor,
               const int8_t *a, const int8_t *b, int8_t *out) {
  for (; count > 0; count -= 4, a += 4, b += 4, out += 4) {
    mve_pred16_t left = vctp32q((uint32_t)count);
    int32x4_t sum = vaddq_s32(gs_scaled4_by(raised(a, a_zero, left), a_factor), gs_scaled4_by(raised(b, b_zero, left), b_factor));
    vstrbq_p_s32(out, gs_clamped4(vaddq_n_s32(gs_scaled4_by(sum, factor), out_zero)), left);
  }
}

void gs_convert_s8(int count, int8_t in_zero, int8_t out_zero, gs_factor factor, const int8_t *in, int8_t *out) {
  for (; count > 0; count -= 4, in += 4, out += 4) {
    mve_pred16_t left = vctp32q((uint32_t)count);
    int32x4_t value = gs_scaled4_by(vsubq_n_s32(vldrbq_z_s32(in, left), in_zero), factor);
    vstrbq_p_s32(out, gs_clamped4(vaddq_n_s32(value, out_zero)), left);
  }
}

void gs_mean_s8(int positions, int channels, int8_t in_zero, int8_t out_zero, gs_factor factor, const int8_t *in, int8_t *out) {
  for (int c = 0; c < channels; c += 4) {
    mve_pred16_t left = vctp32q((uint32_t)(channels - c));
    int32x4_t sum = vdupq_n_s32(-positions * in_zero);
    const int8_t *from = in + c;
    for (int i = positions; i > 0; --i, from += channels) sum = vaddq_s32(sum, vldrbq_z_s32(from, left));
    vstrbq_p_s32(out + c, gs_clamped4(vaddq_n_s32(gs_scaled4_by(sum, factor), out_zero)), left);
  }
}

void gs_lookup_s8(int count, const int8_t *table, const int8_t *in, int8_t *out) {
  for (; count > 0; count -= 16, in += 16, out += 16) {
    mve_pred16_t left = vctp8q((uint32_t)count);
    uint8x16_t place = veorq_u8(vreinterpretq_u8_s8(vldrbq_z_s8(in, left)), vdupq_n_u8(128));
    vstrbq_p_s8(out, vldrbq_gather_offset_z_s8(table, place, left), left);
  }
}

/* Part of a pool's window that lies on the image. */
typedef struct {
  gs_span rows, columns;
} part;
static inline part part_of(const gs_window *s, int y, int x) {
  int top = y * s->stride_h - s->pad_h, left = x * s->stride_w - s->pad_w;
  gs_span rows = gs_on_image(top, s->kernel_h, 1, s->in_h), columns = gs_on_image(left, s->kernel_w, 1, s->in_w);
  return (part){{top + rows.from, top + rows.to}, {left + columns.from, left + columns.to}};
}

void gs_max_pool_s8(const gs_window *s, const int8_t *in, int8_t *out) {
  for (int y = 0; y < s->out_h; ++y) {
    for (int x = 0; x < s->out_w; ++x, out += s->in_c) {
      part p = part_of(s, y, x);
      for (int c = 0; c < s->in_c; c += 16) {
        mve_pred16_t left = vctp8q((uint32_t)(s->in_c - c));
        int8x16_t most = vdupq_n_s8(INT8_MIN);
        for (int iy = p.rows.from; iy < p.rows.to; ++iy) {
          const int8_t *from = in + (iy * s->in_w + p.columns.from) * s->in_c + c;
          for (int i = p.columns.to - p.columns.from; i > 0; --i, from += s->in_c) most = vmaxq_s8(most, vldrbq_z_s8(from, left));
        }
        vstrbq_p_s8(out + c, most, left);
      }
    }
  }
}

void gs_average_pool_s8(const gs_window *s, const int8_t *in, int8_t *out) {
  for (int y = 0; y < s->out_h; ++y) {
    for (int x = 0; x < s->out_w; ++x, out += s->in_c) {
      part p = part_of(s, y, x);
      int32_t count = (p.rows.to - p.rows.from) * (p.columns.to - p.columns.from);
      for (int c = 0; c < s->in_c; c += 4) {
        mve_pred16_t left = vctp32q((uint32_t)(s->in_c - c));
        int32x4_t sum = vdupq_n_s32(0);
        for (int iy = p.rows.from; iy < p.rows.to; ++iy) {
          const int8_t *from = in + (iy * s->in_w + p.columns.from) * s->in_c + c;
          for (int i = p.columns.to - p.columns.from; i > 0; --i, from += s->in_c) sum = vaddq_s32(sum, vldrbq_z_s32(from, left));
        }
        int32_t sums[4];
        vst1q_s32(sums, sum);
        for (int i = 0; i < 4 && c + i < s->in_c; ++i) {
          out[c + i] = (int8_t)((sums[i] + (sums[i] > 0 ? count / 2 : -(count / 2))) / count);
        }
      }
    }
  }
}
#endif
