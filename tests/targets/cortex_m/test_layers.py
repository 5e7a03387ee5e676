"""The kernels of layers in plain C, compiled for this machine, against sums by numpy and the arithmetic of the simulator."""

import ctypes
import shutil
import subprocess

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gossamer.numerics.fixed_point import quantize_multiplier
from gossamer.targets.cortex_m.kernels import runtime_file

pytestmark = pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler")


class Window(ctypes.Structure):
    _fields_ = [
        (name, ctypes.c_int)
        for name in "in_h in_w in_c out_h out_w out_c kernel_h kernel_w stride_h stride_w dilation_h dilation_w pad_h pad_w".split()
    ]


class Layer(ctypes.Structure):
    _fields_ = [(name, ctypes.c_void_p) for name in ("weight", "bias", "multiplier", "shift")] + [
        ("in_zero", ctypes.c_int),
        ("out_zero", ctypes.c_int),
    ]


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    folder = tmp_path_factory.mktemp("c")
    for name in ("gossamer_layers_s8.c", "gossamer_kernels.h"):
        (folder / name).write_bytes(runtime_file(name))
    (folder / "scaled.c").write_text(
        '#include "gossamer_kernels.h"\nint32_t scaled(int32_t v, int32_t m, int32_t s) { return gs_scaled(v, (gs_factor){m, s}); }\n'
    )
    flags = ["-std=gnu99", "-O1", "-Wall", "-Wextra", "-Werror", "-fsanitize=undefined", "-fno-sanitize-recover", "-shared", "-fPIC"]
    subprocess.run(["cc", *flags, "gossamer_layers_s8.c", "scaled.c", "-o", "all.so"], cwd=folder, check=True)
    return ctypes.CDLL(str(folder / "all.so"))


def exact(value, multiplier, shift):
    """gemmlowp's doubling high product and rounding shift, in whole numbers of Python."""
    product = (value << max(shift, 0)) * multiplier
    nudge = 2**30 if product >= 0 else 1 - 2**30
    high = abs(product + nudge) // 2**31 * (1 if product + nudge >= 0 else -1)
    right = max(-shift, 0)
    if right > 31:
        return 0
    rest = high & ((1 << right) - 1)
    return (high >> right) + (rest > ((1 << right) - 1 >> 1) + (high < 0))


@given(st.integers(-(2**24), 2**24), st.integers(2**30, 2**31 - 1), st.integers(-40, 6))
@settings(deadline=None, max_examples=400)
def test_scaling_rounds_as_the_reference(library, value, multiplier, shift):
    assert library.scaled(value, multiplier, shift) == exact(value, multiplier, shift)


@pytest.mark.parametrize("value", [1, -1, 3, -3, 2**24 + 1, -(2**24) - 1])
@pytest.mark.parametrize("shift", [0, -1, -2, -24, -25, -31, -32, 3])
def test_scaling_of_halves(library, value, shift):
    assert library.scaled(value, 2**30, shift) == exact(value, 2**30, shift)


@st.composite
def cases(draw):
    kernel = draw(st.tuples(st.integers(1, 4), st.integers(1, 4)))
    stride, dilation = (draw(st.tuples(st.integers(1, 3), st.integers(1, 2))) for _ in range(2))
    pad = tuple(draw(st.integers(0, (k - 1) * d)) for k, d in zip(kernel, dilation))
    size = tuple(draw(st.integers(1, 7)) for _ in range(2))
    out = tuple(
        draw(st.integers(1, max(1, (n + 2 * p - (k - 1) * d - 1) // s + 1))) for n, p, k, d, s in zip(size, pad, kernel, dilation, stride)
    )
    channels, outputs = draw(st.integers(1, 21)), draw(st.integers(1, 9))
    depthwise = draw(st.booleans())
    outputs = channels * draw(st.sampled_from([1, 1, 2])) if depthwise else outputs
    return Window(*size, channels, *out, outputs, *kernel, *stride, *dilation, *pad), depthwise, draw(st.integers(0, 2**31))


def oracle(s, depthwise, image, weight, layer):
    """Sums over an image with a border of zero points that is large enough for every place."""
    in_zero, out_zero, bias, multiplier, shift = layer
    margin = 40
    wide = np.full((s.in_h + 2 * margin, s.in_w + 2 * margin, s.in_c), in_zero, np.int64)
    wide[margin : margin + s.in_h, margin : margin + s.in_w] = image
    wide -= in_zero
    out = np.zeros((s.out_h, s.out_w, s.out_c), np.int64)
    for y, x in np.ndindex(s.out_h, s.out_w):
        top, left = margin + y * s.stride_h - s.pad_h, margin + x * s.stride_w - s.pad_w
        part = wide[top : top + s.kernel_h * s.dilation_h : s.dilation_h, left : left + s.kernel_w * s.dilation_w : s.dilation_w]
        if depthwise:
            sums = (np.repeat(part, s.out_c // s.in_c, 2) * weight).sum((0, 1)) + bias
        else:
            sums = np.einsum("hwc,ohwc->o", part, weight) + bias
        out[y, x] = [exact(int(total), int(m), int(e)) for total, m, e in zip(sums, multiplier, shift)]
    return np.clip(out + out_zero, -128, 127)


@given(cases())
@settings(deadline=None, max_examples=150)
def test_convolutions_of_any_shape(library, case):
    s, depthwise, seed = case
    rng = np.random.default_rng(seed)
    image = rng.integers(-128, 128, (s.in_h, s.in_w, s.in_c)).astype(np.int8)
    shape = (s.kernel_h, s.kernel_w, s.out_c) if depthwise else (s.out_c, s.kernel_h, s.kernel_w, s.in_c)
    weight = rng.integers(-127, 128, shape).astype(np.int8)
    bias = rng.integers(-3000, 3000, s.out_c).astype(np.int32)
    pairs = [quantize_multiplier(float(number)) for number in rng.uniform(1e-4, 0.05, s.out_c) * rng.choice([1, 1, 1e-9, 40], s.out_c)]
    multiplier, shift = np.array([m for m, _ in pairs], np.int32), np.array([e for _, e in pairs], np.int8)
    in_zero, out_zero = (int(number) for number in rng.integers(-128, 128, 2))
    layer = Layer(*(array.ctypes.data for array in (weight, bias, multiplier, shift)), in_zero, out_zero)
    got = np.full((s.out_h, s.out_w, s.out_c), 99, np.int8)
    kernel = library.gs_depthwise_s8 if depthwise else library.gs_conv_s8
    kernel(ctypes.byref(s), ctypes.byref(layer), image.ctypes.data_as(ctypes.c_void_p), got.ctypes.data_as(ctypes.c_void_p))
    np.testing.assert_array_equal(got, oracle(s, depthwise, image, weight, (in_zero, out_zero, bias, multiplier, shift)))
