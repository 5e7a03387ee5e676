"""Kernels of codes on emulated cores, one by one: those for vectors (MVE) and for the DSP extension against sums by numpy, bit for bit."""

import importlib.util
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from gossamer.apply.engine import apply
from gossamer.numerics.fixed_point import quantize_multiplier
from gossamer.plan.quantization import plan_quantization
from gossamer.program.capture import capture
from gossamer.targets.cortex_m.boards import boards, linker_script
from gossamer.targets.cortex_m.kernels import OWN, VECTORS, WHERE_CALLED, runtime_file
from gossamer.targets.cortex_m.run import COMPILER, EMULATOR, INSTALL, OPTIONS, STRICT, measure_memory, open_on
from gossamer.targets.export import export
from gossamer.targets.simulate import simulate

pytestmark = pytest.mark.skipif(not (shutil.which(COMPILER) and shutil.which(EMULATOR)), reason=f"needs {INSTALL}")
_spec = importlib.util.spec_from_file_location("test_layers", Path(__file__).with_name("test_layers.py"))
layers = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(layers)
CORES = ("cortex-m4", "cortex-m7", "cortex-m55")
FILES = (*OWN, VECTORS, *WHERE_CALLED)

CASES = """
#include <stdio.h>
#include <string.h>
#include "gossamer_kernels.h"
static int8_t in[1 << 16], weight[1 << 16], out[1 << 16], shift[512];
static int32_t bias[512], multiplier[512], n[22];
static gs_factor factor(int i) { return (gs_factor){multiplier[i], shift[i]}; }
int main(void) {
  FILE *from = fopen("in.bin", "rb"), *to = fopen("out.bin", "wb");
  while (fread(n, 4, 22, from) == 22) {
    gs_window s;
    memcpy(&s, n + 1, sizeof s);
    gs_layer layer = {weight, bias, multiplier, shift, n[15], n[16]};
    fread(weight, 1, n[17], from), fread(in, 1, n[18], from);
    fread(bias, 4, n[20], from), fread(multiplier, 4, n[20], from), fread(shift, 1, n[20], from);
    memset(out, 99, sizeof out);
    if (n[0] == 0) gs_conv_s8(&s, &layer, in, out);
    if (n[0] == 1) gs_depthwise_s8(&s, &layer, in, out);
    if (n[0] == 2) gs_linear_s8(s.in_h, s.in_c, s.out_c, &layer, in, out);
    if (n[0] == 3) gs_max_pool_s8(&s, in, out);
    if (n[0] == 4) gs_average_pool_s8(&s, in, out);
    if (n[0] == 5) gs_add_s8(n[18], n[15], n[21], n[16], factor(0), factor(1), factor(2), in, weight, out);
    if (n[0] == 6) gs_mean_s8(s.in_h, s.in_c, n[15], n[16], factor(0), in, out);
    if (n[0] == 7) gs_convert_s8(n[18], n[15], n[16], factor(0), in, out);
    if (n[0] == 8) gs_lookup_s8(n[18], weight, in, out);
    fwrite(out, 1, n[19] + 1, to); /* and one more, which no kernel may touch */
  }
  fclose(to);
  return 0;
}
"""
SCALING = """
#include <stdio.h>
#include "gossamer_mve.h"
static const int32_t edges[] = {0, 1, -1, 2, -2, 3, -3, 127, -128, 255, 256, -256, 4095, 4096, -4096, 1 << 20, -(1 << 20), (1 << 24) + 1,
                                -(1 << 24) - 1, 1 << 30, -(1 << 30), (1 << 30) + 1, INT32_MAX, INT32_MAX - 1, -INT32_MAX, INT32_MIN};
static uint32_t state = 1;
static int32_t next(void) { return (int32_t)(state = state * 1664525u + 1013904223u); }
static unsigned long wrong, compared;
static void check(int32_t value, int32_t multiplier, int shift) {
  gs_factor factor = {multiplier, shift};
  int32_t expected = gs_scaled(value, factor);
  int32_t found[2] = {vgetq_lane_s32(gs_scaled4(vdupq_n_s32(value), gs_factors4_of(vdupq_n_s32(multiplier), vdupq_n_s32(shift))), 2),
                      vgetq_lane_s32(gs_scaled4_by(vdupq_n_s32(value), factor), 1)};
  wrong += (found[0] != expected) + (found[1] != expected), ++compared;
}
int main(void) {
  for (int shift = -40; shift <= 8; ++shift) {
    for (unsigned i = 0; i < sizeof edges / sizeof *edges; ++i) {
      check(edges[i], 1 << 30, shift), check(edges[i], INT32_MAX, shift), check(edges[i], (1 << 30) + 1, shift), check(edges[i], 0, shift);
      for (int k = 0; k < 20; ++k) check(edges[i], (1 << 30) | (next() & INT32_MAX), shift);
    }
    for (int k = 0; k < 2000; ++k) { /* sums of all sizes; multiples of powers of two lie on ties */
      int32_t value = next() >> (k % 24), of = (1 << 30) | (next() & INT32_MAX);
      check(value, of, shift), check(value >> 8 << 8, 1 << 30, shift), check(value >> 4 << 4, 3 << 29, shift);
    }
  }
  FILE *to = fopen("out.bin", "wb");
  fwrite(&wrong, 4, 1, to), fwrite(&compared, 4, 1, to);
  fclose(to);
  return 0;
}
"""


