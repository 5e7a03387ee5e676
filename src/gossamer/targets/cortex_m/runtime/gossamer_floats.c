/* Kernels of floats beside layers. */
#include <math.h>

#include "gossamer_kernels.h"

float gs_hard_swish(float x) { return x * fminf(fmaxf(x + 3.0f, 0.0f), 6.0f) / 6.0f; }
float gs_elu(float x) { return x < 0.0f ? expm1f(x) : x; }
float gs_gelu(float x) { return 0.5f * x * (1.0f + erff(x * 0.70710678f)); }
float gs_gelu_tanh(float x) { return 0.5f * x * (1.0f + tanhf(0.79788456f * (x + 0.044715f * x * x * x))); }

void gs_apply_f32(int count, float (*function)(float), const float *in, float *out) {
  for (int i = 0; i < count; ++i) out[i] = function(in[i]);
}

void gs_leaky_relu_f32(int count, float slope, const float *in, float *out) {
  for (int i = 0; i < count; ++i) out[i] = in[i] < 0.0f ? slope * in[i] : in[i];
}

void gs_subtract_f32(int count, int a_repeat, int b_repeat, const float *a, const float *b, float *out) {
  for (int i = 0; i < count; ++i) out[i] = a[i % a_repeat] - b[i % b_repeat];
}

void gs_average_pool_f32(const gs_window *s, const float *in, float *out) {
  for (int y = 0; y < s->out_h; ++y) {
    for (int x = 0; x < s->out_w; ++x) {
      for (int c = 0; c < s->in_c; ++c) {
        float sum = 0.0f;
        int count = 0;
        for (int ky = 0; ky < s->kernel_h; ++ky) {
          for (int kx = 0; kx < s->kernel_w; ++kx) {
            int iy = y * s->stride_h - s->pad_h + ky, ix = x * s->stride_w - s->pad_w + kx;
            if (iy < 0 || iy >= s->in_h || ix < 0 || ix >= s->in_w) continue;
            sum += in[(iy * s->in_w + ix) * s->in_c + c];
            ++count;
          }
        }
        *out++ = sum / (float)count;
      }
    }
  }
}

void gs_softmax_f32(int rows, int columns, const float *in, float *out) {
  for (; rows > 0; --rows, in += columns, out += columns) {
    float most = in[0], sum = 0.0f;
    for (int c = 1; c < columns; ++c) most = fmaxf(most, in[c]);
    for (int c = 0; c < columns; ++c) sum += out[c] = expf(in[c] - most);
    for (int c = 0; c < columns; ++c) out[c] /= sum;
  }
}

void gs_matmul_f32(const gs_product *s, const float *a, const float *b, float *out) {
  for (int batch = 0; batch < s->batches; ++batch, a += s->a_batch, b += s->b_batch) {
    for (int row = 0; row < s->rows; ++row) {
      for (int column = 0; column < s->columns; ++column) {
        float sum = 0.0f;
        for (int k = 0; k < s->inner; ++k) sum += a[row * s->a_row + k * s->a_inner] * b[k * s->b_inner + column * s->b_column];
        *out++ = sum;
      }
    }
  }
}

void gs_resize_bilinear_f32(int out_h, int out_w, int in_w, int channels, const int16_t *rows, const int16_t *columns, const float *down,
                            const float *across, const float *in, float *out) {
  for (int y = 0; y < out_h; ++y) {
    const float *above = in + rows[2 * y] * in_w * channels, *below = in + rows[2 * y + 1] * in_w * channels;
    for (int x = 0; x < out_w; ++x) {
      int left = columns[2 * x] * channels, right = columns[2 * x + 1] * channels;
      for (int c = 0; c < channels; ++c) {
        float upper = above[left + c] + (above[right + c] - above[left + c]) * across[x];
        float lower = below[left + c] + (below[right + c] - below[left + c]) * across[x];
        *out++ = upper + (lower - upper) * down[y];
      }
    }
  }
}
