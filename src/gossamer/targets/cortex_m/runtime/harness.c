/* Runs a network on the samples of in.bin and writes out.bin; with GS_TRACE_FILE also every value, with GS_COUNT the ticks of each step. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#include GS_HEADER

static char input[GS_IN_BYTES] __attribute__((aligned(8)));
static char output[GS_OUT_BYTES] __attribute__((aligned(8)));

#ifdef GS_TRACE_FILE
static FILE *trace;
void gs_trace(int value, const void *data, int bytes) {
  (void)value;
  fwrite(data, 1, (size_t)bytes, trace);
}
#endif

#ifdef GS_COUNT
extern volatile uint32_t gs_wraps;
static uint64_t ticks[GS_STEPS + 1];
static uint64_t now(void) {
  uint32_t wraps, left;
  do {
    wraps = gs_wraps;
    left = *(volatile uint32_t *)0xE000E018;
  } while (wraps != gs_wraps);
  return (uint64_t)wraps * 0x1000000u + (0xFFFFFFu - left);
}
void gs_step(int step) { ticks[step] = now(); }
#endif

int main(void) {
  FILE *in = fopen("in.bin", "rb"), *out = fopen("out.bin", "wb");
  if (!in || !out) return 2;
#ifdef GS_TRACE_FILE
  trace = fopen("trace.bin", "wb");
#endif
#ifdef GS_COUNT
  *(volatile uint32_t *)0xE000E014 = 0xFFFFFF;
  *(volatile uint32_t *)0xE000E018 = 0;
  *(volatile uint32_t *)0xE000E010 = 7;
#endif
  while (fread(input, 1, sizeof input, in) == sizeof input) {
#ifdef GS_COUNT
    gs_step(0);
#endif
    if (gs_run(input, output)) return 3;
    fwrite(output, 1, sizeof output, out);
  }
#ifdef GS_TRACE_FILE
  fclose(trace);
#endif
#ifdef GS_COUNT
  FILE *counts = fopen("ticks.bin", "wb");
  fwrite(ticks, 1, sizeof ticks, counts);
  fclose(counts);
#endif
  fclose(out);
  return 0;
}