def built(folder, core, main, files=FILES, flags=None, options=OPTIONS):
    """A program of the kernels for a core."""
    board = boards[core]
    for name in (*files, "gossamer_kernels.h", "startup.c"):
        (folder / name).write_bytes(runtime_file(name))
    (folder / "main.c").write_text(main)
    (folder / "board.ld").write_text(linker_script(board))
    sources = [name for name in files if name.endswith(".c")] + ["main.c", "startup.c"]
    link = ["--specs=rdimon.specs", "-nostartfiles", "-Wl,--gc-sections", "-T", "board.ld"]
    command = [COMPILER, *(flags or board.flags), *options, *STRICT, "-Wno-unused-result", *link, *sources, "-lm", "-o", "all.elf"]
    subprocess.run(command, cwd=folder, check=True)
    return folder / "all.elf"


def emulated(program, core, data=b""):
    """What the program makes of the data."""
    (program.parent / "in.bin").write_bytes(data)
    quiet = ["-nographic", "-monitor", "none", "-serial", "none", "-semihosting-config", "enable=on,target=native"]
    subprocess.run(
        [EMULATOR, "-M", boards[core].machine, *quiet, "-kernel", program], cwd=program.parent, check=True, stdin=subprocess.DEVNULL
    )
    return (program.parent / "out.bin").read_bytes()


