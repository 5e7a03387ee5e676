/* Starts an emulated board: vectors, floating-point unit, memory, and the host's files through semihosting. */
#include <stdint.h>
#include <stdlib.h>

extern uint32_t gs_stack, gs_data_flash, gs_data, gs_data_end, gs_bss, gs_bss_end;
extern void initialise_monitor_handles(void);
int main(void);

volatile uint32_t gs_wraps;
void gs_tick(void) { ++gs_wraps; }
void gs_fault(void) { _Exit(99); }

void gs_reset(void) {
  *(volatile uint32_t *)0xE000ED88 |= 0xFu << 20; /* CPACR: the floating-point unit */
  __asm volatile("dsb\n isb");
  for (uint32_t *to = &gs_data, *from = &gs_data_flash; to < &gs_data_end;) *to++ = *from++;
  for (uint32_t *to = &gs_bss; to < &gs_bss_end;) *to++ = 0;
  initialise_monitor_handles();
  exit(main());
}

__attribute__((section(".vectors"), used)) static void *const vectors[16] = {
    &gs_stack, gs_reset, gs_fault, gs_fault, gs_fault, gs_fault, gs_fault, 0, 0, 0, 0, gs_fault, 0, 0, gs_fault, gs_tick,
};