def windows(rng):
    """Sizes of all kinds: one channel, around 4, 8 and 16, strides, borders, dilation; kernels that are large, places that see little."""
    for channels, outputs in (
        (1, 1),
        (1, 5),
        (3, 8),
        (4, 4),
        (7, 3),
        (8, 16),
        (15, 2),
        (16, 70),
        (17, 9),
        (24, 4),
        (33, 6),
        (64, 5),
        (130, 3),
    ):
        for _ in range(3):
            kernel, stride, dilation = (tuple(int(n) for n in rng.integers(1, top, 2)) for top in (5, 3, 3))
            pad = tuple(int(rng.integers(0, (k - 1) * d + 1)) for k, d in zip(kernel, dilation))
            size = tuple(int(n) for n in rng.integers(1, 9, 2))
            most = [max(1, (n + 2 * p - (k - 1) * d - 1) // s + 1) for n, p, k, d, s in zip(size, pad, kernel, dilation, stride)]
            yield (*size, channels, *most, outputs, *kernel, *stride, *dilation, *pad)
    for kernel in ((3, 3), (1, 1), (5, 1)):
        for stride in (1, 2):
            yield (9, 6, 16, 9 // stride, 6 // stride, 12, *kernel, stride, stride, 1, 1, kernel[0] // 2, kernel[1] // 2)


def layer_of(rng, outputs):
    """Zero points, biases, multipliers and shifts; some shifts are to the left."""
    pairs = [
        quantize_multiplier(float(number))
        for number in rng.choice([0.0004, 0.02, 0.5, 0.9999, 1.7], outputs) * rng.uniform(0.8, 1.2, outputs)
    ]
    in_zero, out_zero = int(rng.choice([0, -128, 127, 11])), int(rng.integers(-128, 128))
    return in_zero, out_zero, rng.integers(-3000, 3000, outputs), np.array([m for m, _ in pairs]), np.array([e for _, e in pairs])


def codes(rng, *shape, low=-128):
    """All codes are as likely, and the lowest and highest more."""
    return np.where(rng.random(shape) < 0.2, rng.choice([low, 127], shape), rng.integers(low, 128, shape))


def packed(op, numbers, zeros, weight, image, layer, outputs, second=0):
    """One case, as the program reads it."""
    _, _, bias, multiplier, shift = layer
    head = (op, *numbers, *zeros, weight.size, image.size, outputs, len(bias), second)
    parts = (np.int32(head), weight.astype(np.int8), image.astype(np.int8), np.int32(bias), np.int32(multiplier), np.int8(shift))
    return b"".join(np.ascontiguousarray(part).tobytes() for part in parts)


def layer_cases():
    """Data of all convolutions, depthwise convolutions and linear layers, and the codes that they must give."""
    rng, data, expected = np.random.default_rng(0), [], []
    for numbers in windows(rng):
        for depthwise in (False, True):
            s = layers.Window(*numbers)
            if depthwise:
                s.out_c = s.in_c * int(rng.choice([1, 1, 2]))
            layer, image = layer_of(rng, s.out_c), codes(rng, s.in_h, s.in_w, s.in_c)
            weight = codes(rng, *((s.kernel_h, s.kernel_w, s.out_c) if depthwise else (s.out_c, s.kernel_h, s.kernel_w, s.in_c)), low=-127)
            found = layers.oracle(s, depthwise, image, weight, layer)
            sizes = [getattr(s, name) for name, _ in s._fields_]
            data.append(packed(int(depthwise), sizes, layer[:2], weight, image, layer, found.size))
            expected.append(found)
    for rows, inputs, outputs in ((1, 1, 1), (1, 16, 4), (3, 17, 6), (2, 250, 10), (5, 40, 3)):
        layer, image, weight = layer_of(rng, outputs), codes(rng, rows, inputs), codes(rng, outputs, inputs, low=-127)
        sums = (image - layer[0]) @ weight.T + layer[2]
        found = [[layers.exact(int(n), int(m), int(e)) for n, m, e in zip(row, layer[3], layer[4])] for row in sums]
        sizes = (rows, 1, inputs, rows, 1, outputs, *[1] * 6, 0, 0)
        data.append(packed(2, sizes, layer[:2], weight, image, layer, rows * outputs))
        expected.append(np.clip(np.array(found) + layer[1], -128, 127))
    return b"".join(data), np.concatenate([np.append(found.reshape(-1), 99) for found in expected])


def value_cases():
    """Data of pools, sums, means, conversions and tables."""
    rng, data = np.random.default_rng(1), []
    nothing = np.zeros(0)
    for numbers in windows(rng):
        numbers = (*numbers[:5], numbers[2], *numbers[6:10], 1, 1, *(min(p, k - 1) for p, k in zip(numbers[12:], numbers[6:8])))
        in_h, in_w, channels, *_, pad_h, pad_w = numbers
        out_h, out_w = ((n + p - 1) // s + 1 for n, p, s in zip((in_h, in_w), (pad_h, pad_w), numbers[8:10]))
        numbers = (*numbers[:3], out_h, out_w, *numbers[5:])  # each window has a part on the image
        layer, image = layer_of(rng, 3), codes(rng, in_h, in_w, channels)
        data += [packed(op, numbers, layer[:2], nothing, image, layer, out_h * out_w * channels) for op in (3, 4)]
        sizes = (in_h * in_w, 1, channels, *[1] * 11)
        data.append(packed(6, sizes, layer[:2], nothing, image, layer, channels))
        factors = [quantize_multiplier(float(number)) for number in (rng.choice([0.5, 0.31]), 0.5, rng.choice([2e-6, 7e-6]))]
        sums = (*layer[:3], np.array([m for m, _ in factors]), np.array([e for _, e in factors]))
        data.append(packed(5, sizes, layer[:2], codes(rng, *image.shape), image, sums, image.size, int(rng.integers(-128, 128))))
        data.append(packed(7, sizes, layer[:2], nothing, image, layer, image.size))
        data.append(packed(8, sizes, layer[:2], codes(rng, 256), image, layer, image.size))
    return b"".join(data)


@pytest.mark.parametrize("core", CORES)
def test_layers_of_any_shape(core, tmp_path):
    data, expected = layer_cases()
    np.testing.assert_array_equal(np.frombuffer(emulated(built(tmp_path, core, CASES), core, data), np.int8), expected)


def test_values_are_those_of_plain_c(tmp_path):
    data, found = value_cases(), {}
    for core in ("cortex-m4", "cortex-m55"):
        (tmp_path / core).mkdir()
        found[core] = np.frombuffer(emulated(built(tmp_path / core, core, CASES), core, data), np.int8)
    assert len(np.unique(found["cortex-m4"])) == 256
    np.testing.assert_array_equal(found["cortex-m4"], found["cortex-m55"])


def test_vectors_are_scaled_as_numbers(tmp_path):
    wrong, compared = np.frombuffer(emulated(built(tmp_path, "cortex-m55", SCALING, (VECTORS,)), "cortex-m55"), np.uint32)
    assert compared > 200_000
    assert wrong == 0


@pytest.mark.parametrize("options", ["-O0", "-O1", "-O2 -fno-omit-frame-pointer", "-Os"])
@pytest.mark.parametrize("core", CORES)
def test_other_options_compile_them_too(options, core, tmp_path):
    assert built(tmp_path, core, CASES, options=("-std=gnu99", *options.split())).exists()  # warnings are errors


class Small(nn.Module):
    """Layers, sums and pools of odd sizes."""

    def __init__(self):
        super().__init__()
        self.one, self.two, self.three = nn.Conv2d(3, 18, 3, 2, 1), nn.Conv2d(18, 18, 3, padding=1, groups=18), nn.Conv2d(18, 18, 1)
        self.head = nn.Linear(18, 7)

    def forward(self, x):
        x = torch.relu(self.one(x))
        x = nn.functional.max_pool2d(torch.relu(self.three(torch.relu(self.two(x))) + x), 2)
        return self.head(x.mean((2, 3)))


def test_a_core_with_vectors_uses_them(tmp_path):
    torch.manual_seed(0)
    samples = torch.randn(8, 3, 19, 23)
    program = capture(Small().eval(), samples[:2])
    quantized = apply(program, plan_quantization(program, samples, "cortex_m"))
    path = export(quantized, tmp_path / "net.c", "cortex_m").path
    vectors, plain = open_on(path, "cortex-m55"), open_on(path, "cortex-m55")
    plain._board = replace(boards["cortex-m55"], flags=("-mcpu=cortex-m55+nomve", "-mfpu=auto", "-mfloat-abi=hard"))
    expected = simulate(quantized, samples).numpy()
    np.testing.assert_array_equal(vectors.run(samples.numpy()), expected)
    np.testing.assert_array_equal(plain.run(samples.numpy()), expected)
    counts, more = vectors.instructions(samples.numpy()), plain.instructions(samples.numpy())
    assert sum(counts.values()) < 0.35 * sum(more.values())
    assert all(counts[step] < more[step] for step in counts if more[step] > 100)
    assert measure_memory(path, "cortex-m55").ram_bytes == measure_memory(path, "cortex-m4").ram_bytes
    listings = [disassembled(runner._built[""]) for runner in (vectors, plain)]
    for instruction in ("vmlava.s8", "vmullb.s8", "vqrdmulh.s32", "vrshl.s32", "letp"):
        assert [f"\t{instruction}" in listing for listing in listings] == [True, False], instruction


def disassembled(program):
    """The instructions of a program, those of vectors included."""
    command = ["arm-none-eabi-objdump", "-d", "-m", "armv8.1-m.main", str(program)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout
